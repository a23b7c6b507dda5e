"""Reaching a resident process (sksd.wire.resident) from outside: starting it where none answers, and Perspective
Broker over its UNIX socket. Used by the daemon for the proxy, and by the proxy for the keeper."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

from twisted.internet import defer, error, protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sksd import paths
from sksd.errors import CannotWrite, ProxyFailed
from sksd.wire.broker import BrokerFactory, LimitedBroker
from sksd.wire.names import PREAMBLE_PB

log = Logger()

#: Seconds a process has from its start until it listens.
START_TIMEOUT: Final = 20.0

#: Never handed on to a user's processes.
_OWN_VARIABLES: Final = ("SKSD_PASSWORD", "SKSD_CONF", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID")


class Starting(protocol.ProcessProtocol):
    """The starter's end of a resident process.

    `ready` fires when the process says on its stdout that it listens (a JSON line, {"ready": true} or {"error":
    sentence}), and fails with ProxyFailed when it ends before. The process outlives its starter, so nothing else goes
    over the pipe.
    """

    def __init__(self, user: str, log_path: str) -> None:
        self.ready: defer.Deferred[None] = defer.Deferred()
        self._user = user
        self._log_path = log_path
        self._said = b""

    def outReceived(self, data: bytes) -> None:
        """Called with what the process says while it starts."""
        self._said = (self._said + data)[:4096]
        if self.ready.called or b"\n" not in self._said:
            return
        try:
            said = json.loads(self._said.partition(b"\n")[0])
            problem = None if said.get("ready") else str(said["error"])
        except (ValueError, KeyError, AttributeError):
            problem = f"it said something strange (see {self._log_path})"
        if problem is None:
            self.ready.callback(None)
        else:
            self.ready.errback(ProxyFailed(user=self._user, problem=problem))

    def processEnded(self, reason: Failure) -> None:
        """Called once the process has ended and was waited for."""
        how = describe_end(reason)
        log.info("a process of {user} ended: {how}", user=self._user, how=how)
        if not self.ready.called:
            problem = f"it ended with {how} (see {self._log_path})"
            self.ready.errback(ProxyFailed(user=self._user, problem=problem))


def describe_end(reason: Failure) -> str:
    """ "exit code 1" or "signal 9", from what Twisted tells of an ended process."""
    ended: Any = reason.value
    if isinstance(ended, error.ProcessTerminated) and ended.signal:
        return f"signal {ended.signal}"
    return f"exit code {ended.exitCode}"


async def start(reactor: Any, module: str, user: str, environ: dict[str, str]) -> None:
    """Start `python -m module` as this user; returns when it listens. Its stderr goes into state/NAME.log, NAME being
    the last part of `module`. Raises ProxyFailed."""
    name = module.rpartition(".")[2]
    try:
        log_path, log_file = paths.open_log(name)
    except CannotWrite as failed:
        raise ProxyFailed(user=user, problem=str(failed).rstrip(".")) from None
    process = Starting(user, str(log_path))
    with open(os.devnull, "rb") as nothing, os.fdopen(log_file, "ab") as log_end:
        reactor.spawnProcess(
            process,
            sys.executable,
            # -P: the working directory is the person's home, whose files must not be imported.
            [sys.executable, "-P", "-m", module],
            env={key: value for key, value in environ.items() if key not in _OWN_VARIABLES},
            # Without a home there is still a process to say so.
            path=str(paths.home()) if paths.home().is_dir() else "/",
            childFDs={0: nothing.fileno(), 1: "r", 2: log_end.fileno()},
        )
    try:
        await process.ready.addTimeout(START_TIMEOUT, reactor)
    except defer.TimeoutError:
        with contextlib.suppress(error.ProcessExitedAlready):
            process.transport.signalProcess("KILL")  # type: ignore[union-attr]
        raise ProxyFailed(user=user, problem=f"it did not listen within {START_TIMEOUT:.0f} s") from None


def answers(path: Path) -> bool:
    """Whether a process listens at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A process that hangs takes nobody from its queue: waiting for it would hang the caller, too.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


class Connecting(protocol.Factory):
    """Speaks the preamble, then Perspective Broker; `ready` fires with the broker."""

    noisy = False

    def __init__(self) -> None:
        self.ready: defer.Deferred[LimitedBroker] = defer.Deferred()
        self._brokers = BrokerFactory(on_ready=self._agreed)

    def _agreed(self, broker: LimitedBroker) -> None:
        self.ready.callback(broker)

    def buildProtocol(self, addr: Any) -> LimitedBroker:
        """Called once the socket is connected."""
        broker = self._brokers.build(True, trusted=True)
        made = broker.connectionMade

        def connection_made() -> None:
            broker.transport.write(PREAMBLE_PB)
            made()

        broker.connectionMade = connection_made  # type: ignore[method-assign]
        broker.notifyOnDisconnect(self._gone)  # type: ignore[no-untyped-call]
        return broker

    def _gone(self) -> None:
        if not self.ready.called:
            self.ready.errback(ConnectionError("it closed the connection"))
