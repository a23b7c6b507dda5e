"""The one port: TLS, then Perspective Broker or a link as ALPN says; deadlines, budgets and caps for strangers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from attrs import Factory, define
from twisted.internet import interfaces, protocol
from twisted.logger import Logger
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure

from sksd.errors import TooManyConnections
from sksd.server.throttle import group
from sksd.wire.handshake import AfterHandshake
from sksd.wire.names import ALPN_LINK, ALPN_PB

log = Logger()

#: Seconds for the TLS handshake, and from there to a good login or ticket.
HANDSHAKE_DEADLINE: Final = 10.0
LOGIN_DEADLINE: Final = 30.0
#: Connections in all, those that have not logged in, and of these from one address (throttle.group).
CONNECTIONS: Final = 2048
STRANGERS: Final = 256
STRANGERS_PER_ADDRESS: Final = 64
#: Connections of one user who has logged in, his links counted: nobody shuts out the others.
CONNECTIONS_PER_USER: Final = 1024
#: Bytes a stranger may send, TLS and its padding counted, which a broker never sees.
STRANGER_BYTES: Final = 64 * 1024
#: Seconds in which an address is logged once for all its connections that are dropped for want of room.
QUIET: Final = 10.0


@define
class Connections:
    """Who is connected. When there is no room, the oldest stranger of the address that has most of them makes it, so
    that whoever floods the port hits himself first; who has logged in is never dropped."""

    clock: Any
    total: int = 0
    #: Strangers by address, the oldest first.
    strangers: dict[str, dict[Visit, None]] = Factory(dict)
    #: Connections that have logged in, by user.
    users: Counter[str] = Factory(Counter)
    _count: int = 0
    _said: dict[str, float] = Factory(dict)

    def room(self, address: str) -> bool:
        """Make room for one more from `address`; False when there is none to be had."""
        here = self.strangers.get(group(address), {})
        if len(here) >= STRANGERS_PER_ADDRESS:
            self._drop(here)
        elif self._count >= STRANGERS or (self._count and self.total >= CONNECTIONS):
            self._drop(max(self.strangers.values(), key=len))
        if self.total < CONNECTIONS:
            return True
        self.say(address, "hanging up on {address}: too many connections")
        return False

    def _drop(self, among: dict[Visit, None]) -> None:
        oldest = next(iter(among))
        self.say(oldest.address, "dropping a connection from {address}: too many that have not logged in")
        # Not counted from now on, although its end is told later.
        oldest.over()
        oldest.abort()

    def say(self, address: str, words: str) -> None:
        """One line, unless there was one about this address lately."""
        now = self.clock.seconds()
        self._said = {known: at for known, at in self._said.items() if now - at < QUIET}
        if group(address) not in self._said:
            self._said[group(address)] = now
            log.info(words, address=address)

    def enter(self, visit: Visit) -> None:
        """A stranger has come."""
        self.total += 1
        self._count += 1
        self.strangers.setdefault(group(visit.address), {})[visit] = None

    def join(self, user: str) -> None:
        """`user` has one more; raises TooManyConnections."""
        if self.users[user] >= CONNECTIONS_PER_USER:
            raise TooManyConnections(limit=CONNECTIONS_PER_USER)
        self.users[user] += 1

    def part(self, user: str) -> None:
        """`user` has one less."""
        self.users[user] -= 1
        if not self.users[user]:
            del self.users[user]

    def known(self, visit: Visit) -> None:
        """A stranger has logged in, or is about to leave."""
        here = self.strangers[group(visit.address)]
        del here[visit]
        if not here:
            del self.strangers[group(visit.address)]
        self._count -= 1


class Visit:
    """One connection, from its first byte to its end. `address` and `port` are the peer's, `peer` is the transport's
    address as it is."""

    def __init__(
        self, connections: Connections, address: str, port: int, peer: interfaces.IAddress | None = None
    ) -> None:
        self.address = address
        self.port = port
        self.peer = peer
        self._connections = connections
        self._deadline: Any = None
        self._budget: int | None = STRANGER_BYTES
        self._over = False
        self._user: str | None = None
        self.abort: Callable[[], None] = lambda: None
        connections.enter(self)
        self.within(HANDSHAKE_DEADLINE)

    def within(self, seconds: float) -> None:
        """The next step is due in `seconds`, or the connection is aborted."""
        self._cancel()
        if self._over:
            return
        self._deadline = self._connections.clock.callLater(seconds, self._late)

    def _late(self) -> None:
        self._connections.say(self.address, "dropping a connection from {address}: too slow")
        self.abort()

    def _cancel(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def spend(self, size: int) -> bool:
        """`size` bytes have arrived, TLS and all; False when a stranger sends too many, who is then aborted."""
        if self._budget is None:
            return True
        self._budget -= size
        if self._budget >= 0:
            return True
        self._connections.say(self.address, "dropping a connection from {address}: too much data before login")
        self.abort()
        return False

    def welcome(self, user: str) -> None:
        """`user` has logged in; raises TooManyConnections."""
        if not self._over:
            self._connections.join(user)
            self._user = user
            self._settled()

    def _settled(self) -> None:
        self._cancel()
        if self._budget is not None:
            self._budget = None
            self._connections.known(self)

    def over(self) -> None:
        """It has ended."""
        if not self._over:
            self._over = True
            self._settled()
            self._connections.total -= 1
            if self._user is not None:
                self._connections.part(self._user)


#: Builds the protocol that follows the handshake; calls `visit.welcome` when the peer is known.
Build = Callable[[Visit], protocol.Protocol]


class DoorFactory(protocol.Factory):
    """Builds what TLS wraps, one a connection; `broker` and `link` build the two protocols."""

    noisy = False

    def __init__(self, clock: Any, broker: Build, link: Build) -> None:
        self._connections = Connections(clock)
        self._builders = {None: broker, ALPN_PB: broker, ALPN_LINK: link}
        self._open: set[Any] = set()

    def buildProtocol(self, addr: interfaces.IAddress | None) -> protocol.Protocol | None:
        """Called by TLS; None hangs up."""
        address, port = str(getattr(addr, "host", "")), int(getattr(addr, "port", 0))
        if not self._connections.room(address):
            return None
        return _Visitor(self, Visit(self._connections, address, port, addr))

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
            # What a broker or a link has registered there, TLS would wait for.
            visitor.transport.unregisterProducer()
            visitor.transport.loseConnection()


class _CountedTLS(BufferingTLSTransport):
    """Counts a stranger's bytes before OpenSSL sees them."""

    def dataReceived(self, data: bytes) -> None:
        """Called with what comes from the network."""
        visitor: Any = self.wrappedProtocol
        if visitor.visit.spend(len(data)):
            super().dataReceived(data)


class TLSDoor(TLSMemoryBIOFactory):
    """What the port listens with: TLS around a `DoorFactory`.

    Twisted's own wraps the None of a full door, too: a traceback, and a connection that nobody counts or ends.
    """

    noisy = False
    protocol = _CountedTLS

    def buildProtocol(self, addr: interfaces.IAddress | None) -> Any:
        """Called by the port; None hangs up."""
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


class _Visitor(AfterHandshake):
    def __init__(self, door: DoorFactory, visit: Visit) -> None:
        super().__init__(lambda negotiated: door.build(negotiated, visit), lambda _: None)
        self._door = door
        self.visit = visit

    def connectionMade(self) -> None:
        super().connectionMade()
        self.visit.abort = self.transport.abortConnection
        self._door.opened(self)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        super().connectionLost(reason)
        self.visit.over()
        self._door.closed(self)
