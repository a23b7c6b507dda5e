"""A real daemon in private folders, for system tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from twisted.internet import defer, error, protocol, reactor, task
from twisted.python.failure import Failure
from twisted.trial import unittest

from sksd import paths
from sksd.client import session
from sksd.client.tls import Pinned
from sksd.wire import messages
from sksd.wire.local import Note, read_note

ROOT = Path(__file__).parents[2]
#: Seconds for anything that has to happen.
LIMIT = 30.0


class Process(protocol.ProcessProtocol):
    """A child of the test: its output, its end."""

    def __init__(self) -> None:
        self._output = bytearray()
        self.ended: defer.Deferred[Any] = defer.Deferred()
        self.over: defer.Deferred[None] = defer.Deferred()
        self._waiting: list[tuple[bytes, defer.Deferred[None]]] = []

    @property
    def output(self) -> bytes:
        """All that it has said so far."""
        return bytes(self._output)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Both stdout and stderr."""
        self._output += data
        for words, waiting in list(self._waiting):
            if words in self._output:
                self._waiting.remove((words, waiting))
                waiting.callback(None)

    def says(self, words: bytes) -> defer.Deferred[None]:
        """Fires when it has said `words`; fails when it has ended without."""
        waiting: defer.Deferred[None] = defer.Deferred()
        if words in self.output:
            waiting.callback(None)
        else:
            self._waiting.append((words, waiting))
        return waiting.addTimeout(LIMIT, reactor)

    def processEnded(self, reason: Failure) -> None:
        """Fires `ended` with the exit code, negative for a signal."""
        value: Any = reason.value
        for _, waiting in self._waiting:
            waiting.errback(AssertionError(f"it ended: {self.output.decode(errors='replace')}"))
        self._waiting.clear()
        self.over.callback(None)
        if not self.ended.called:
            self.ended.callback(-value.signal if value.signal else value.exitCode)

    def kill(self, number: int) -> None:
        """Send a signal, if it lives."""
        with contextlib.suppress(error.ProcessExitedAlready):
            self.transport.signalProcess(number)  # type: ignore[union-attr]


class Pin:
    """A known_hosts that knows one host."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def get(self, key: str) -> str:
        """Its fingerprint."""
        return self._fingerprint

    def check(self, key: str, fingerprint: str, accept_new: bool = False, name: str = "") -> None:
        """Pass."""


class Local:
    """The route to the daemon of a note."""

    name = "here"
    socket = ""

    def __init__(self, note: Note) -> None:
        self.address, self.port, self._note = note.address, note.port, note

    def creator(self, alpn: bytes) -> Any:
        """TLS, pinned."""
        return Pinned(Pin(self._note.fingerprint), "here", alpn)  # type: ignore[arg-type]


async def until(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Wait for something that only shows by looking; fails after `limit` seconds."""
    end = reactor.seconds() + limit  # type: ignore[attr-defined]
    while not (result := condition()):
        if reactor.seconds() > end:  # type: ignore[attr-defined]
            raise AssertionError(f"not within {limit} s: {what}")
        await task.deferLater(reactor, 0.02)
    return result


class DaemonCase(unittest.TestCase):
    """A test with folders of its own, and daemons in them. At the end nothing may be left: no process, no socket."""

    timeout = 120

    def setUp(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="sksd", dir="/tmp"))
        self.addCleanup(shutil.rmtree, self.top, True)
        self.home = self.top / "home"
        folders = {"XDG_CONFIG_HOME": "c", "XDG_STATE_HOME": "s", "XDG_RUNTIME_DIR": "r", "XDG_CACHE_HOME": "k"}
        for name in ("home", *folders.values()):
            (self.top / name).mkdir(mode=0o700)
        # Warnings of libraries are for the process that tests, not for what people see.
        others = ("SKSD_", "CONDA_", "PYTHONWARNINGS")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        environ |= {name: str(self.top / folder) for name, folder in folders.items()}
        environ |= {"HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        self.environ = environ
        self.patch(os, "environ", environ | {})
        self.configuration = paths.configuration_file()
        self.configure("announce = no\nlisten = 127.0.0.1\n")
        self.addCleanup(self.nothing_is_left)
        self._children: list[Process] = []
        # Before what a test adds, so that it runs after it.
        self.addCleanup(self._end_children)

    def configure(self, text: str) -> None:
        """Write the daemon's configuration; `text` stands in [sksd] unless it begins with a section."""
        self.configuration.parent.mkdir(exist_ok=True)
        self.configuration.write_text(text if text.startswith("[") else f"[sksd]\n{text}")

    def run_process(self, *arguments: str, **more: Any) -> Process:
        """Start a program in the test's folders."""
        process = Process()
        environ = {**self.environ, **more.pop("env", {})}
        reactor.spawnProcess(  # type: ignore[attr-defined]
            process, arguments[0], arguments, env=environ, path=more.pop("path", str(ROOT)), **more
        )

        self._children.append(process)
        return process

    @defer.inlineCallbacks
    def _end_children(self) -> Any:
        for process in self._children:
            # Not by `ended`, which a test may have cancelled.
            if process.transport is not None and process.transport.pid is not None:  # type: ignore[attr-defined]
                process.kill(signal.SIGKILL)
                yield process.over

    async def start(self, *arguments: str) -> Process:
        """A daemon that listens; by default `twistd -ny sksd.tac`."""
        twistd = str(paths.executables() / "twistd")
        command = arguments or (sys.executable, twistd, "-n", "--pidfile=", "-y", str(ROOT / "sksd.tac"))
        daemon = self.run_process(*command)
        await daemon.says(b"listens on port")
        return daemon

    async def stop(self, daemon: Process, number: int = signal.SIGTERM) -> Any:
        """End a daemon and answer its exit code."""
        daemon.kill(number)
        return await daemon.ended.addTimeout(LIMIT, reactor)

    def note(self) -> Note:
        """Where the daemon is."""
        note = read_note(paths.daemon_note())
        assert note is not None
        return note

    async def log_in(self, password: str | None = None, user: str = "") -> session.Session:
        """A session with the daemon, by its token."""
        connection = await session.connect(reactor, Local(self.note()))
        self.addCleanup(lambda: defer.ensureDeferred(connection.close()))
        if password is None:
            password = paths.token().read_text().strip()
        return await connection.login(user, password)

    async def spin_up(self, here: session.Session, **wish: Any) -> messages.Engine:
        """An engine in the environment that runs the tests."""
        outcome = await here.spin_up(messages.SpinUp(environment=sys.prefix, **wish))
        assert outcome.engine is not None, outcome
        return outcome.engine

    def processes(self) -> Iterator[psutil.Process]:
        """Every process that was started in the test's folders."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.top) in process.environ().get("XDG_STATE_HOME", "") and process.status() != "zombie":
                    yield process

    def named(self, word: str) -> list[psutil.Process]:
        """Those whose command line has a word."""
        found = []
        for process in self.processes():
            # It may end while it is looked at.
            with contextlib.suppress(psutil.Error):
                if any(word in part for part in process.cmdline()):
                    found.append(process)
        return found

    @defer.inlineCallbacks
    def nothing_is_left(self) -> Any:
        """Engines that a test has left are ended by it; what sksd itself leaves is a failure."""
        for name in ("sksd.proxy", "sksd.keeper"):
            if self.named(name):
                yield defer.ensureDeferred(until(lambda name=name: not self.named(name), f"{name} ends", 15))
        left = []
        for process in list(self.processes()):
            with contextlib.suppress(psutil.Error):
                left.append(" ".join(process.cmdline()))
                process.kill()
        sockets = [str(path) for path in self.top.rglob("*") if path.is_socket()]
        records = [str(path) for path in self.top.glob("s/sksd/engines/*")]
        self.assertEqual((left, sockets, records), ([], [], []))
