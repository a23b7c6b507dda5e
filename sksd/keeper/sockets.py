"""The keeper's connections to the sockets of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet import defer
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IPushProducer, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sksd.errors import ZmtpProtocol
from sksd.link import zmtp

log = Logger()

#: Seconds between attempts to connect to a socket that the kernel has not made yet, or makes anew.
RETRY: Final = 0.05


def endpoint(reactor: Any, connection: Mapping[str, str | int], channel: str) -> IStreamClientEndpoint:
    """Where a channel of a Jupyter connection file is."""
    ip, port = str(connection["ip"]), int(connection[f"{channel}_port"])
    if connection["transport"] == "ipc":
        found: IStreamClientEndpoint = UNIXClientEndpoint(reactor, f"{ip}-{port}", timeout=5)
    else:
        found = TCP4ClientEndpoint(reactor, ip, port, timeout=5)
    return found


class KernelSocket:
    """A ZeroMQ socket with one connection, to `channel` of the kernel with the connection info `connection`.

    It connects, and connects again whenever the connection is lost, for as long as `expects()` says that there is a
    kernel, or will be. `received(piece)` gets raw messages; `ready()` is called with
    each connection that is made, `lost()` when one that was made is gone, with it half a message; `room()` when it
    takes bytes again after it did not.
    """

    def __init__(
        self,
        reactor: Any,
        connection: Mapping[str, str | int],
        channel: str,
        socket_type: str,
        expects: Callable[[], bool],
        received: Callable[[zmtp.Piece], None],
        *,
        identity: bytes = b"",
        ready: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
        room: Callable[[], None] = lambda: None,
    ) -> None:
        self.ready = ready
        self.lost = lost
        self.room = room
        self.received = received
        self._reactor = reactor
        self._endpoint = endpoint(reactor, connection, channel)
        self._expects = expects
        self._peer = lambda: zmtp.Peer(socket_type, identity=identity)
        self._factory = Factory.forProtocol(lambda: _Connection(self, self._peer()))
        self._factory.noisy = False
        self._connection: _Connection | None = None
        self._retry: Any = None
        self._connecting: defer.Deferred[Any] | None = None
        self._closed = False
        self._reading = True
        self._silent: list[defer.Deferred[None]] = []
        self._try()

    @property
    def has_room(self) -> bool:
        """There is a connection, and it takes bytes now."""
        return self._connection is not None and self._connection.ready and not self._connection.full

    def write(self, data: zmtp.Bytes) -> None:
        """Whole raw messages; only while `has_room`."""
        assert self._connection is not None
        self._connection.transport.write(bytes(data))

    def read(self, reading: bool) -> None:
        """Read what the kernel says, or leave it."""
        self._reading = reading
        if self._connection is not None:
            self._connection.read(reading)

    def when_silent(self) -> defer.Deferred[None]:
        """Fires once there is no connection: the kernel has closed its end, and all that it had said was read."""
        silent: defer.Deferred[None] = defer.Deferred()
        if self._connection is None:
            silent.callback(None)
        else:
            self._silent.append(silent)
        return silent

    def close(self) -> None:
        """For good; `lost` is not called."""
        self._closed = True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.transport.abortConnection()

    def _try(self) -> None:
        if not self._closed:
            self._connecting = self._endpoint.connect(self._factory)
            self._connecting.addErrback(self._again)

    def _again(self, _: Failure | None = None) -> None:
        self._connecting = None
        if not self._closed and self._expects():
            self._retry = self._reactor.callLater(RETRY, self._try)

    def connected(self, connection: _Connection) -> None:
        """Called by the connection when it is made."""
        if self._closed:
            connection.transport.abortConnection()
            return
        self._connection = connection
        connection.read(self._reading)

    def disconnected(self) -> None:
        """Called by the connection when it is gone."""
        was_ready = self._connection is not None and self._connection.ready
        self._connection = None
        if was_ready and not self._closed:
            self.lost()
        silent, self._silent = self._silent, []
        for each in silent:
            each.callback(None)
        self._again()


@implementer(IPushProducer)
class _Connection(Protocol):
    transport: Any

    def __init__(self, owner: KernelSocket, peer: zmtp.Peer) -> None:
        self.full = False
        self._owner = owner
        self._peer = peer

    @property
    def ready(self) -> bool:
        return self._peer.ready

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        self.transport.write(self._peer.greeting())
        self._owner.connected(self)

    def dataReceived(self, data: bytes) -> None:
        try:
            events = self._peer.feed(data)
        except ZmtpProtocol as error:
            log.warn("a kernel speaks no ZMTP: {error}", error=str(error))
            self.transport.abortConnection()
            return
        for event in events:
            match event:
                case zmtp.Piece():
                    self._owner.received(event)
                case zmtp.Send(reply):
                    self.transport.write(reply)
                case zmtp.Ready():
                    self._owner.ready()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._owner.disconnected()

    def read(self, reading: bool) -> None:
        if reading:
            self.transport.resumeProducing()
        else:
            self.transport.pauseProducing()

    def pauseProducing(self) -> None:
        self.full = True

    def resumeProducing(self) -> None:
        self.full = False
        if self._peer.ready:
            self._owner.room()

    def stopProducing(self) -> None:
        pass
