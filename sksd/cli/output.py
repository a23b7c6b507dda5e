"""What a command shows: tables, sentences and waiting for people, one JSON document for programs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds before a person is told what is waited for.
_PATIENCE: Final = 0.5
#: Letters a line that goes to no terminal: tables are never cut.
_ENDLESS: Final = 10_000
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """`text` without colours and other sequences that steer a terminal."""
    return _ESCAPES.sub("", text)


def safe(text: object) -> str:
    """`text` of another machine, on its own lines, with nothing in it that steers a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", plain(str(text)))


def at_terminal(file: IO[str]) -> bool:
    """Whether a person looks at `file`."""
    try:
        return file.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:
        return False


class Output:
    """One for each run of the program; click's `ctx.obj`. `as_json`: somebody gave --json."""

    def __init__(self) -> None:
        self.as_json = False
        self._documents = 0

    def _console(self, file: IO[str]) -> Console:
        from rich.console import Console

        width = None if at_terminal(file) else _ENDLESS
        return Console(file=file, width=width, highlight=False, soft_wrap=True, emoji=False, markup=False)

    def say(self, sentence: str) -> None:
        """A line for people on stdout; nothing with --json."""
        if not self.as_json:
            print(safe(sentence), flush=True)  # noqa: T201

    def note(self, sentence: str) -> None:
        """A line on stderr."""
        print(safe(sentence), file=sys.stderr, flush=True)  # noqa: T201

    def document(self, value: Any) -> None:
        """The one JSON document, with --json; nothing without."""
        if self.as_json and not self._documents:
            self._documents += 1
            print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)  # noqa: T201

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows for people: aligned, wide as they are where nobody looks. A cell of None is empty."""
        if self.as_json:
            return
        from rich import box
        from rich.table import Table

        terminal = at_terminal(sys.stdout)
        table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=not terminal)
        for row in rows:
            table.add_row(*["" if cell is None else safe(cell) for cell in row])
        console = self._console(sys.stdout)
        with console.capture() as captured:
            console.print(table)
        for line in captured.get().splitlines():
            print(line.rstrip())  # noqa: T201
        sys.stdout.flush()

    def facts(self, facts: Sequence[tuple[str, object]]) -> None:
        """Names and values for people, one a line; a value of None or nothing is left out."""
        shown = [(name, value) for name, value in facts if value not in (None, "")]
        wide = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.say(f"{name:<{wide}}  {value}")

    @contextlib.contextmanager
    def waiting(self, reactor: Any, sentence: str) -> Iterator[Callable[[str], None]]:
        """While it lasts longer than half a second a person at a terminal sees a spinner and `sentence` on stderr;
        what is yielded changes the sentence."""
        if not at_terminal(sys.stderr):
            yield lambda _: None
            return
        from rich.text import Text

        shown: Any = None
        current = sentence

        def change(text: str) -> None:
            nonlocal current
            current = safe(text)
            if shown is not None:
                shown.update(Text(current))

        def start() -> None:
            nonlocal shown
            shown = self._console(sys.stderr).status(Text(current))
            shown.start()

        later = reactor.callLater(_PATIENCE, start)
        try:
            yield change
        finally:
            if later.active():
                later.cancel()
            if shown is not None:
                shown.stop()

    def failed(self, sentence: str, error: dict[str, Any]) -> None:
        """Why the command failed: the sentence on stderr, with --json also `{"error": error}` on stdout."""
        self.document({"error": error})
        # A kernel's last words have lines of their own.
        lines = [safe(line) for line in sentence.splitlines()]
        print("sksd: " + "\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201
