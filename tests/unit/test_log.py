"""An engine's log stays within its bound, whoever asks for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import inotify
from twisted.trial.unittest import SynchronousTestCase

from sksd.keeper.log import BoundedLogs, read_log


class Reactor:
    """Watches nothing: these tests look by themselves."""

    def addReader(self, reader: Any) -> None:
        self.reader = reader

    def removeReader(self, reader: Any) -> None:
        pass

    removeWriter = removeReader


class Bounds(SynchronousTestCase):
    """`BoundedLogs` on a real file."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.log = folder / "engine.log"
        self.log.write_bytes(b"x" * 100_000 + b"last\n")
        self.reactor = Reactor()

    def begin(self) -> int:
        """Where the log begins now."""
        return read_log(self.log, 0, 10)[1]

    def test_daemon_with_another_log_size(self) -> None:
        logs = BoundedLogs(self.reactor, 1024 * 1024)
        logs.add(self.log)
        self.addCleanup(self.reactor.reader.connectionLost, None)
        self.assertEqual(self.begin(), 0)
        logs.resize(8192)
        self.assertGreater(self.begin(), 90_000)
        self.assertEqual(read_log(self.log, -5, 10)[0], b"last\n")

    def test_no_inotify_left_on_this_machine(self) -> None:
        def none_left(reactor: Any) -> Any:
            raise inotify.INotifyError("INotify initialization error.")

        self.patch(inotify, "INotify", none_left)
        logs = BoundedLogs(self.reactor, 8192)
        logs.add(self.log)
        self.assertGreater(self.begin(), 90_000)
        logs.remove(self.log)
