"""The Jupyter console as a process of its own: `python -m sksd.jupyter.console FILE PAST`, started by `sksd console`.

PAST is how many messages from before come first on iopub; what they have to show is shown before the first prompt.
Descriptor 3, if there is one, takes a byte for each interrupt that the person wants; descriptor 4 ends when whoever
holds the relay is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import threading
from typing import Any, Final, TextIO

from jupyter_console.app import ZMQTerminalIPythonApp
from jupyter_console.ptshell import ZMQTerminalInteractiveShell

from sksd import amounts
from sksd.jupyter.output import Rendering

INTERRUPTS: Final = 3
LIFELINE: Final = 4
INTERRUPT: Final = b"i"


class _Past:
    """A `sksd.jupyter.output.Page` on stdout and stderr, with a rule above and below."""

    def __init__(self) -> None:
        self._begun = False

    async def stream(self, name: str, text: str) -> None:
        """Called by Rendering."""
        self._say(sys.stderr if name == "stderr" else sys.stdout, text)

    async def result(self, text: str) -> None:
        """Called by Rendering."""
        self._say(sys.stdout, f"{text}\n")

    async def picture(self, kind: str, data: bytes, text: str, display: str | None) -> None:
        """Called by Rendering."""
        self._say(sys.stdout, f"{text or f'<{kind}, {amounts.size(len(data))}>'}\n")

    async def traceback(self, text: str) -> None:
        """Called by Rendering."""
        self._say(sys.stderr, f"{text}\n")

    async def clear(self) -> None:
        """Called by Rendering."""
        if self._begun:
            self._say(sys.stdout, "\r\x1b[2K")

    def _say(self, file: TextIO, text: str) -> None:
        if not self._begun:
            self._begun = True
            _rule("missed while nobody was attached")
        file.write(text)
        file.flush()

    def end(self) -> None:
        """That was the past."""
        if self._begun:
            _rule("now")


def _rule(words: str) -> None:
    columns = shutil.get_terminal_size().columns
    sys.stdout.write(f"\n\x1b[2m{f' {words} ':\N{BOX DRAWINGS LIGHT HORIZONTAL}^{columns}}\x1b[0m\n")
    sys.stdout.flush()


def show_past(client: Any, past: int) -> None:
    """Take `past` messages of iopub from a client that has just begun, and show them."""
    page = _Past()
    rendering = Rendering(page)
    loop = asyncio.new_event_loop()
    left = past
    try:
        while left:
            message = client.get_iopub_msg(timeout=None)
            left = message["metadata"].get("sksd", {}).get("left", 0)
            loop.run_until_complete(rendering.show(message["msg_type"], message["content"]))
    finally:
        loop.close()
    page.end()


class Shell(ZMQTerminalInteractiveShell):  # type: ignore[misc]
    """Leaves what becomes of the engine, and saying so, to `sksd console`."""

    def mainloop(self) -> None:
        """Called by the application."""
        say = sys.stdout.write

        def quieter(text: str) -> int:
            return len(text) if text == "keeping kernel alive" else say(text)

        sys.stdout.write = quieter  # type: ignore[method-assign]
        try:
            super().mainloop()
        finally:
            sys.stdout.write = say  # type: ignore[method-assign]


class Console(ZMQTerminalIPythonApp):  # type: ignore[misc]
    """The console on an engine that it did not start, but can interrupt."""

    name = "sksd-console"
    #: Set before it is launched.
    past = 0

    def init_shell(self) -> None:
        """Called by the application: as its own, with our shell."""
        from jupyter_client.consoleapp import JupyterConsoleApp

        JupyterConsoleApp.initialize(self)
        show_past(self.kernel_client, self.past)
        signal.signal(signal.SIGINT, self.handle_sigint)
        self.shell = Shell.instance(
            parent=self, manager=self.kernel_manager, client=self.kernel_client, confirm_exit=False
        )
        self.shell.own_kernel = False

    def handle_sigint(self, *_: Any) -> None:
        """SIGINT: for the engine while it computes, else for the prompt."""
        if self.shell is None or not self.shell._executing:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):
            os.write(INTERRUPTS, INTERRUPT)


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        os.read(LIFELINE, 1)
        os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> None:
    """Run the console on the connection file given, and the number of messages from before."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Console.past = int(arguments[1])
    Console.launch_instance(argv=["--existing", arguments[0], "--log-level=ERROR"])


if __name__ == "__main__":
    main(sys.argv[1:])
