"""The state of a link, told on stderr: a line that lives at a terminal, else now and then a line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from sksd import amounts
from sksd.cli.output import at_terminal, safe

if TYPE_CHECKING:
    from sksd.cli.running import Scope
    from sksd.client.relay import Status

#: Seconds between two lines where there is no terminal, or somebody else writes on it.
_EVERY: Final = 60.0
_CLEAR: Final = "\r\x1b[2K"


class LinkState:
    """`told` is for `open_relay` and `follow`. `live`: nobody else writes on the terminal meanwhile."""

    def __init__(self, scope: Scope, live: bool = True) -> None:
        self._output = scope.output
        self._reactor = scope.reactor
        self._terminal = at_terminal(sys.stderr)
        self._live = live and self._terminal
        self._since: float | None = None
        self._why = ""
        self._timer: Any = None
        self._shown = False

    def __enter__(self) -> LinkState:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def told(self, status: Status) -> None:
        """Called when the link is cut, and when it is back."""
        if status.cut is not None:
            if self._since is None:
                self._since, self._why = self._reactor.seconds() - status.cut, status.why
                self._tell()
            return
        self._stop()
        self._since = None
        if not status.settling:
            size = amounts.size(status.caught_up)
            self._line(f"sksd: back, {size} caught up" if status.caught_up else "sksd: back")

    def _tell(self) -> None:
        assert self._since is not None
        seconds = self._reactor.seconds() - self._since
        lasts = f" for {amounts.duration(seconds)}" if seconds >= 1 else ""
        line = f"sksd: reconnecting{lasts} ({self._why})"
        if self._live:
            self._shown = True
            sys.stderr.write(_CLEAR + safe(line))
            sys.stderr.flush()
        else:
            self._line(line)
        self._timer = self._reactor.callLater(1.0 if self._live else _EVERY, self._tell)

    def _line(self, text: str) -> None:
        if self._terminal and not self._live:
            # Whoever has the terminal may have made its line ends two letters.
            sys.stderr.write(f"\r\n{safe(text)}\r\n")
            sys.stderr.flush()
        else:
            self._output.note(text)

    def _stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._shown:
            self._shown = False
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
