"""The Jupyter console as a process of its own: `python -m sksd.jupyter.console FILE`, started by `sksd console`.

Descriptor 3, if there is one, takes a byte for each interrupt that the person wants; descriptor 4 ends when whoever
holds the relay is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import Any, Final

from jupyter_console.app import ZMQTerminalIPythonApp
from jupyter_console.ptshell import ZMQTerminalInteractiveShell

INTERRUPTS: Final = 3
LIFELINE: Final = 4
INTERRUPT: Final = b"i"


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

    def init_shell(self) -> None:
        """Called by the application: as its own, with our shell."""
        from jupyter_client.consoleapp import JupyterConsoleApp

        JupyterConsoleApp.initialize(self)
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
    """Run the console on the connection file given."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Console.launch_instance(argv=["--existing", arguments[0], "--log-level=ERROR"])


if __name__ == "__main__":
    main(sys.argv[1:])
