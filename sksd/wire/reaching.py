"""Reaching a resident process (sksd.wire.resident) from outside: starting it where none answers, Perspective Broker
over its UNIX socket, and its root for as long as it is needed. Used by the daemon for the proxy, and by the proxy for
the keeper."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from twisted.internet import defer, error, protocol, task
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.spread import pb

from sksd import paths
from sksd.errors import CannotWrite, ProxyFailed, ProxyLost, SksdError
from sksd.wire import messages
from sksd.wire.broker import BrokerFactory, LimitedBroker, Remote
from sksd.wire.calls import Caller
from sksd.wire.names import PREAMBLE_PB

log = Logger()

M = TypeVar("M", bound=msgspec.Struct)

#: Seconds a process has from its start until it listens.
START_TIMEOUT: Final = 20.0

#: Seconds a process has to answer its first call.
FIRST_CALL: Final = 15.0
#: Seconds before each attempt to have a process again for engines whose own was lost.
AGAIN: Final = (0.0, 0.5, 2.0, 10.0)

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


class _Listener(Remote):
    def __init__(self, told: Callable[[messages.Event], None]) -> None:
        self._told = told

    async def remote_event(self, request: dict[str, Any]) -> messages.Nothing:
        self._told(messages.read(messages.Event, request))
        return messages.Nothing()


class Reached:
    """The root of `user`'s resident process: reached when first needed, told the settings, listened to, and reached
    again when it was lost. `what` begins the problem when it cannot be had.

    A subclass says where it is (`endpoint`), and does what its answers and events lead to.
    """

    def __init__(self, reactor: Any, user: str, settings: messages.Settings, what: str = "") -> None:
        self.user = user
        self._reactor = reactor
        self._settings = settings
        self._what = what
        self._broker: Any = None
        self._root: pb.RemoteReference | None = None
        self._reaching: list[defer.Deferred[None]] | None = None
        self._stopping = False
        # One for all calls of `settings`, so that no event is told twice.
        self._listener = _Listener(self._told)
        self._caller = Caller(reactor, "the host", gone=ProxyLost, user=user)

    async def endpoint(self) -> IStreamClientEndpoint:
        """Its socket; it runs when this returns."""
        raise NotImplementedError

    def _greeted(self, info: messages.ProxyInfo) -> None:
        """What it said to the settings."""
        raise NotImplementedError

    def _told(self, event: messages.Event) -> None:
        """It tells of something."""
        raise NotImplementedError

    def _gone(self) -> bool:
        """Its connection is lost; whether another is needed now."""
        raise NotImplementedError

    async def call(
        self,
        name: str,
        request: msgspec.Struct,
        answer: type[M],
        *references: pb.Referenceable | None,
        timeout: float = 30.0,
    ) -> M:
        """A call of the root, which is reached (and its process started) first if need be.

        Raises what it raised, ProxyFailed when it cannot be had, ProxyLost when it ended meanwhile.
        """
        root = await self.reach()
        return await self._caller.call(root, name, request, answer, *references, timeout=timeout)

    async def reach(self) -> pb.RemoteReference:
        """The root; callers that come while it is being reached share one attempt."""
        if self._root is not None:
            return self._root
        if self._reaching is not None:
            turn: defer.Deferred[None] = defer.Deferred()
            self._reaching.append(turn)
            await turn
            return await self.reach()
        self._reaching = []
        try:
            return await self._reach()
        finally:
            waiting, self._reaching = self._reaching, None
            for turn in waiting:
                turn.callback(None)

    async def _reach(self) -> pb.RemoteReference:
        factory = Connecting()
        connected: Any = None
        try:
            connected = await (await self.endpoint()).connect(factory)
            broker = await factory.ready.addTimeout(FIRST_CALL, self._reactor)
            root: pb.RemoteReference = broker.remoteForName("root")  # type: ignore[no-untyped-call]
            info = await self._greet(root)
        except BaseException as error:
            # One that does not answer, or is of a version that refuses us: each attempt would leave one behind.
            if connected is not None:
                connected.transport.abortConnection()
            if isinstance(error, SksdError) or not isinstance(error, Exception):
                raise
            late = isinstance(error, defer.TimeoutError)
            problem = "it does not answer" if late else str(error) or type(error).__name__
            raise ProxyFailed(user=self.user, problem=self._what + problem) from None
        broker.notifyOnDisconnect(self._lost)  # type: ignore[no-untyped-call]
        self._broker, self._root = broker, root
        self._greeted(info)
        return root

    async def _greet(self, root: pb.RemoteReference) -> messages.ProxyInfo:
        return await self._caller.call(
            root, "settings", self._settings, messages.ProxyInfo, self._listener, timeout=FIRST_CALL
        )

    def disconnect(self) -> None:
        """Called when this process ends; the other goes on while it is needed."""
        self._stopping = True
        if self._root is not None:
            self._broker.transport.loseConnection()

    def _lost(self) -> None:
        self._root = None
        if self._gone() and not self._stopping:
            defer.ensureDeferred(self._reach_again())

    async def _reach_again(self) -> None:
        # The socket of one that was killed may still answer while the machine takes it down.
        for pause in AGAIN:
            await task.deferLater(self._reactor, pause)
            if self._stopping or self._root is not None:
                return
            try:
                await self.reach()
                return
            except SksdError as error:
                log.error("{why}", why=str(error))
