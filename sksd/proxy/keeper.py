"""The keeper of this user, as the proxy sees it: started when the proxy is, reached again when it was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer, endpoints
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from sksd import paths
from sksd.errors import SksdError
from sksd.wire import messages, reaching
from sksd.wire.names import DEAD, PREAMBLE_HANDOVER
from sksd.wire.resident import Entrance

log = Logger()


class Keeper(reaching.Reached):
    """`environ`: what it inherits. `told` is called with each of its Events; what it is told first is replaced by
    `configure`."""

    def __init__(self, reactor: Any, environ: dict[str, str], told: Callable[[messages.Event], None]) -> None:
        super().__init__(reactor, "this user", messages.Settings(), "its keeper: ")
        #: The engines that live, by their ids, as far as the keeper has told.
        self.living: dict[str, messages.Engine] = {}
        self._environ = environ
        self._heard = told

    async def configure(self, settings: messages.Settings) -> None:
        """What a daemon's configuration says."""
        self._settings = settings
        if self._root is not None:
            self._greeted(await self._greet(self._root))

    async def endpoint(self) -> endpoints.UNIXClientEndpoint:
        """Its socket; a keeper is started where none answers."""
        path = paths.keeper_socket()
        if not reaching.answers(path):
            await reaching.start(self._reactor, "sksd.keeper", self.user, self._environ)
        return endpoints.UNIXClientEndpoint(self._reactor, str(path), timeout=10)

    def _greeted(self, info: messages.ProxyInfo) -> None:
        self.living = {engine.id: engine for engine in info.engines if engine.state != DEAD}

    def running_in(self, prefix: str) -> list[str]:
        """Ids of the living engines of one prefix."""
        return [engine.id for engine in self.living.values() if engine.prefix == prefix]

    def _told(self, event: messages.Event) -> None:
        if event.engine is not None:
            self.living.pop(event.engine.id, None)
            if event.engine.state != DEAD:
                self.living[event.engine.id] = event.engine
        self._heard(event)

    def _gone(self) -> bool:
        if not self._stopping:
            log.info("the keeper is gone")
        # A new one adopts the engines.
        return bool(self.living)


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
