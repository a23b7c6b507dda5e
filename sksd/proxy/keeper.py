"""The keeper of this user, as the proxy sees it: started when the proxy is, reached again when it was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from twisted.internet import defer, endpoints, task
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.spread import pb

from sksd import paths
from sksd.errors import ProxyFailed, ProxyLost, SksdError
from sksd.wire import messages, reaching
from sksd.wire.broker import Remote
from sksd.wire.calls import Caller
from sksd.wire.names import DEAD, PREAMBLE_HANDOVER
from sksd.wire.resident import Entrance

log = Logger()

#: Seconds a keeper has to answer its first call.
FIRST_CALL: Final = 15.0
#: Seconds before each attempt to have a keeper again for engines whose keeper was lost.
AGAIN: Final = (0.0, 0.5, 2.0, 10.0)

M = TypeVar("M", bound=msgspec.Struct)


class _Listener(Remote):
    def __init__(self, told: Callable[[messages.Event], None]) -> None:
        self._told = told

    async def remote_event(self, request: dict[str, Any]) -> messages.Nothing:
        self._told(messages.read(messages.Event, request))
        return messages.Nothing()


class Keeper:
    """`environ`: what it inherits. `told` is called with each of its Events; `settings` are what it is told first,
    replaced by `configure`."""

    def __init__(self, reactor: Any, environ: dict[str, str], told: Callable[[messages.Event], None]) -> None:
        #: The engines that live, by their ids, as far as the keeper has told.
        self.living: dict[str, messages.Engine] = {}
        self._reactor = reactor
        self._environ = environ
        self._heard = told
        self._settings = messages.Settings()
        self._root: pb.RemoteReference | None = None
        self._reaching: list[defer.Deferred[None]] | None = None
        self._stopping = False
        self._caller = Caller(reactor, "the host", gone=ProxyLost, user="this user")

    async def call(self, name: str, request: msgspec.Struct, answer: type[M], timeout: float = 30.0) -> M:
        """A call of the keeper's root, which is reached (and started) first if need be.

        Raises what the keeper raised, ProxyFailed when it cannot be had, ProxyLost when it ended meanwhile.
        """
        root = await self.reach()
        return await self._caller.call(root, name, request, answer, timeout=timeout)

    async def configure(self, settings: messages.Settings) -> None:
        """What a daemon's configuration says."""
        self._settings = settings
        if self._root is not None:
            await self._greet(self._root)

    async def reach(self) -> pb.RemoteReference:
        """The keeper's root; callers that come while it is being reached share one attempt."""
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

    async def endpoint(self) -> endpoints.UNIXClientEndpoint:
        """Its socket; a keeper is started where none answers."""
        path = paths.keeper_socket()
        if not reaching.answers(path):
            await reaching.start(self._reactor, "sksd.keeper", "this user", self._environ)
        return endpoints.UNIXClientEndpoint(self._reactor, str(path), timeout=10)

    async def _reach(self) -> pb.RemoteReference:
        factory = reaching.Connecting()
        connected: Any = None
        try:
            connected = await (await self.endpoint()).connect(factory)
            broker = await factory.ready.addTimeout(FIRST_CALL, self._reactor)
            root: pb.RemoteReference = broker.remoteForName("root")
            await self._greet(root)
        except BaseException as error:
            if connected is not None:
                connected.transport.abortConnection()
            if isinstance(error, SksdError) or not isinstance(error, Exception):
                raise
            problem = "it does not answer" if isinstance(error, defer.TimeoutError) else str(error)
            raise ProxyFailed(user="this user", problem=f"its keeper: {problem}") from None
        broker.notifyOnDisconnect(self._lost)
        self._broker, self._root = broker, root
        return root

    async def _greet(self, root: pb.RemoteReference) -> None:
        info = await self._caller.call(
            root, "settings", self._settings, messages.ProxyInfo, _Listener(self._told), timeout=FIRST_CALL
        )
        self.living = {engine.id: engine for engine in info.engines if engine.state != DEAD}

    def running_in(self, prefix: str) -> list[str]:
        """Ids of the living engines of one prefix."""
        return [engine.id for engine in self.living.values() if engine.prefix == prefix]

    def disconnect(self) -> None:
        """Called when the proxy ends."""
        self._stopping = True
        if self._root is not None:
            self._broker.transport.loseConnection()

    def _told(self, event: messages.Event) -> None:
        if event.engine is not None:
            self.living.pop(event.engine.id, None)
            if event.engine.state != DEAD:
                self.living[event.engine.id] = event.engine
        self._heard(event)

    def _lost(self) -> None:
        self._root = None
        if not self._stopping:
            log.info("the keeper is gone")
            if self.living:
                # A new one adopts the engines.
                defer.ensureDeferred(self._reach_again())

    async def _reach_again(self) -> None:
        for pause in AGAIN:
            await task.deferLater(self._reactor, pause)
            if self._stopping or self._root is not None:
                return
            try:
                await self.reach()
                return
            except SksdError as error:
                log.error("{why}", why=str(error))


class HandOver(Protocol):
    """A link's connection in the proxy: it goes to the keeper, as a descriptor, with what was read of it."""

    transport: Any

    def __init__(self, keeper: Keeper, entrance: Entrance) -> None:
        self._keeper = keeper
        self._entrance = entrance
        self._read = b""

    def connectionMade(self) -> None:
        """Nothing more is read here than has been."""
        self.transport.pauseProducing()
        defer.ensureDeferred(self._hand_over()).addErrback(lambda _: self.transport.abortConnection())

    def dataReceived(self, data: bytes) -> None:
        """Called once, before anything is handed over."""
        self._read += data

    async def _hand_over(self) -> None:
        try:
            factory = Factory.forProtocol(Protocol)
            factory.noisy = False
            # Where none runs, one is started, not one for each who comes.
            await self._keeper.reach()
            to: Any = await (await self._keeper.endpoint()).connect(factory)
        except SksdError as error:
            log.error("a link could not be handed over: {why}", why=str(error))
            raise
        to.transport.sendFileDescriptor(self.transport.fileno())
        to.transport.write(PREAMBLE_HANDOVER + self._read)
        to.transport.loseConnection()
        # Once it has left: the keeper has a descriptor of its own for the same connection.
        to.connectionLost = lambda _: self.transport.abortConnection()
