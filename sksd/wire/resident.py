"""What a process is that lives on a UNIX socket of its user: the proxy and the keeper.

One a user, held by a lock. Each connection begins with a line that says which protocol follows, as ALPN does on the
daemon's port. The process ends when nobody is connected any more and nothing in it goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from twisted.internet import error, protocol
from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure
from zope.interface import implementer

from sksd import paths
from sksd.errors import CannotWrite, ProxyFailed, SksdError

log = Logger()

#: Seconds without anything to do after which the process ends; one that was just started has longer.
LINGER: Final = 0.5
FIRST_LINGER: Final = 20.0
#: Seconds that a process which is starting waits for one that is ending.
LOCK_LIMIT: Final = 5.0

#: Bytes of a prologue.
_LONGEST: Final = 4096

#: Makes what speaks the protocol of one connection; gets the transport's own Protocol.
Build = Callable[["Entrance"], protocol.Protocol]


class Resident:
    """`entrances`: for each first line what builds the protocol behind it. A line that begins with `prologue` may
    come before: `Entrance.prologue` has the rest of it. `busy` says whether something goes on that needs the process
    though nobody is connected; call `rest` whenever that may have ended."""

    def __init__(
        self, reactor: Any, entrances: Mapping[bytes, Build], busy: Callable[[], bool], linger: float = LINGER,
        prologue: bytes = b"",
    ) -> None:  # fmt: skip
        self.prologue = prologue
        self.connections = 0
        self._linger = linger
        self.entrances = entrances
        self._reactor = reactor
        self._busy = busy
        self._leaving = reactor.callLater(FIRST_LINGER, self._leave)

    def rest(self) -> None:
        """Something has ended: with nothing left, so does the process, soon."""
        if self._leaving is not None and self._leaving.active():
            self._leaving.cancel()
        self._leaving = None
        if not self.connections and not self._busy():
            self._leaving = self._reactor.callLater(self._linger, self._leave)

    def _leave(self) -> None:
        self._leaving = None
        if not self.connections and not self._busy():
            log.info("nobody is left: the process ends")
            self._reactor.stop()


@implementer(IFileDescriptorReceiver)
class Entrance(protocol.Protocol):
    """One connection."""

    transport: Any

    def __init__(self, resident: Resident) -> None:
        self._resident = resident
        self._said = b""
        self.prologue = ""
        self._descriptors: list[int] = []
        self._inner: protocol.Protocol | None = None

    def connectionMade(self) -> None:
        """Counts."""
        self._resident.connections += 1

    def dataReceived(self, data: bytes) -> None:
        """Reads the line, then hands on."""
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._said += data
        prologue = self._resident.prologue
        if prologue and self._said.startswith(prologue):
            line, end, rest = self._said.partition(b"\n")
            if not end:
                self._bounded(_LONGEST)
                return
            self.prologue, self._said = line.removeprefix(prologue).decode(), rest
        for preamble, build in self._resident.entrances.items():
            if self._said.startswith(preamble):
                self.become(build(self), self._said[len(preamble) :])
                return
        self._bounded(max(map(len, (prologue, *self._resident.entrances))))

    def _bounded(self, most: int) -> None:
        if len(self._said) >= most:
            self.transport.abortConnection()

    def become(self, inner: protocol.Protocol, rest: bytes) -> None:
        """`inner` speaks on this connection from now on; `rest` has arrived already."""
        self._inner, self._said = inner, b""
        inner.makeConnection(self.transport)
        if rest:
            inner.dataReceived(rest)

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """A descriptor came along, before the bytes that it came with."""
        self._descriptors.append(descriptor)

    def take_descriptor(self) -> int:
        """The descriptor that came; -1 where none has. The caller closes it."""
        return self._descriptors.pop() if self._descriptors else -1

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Counts."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        if self._inner is not None:
            self._inner.connectionLost(reason)
        self._resident.connections -= 1
        self._resident.rest()


def run(path: Path, begin: Callable[[Any], Resident], end: Callable[[], None]) -> None:
    """The whole life of the process: listens at `path` with what `begin(reactor)` answers, until nobody needs it.

    Says {"ready": true} or {"error": sentence} on stdout, for whoever has started it, and then lets go of stdout.
    `end` is called before the reactor stops. The reactor is installed by now.
    """
    from twisted.internet import reactor

    running: Any = reactor
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    try:
        paths.private(paths.runtime())
        paths.private(paths.state())
        held = lock(path.with_suffix(".lock"))
        # What a guest has left may have been taken away until now.
        paths.private(paths.state())
        resident = begin(running)
        path.unlink(missing_ok=True)
        factory = protocol.Factory.forProtocol(lambda: Entrance(resident))
        factory.noisy = False
        running.listenUNIX(str(path), factory, mode=0o600)
    except (SksdError, OSError, error.CannotListenError) as failed:
        _answer({"error": str(failed)})
        raise SystemExit(1) from None
    running.callWhenRunning(_answer, {"ready": True})
    running.addSystemEventTrigger("before", "shutdown", end)
    running.run()
    path.unlink(missing_ok=True)
    os.close(held)


def _answer(said: dict[str, Any]) -> None:
    """Tell the starter how the start went, then let go of its pipe: the process outlives it."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(said).encode() + b"\n")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


def lock(path: Path) -> int:
    """The descriptor that holds the lock of a resident process. Raises ProxyFailed, CannotWrite."""
    end = time.monotonic() + LOCK_LIMIT
    try:
        while True:
            held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who held it may have removed the file.
                if os.path.samestat(os.fstat(held), os.stat(path)):
                    return held
            os.close(held)
            # One that is just ending still holds it, for a moment.
            if time.monotonic() > end:
                raise ProxyFailed(user="this user", problem="another one holds its lock")
            time.sleep(0.02)
            paths.private(path.parent)
    except OSError as failed:
        raise CannotWrite(path=str(path), problem=failed.strerror or str(failed)) from None
