"""The one port: TLS, then Perspective Broker or a link as ALPN says; deadlines and caps for strangers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from attrs import Factory, define
from twisted.internet import interfaces, protocol
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from sksd.wire.handshake import AfterHandshake
from sksd.wire.names import ALPN_LINK, ALPN_PB

log = Logger()

#: Seconds for the TLS handshake, and from there to a good login or ticket.
HANDSHAKE_DEADLINE: Final = 10.0
LOGIN_DEADLINE: Final = 30.0
#: Connections in all, those that have not logged in, and of these from one address.
CONNECTIONS: Final = 2048
STRANGERS: Final = 256
STRANGERS_PER_ADDRESS: Final = 64


@define
class Connections:
    """Who is connected, counted."""

    clock: Any
    total: int = 0
    strangers: int = 0
    per_address: Counter[str] = Factory(Counter)

    def full(self, address: str) -> bool:
        """Whether there is no room for one more from `address`."""
        return (
            self.total >= CONNECTIONS
            or self.strangers >= STRANGERS
            or self.per_address[address] >= STRANGERS_PER_ADDRESS
        )


class Visit:
    """One connection, from its first byte to its end. `peer`: the transport's address."""

    def __init__(self, connections: Connections, address: str, peer: interfaces.IAddress | None = None) -> None:
        self.peer = peer
        self._connections = connections
        self._address = address
        self._deadline: Any = None
        self._stranger = True
        self.abort: Callable[[], None] = lambda: None
        connections.total += 1
        connections.strangers += 1
        connections.per_address[address] += 1
        self.within(HANDSHAKE_DEADLINE)

    def within(self, seconds: float) -> None:
        """The next step is due in `seconds`, or the connection is aborted."""
        self._cancel()
        self._deadline = self._connections.clock.callLater(seconds, self._late)

    def _late(self) -> None:
        log.info("dropping a connection from {address}: too slow", address=self._address)
        self.abort()

    def _cancel(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def welcome(self) -> None:
        """It has logged in."""
        self._cancel()
        if self._stranger:
            self._stranger = False
            self._connections.strangers -= 1
            self._connections.per_address[self._address] -= 1
            self._connections.per_address += Counter()  # drops the zeroes

    def over(self) -> None:
        """It has ended."""
        self.welcome()
        self._connections.total -= 1


class DoorFactory(protocol.Factory):
    """Builds what TLS wraps, one a connection.

    `broker(visit)` and `link(visit)` build the two protocols; they call `visit.welcome` when the peer is known.
    """

    noisy = False

    def __init__(
        self,
        clock: Any,
        broker: Callable[[Visit], protocol.Protocol],
        link: Callable[[Visit], protocol.Protocol],
    ) -> None:
        self._connections = Connections(clock)
        self._builders = {None: broker, ALPN_PB: broker, ALPN_LINK: link}
        self._open: set[Any] = set()

    def buildProtocol(self, addr: interfaces.IAddress | None) -> protocol.Protocol | None:
        """Called by TLS; None hangs up."""
        address = str(getattr(addr, "host", ""))
        if self._connections.full(address):
            log.info("hanging up on {address}: too many connections", address=address)
            return None
        return _Visitor(self, Visit(self._connections, address, addr))

    def build(self, negotiated: bytes | None, visit: Visit) -> protocol.Protocol | None:
        """The protocol that ALPN asked for."""
        builder = self._builders.get(negotiated)
        if builder is None:
            return None
        visit.within(LOGIN_DEADLINE)
        return builder(visit)

    def opened(self, visitor: Any) -> None:
        """A connection has begun."""
        self._open.add(visitor)

    def closed(self, visitor: Any) -> None:
        """A connection has ended."""
        self._open.discard(visitor)

    def close_all(self) -> None:
        """Called when the daemon stops."""
        for visitor in list(self._open):
            visitor.transport.loseConnection()


class TLSDoor(TLSMemoryBIOFactory):
    """What the port listens with: TLS around a `DoorFactory`.

    Twisted's own wraps the None of a full door, too: a traceback, and a connection that nobody counts or ends.
    """

    noisy = False

    def buildProtocol(self, addr: interfaces.IAddress | None) -> Any:
        """Called by the port; None hangs up."""
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


class _Visitor(AfterHandshake):
    def __init__(self, door: DoorFactory, visit: Visit) -> None:
        super().__init__(lambda negotiated: door.build(negotiated, visit), lambda _: None)
        self._door = door
        self._visit = visit

    def connectionMade(self) -> None:
        super().connectionMade()
        self._visit.abort = self.transport.abortConnection
        self._door.opened(self)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        super().connectionLost(reason)
        self._visit.over()
        self._door.closed(self)
