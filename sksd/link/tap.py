"""One local connection of a stream: a front end's at the relay, the engine's at the proxy."""

from __future__ import annotations

import socket
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from sksd.link.chunks import Chunks, Piece
from sksd.link.limits import PAYLOAD

if TYPE_CHECKING:
    from sksd.link.link import Keep, Link

_PID: Final = Struct("i")


@implementer(IPushProducer)
class Tap(Protocol):
    """Carries bytes between a local socket and a stream of `link`.

    It exists from the moment the stream does: what arrives before the socket is connected waits here,
    within the stream's window. As the producer of its own transport it learns when that has room; only what
    the transport has taken while it had room is reported as drained.
    """

    #: A TCP or UNIX transport of Twisted; None until there is one.
    transport: Any

    def __init__(self, link: Link, stream: int) -> None:
        self._link = link
        self.stream = stream
        self._held = Chunks()
        self._full = True
        self._ending = False
        self._closing = False
        self._lost = False
        self._reading = True
        #: Called once when there is no local socket any more.
        self.on_lost: Callable[[], None] | None = None

    # -- the local socket --------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """The local socket is connected."""
        transport = self.transport
        if self._lost:
            transport.abortConnection()
            return
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        if not self._reading:
            transport.pauseProducing()
        self.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """The front end or the engine says something."""
        self._link.local_data(self.stream, data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The local socket is closed, or will never be connected."""
        if not self._lost:
            self._lost = True
            self._held.clear()
            if self.on_lost is not None:
                self.on_lost()
            self._link.local_closed(self.stream)

    # -- the transport's producer ------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The transport has enough."""
        self._full = True

    def resumeProducing(self) -> None:
        """The transport has room again."""
        self._full = False
        held = self._held
        drained = 0
        while held.size and not self._full:
            pieces: list[Piece] = []
            drained += held.take(2 * PAYLOAD, pieces)
            self.transport.write(b"".join(pieces))
        if drained:
            self._written(drained)
        if self._ending and not held.size:
            self._close()

    def stopProducing(self) -> None:
        """The connection is being lost; connectionLost tells the rest."""

    # -- what the link says ------------------------------------------------------------------------

    def deliver(self, data: bytes) -> None:
        """Bytes for the local end."""
        if self._full or self._held.size:
            self._held.append(data)
        else:
            self.transport.write(data)
            self._written(len(data))

    def read(self, reading: bool) -> None:
        """Read the local socket, or leave it."""
        self._reading = reading
        if self._connected():
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def taken(self, size: int) -> None:
        """Nothing to do: what was read is forgotten as soon as the link has it."""

    def handed(self, total: int) -> None:
        """Nothing to do: only the end that opens streams is started again."""

    def finish(self) -> None:
        """Close the local end once it has taken everything."""
        self._ending = True
        if self._connected():
            if not self._held.size:
                self._close()
        elif not self._held.size:
            # Nothing waits for the connection that is still being made.
            self.connectionLost()

    def abort(self) -> None:
        """Close the local end now."""
        self._held.clear()
        if self._connected():
            self.transport.abortConnection()
        else:
            self.connectionLost()

    @property
    def lost(self) -> bool:
        """There is no local socket any more, and there will be none."""
        return self._lost

    def _written(self, size: int) -> None:
        """The transport has taken `size` bytes, into its own buffer at least."""
        self._link.local_drained(self.stream, size)

    def _connected(self) -> bool:
        return self.transport is not None and not self._lost

    def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        transport = self.transport
        # With a producer the transport would wait for it to say that it is done.
        transport.unregisterProducer()
        transport.loseConnection()


class KeptTap(Tap):
    """A front end's connection at a relay that can be killed and started again: `keep` is told what was taken from
    the front end before it goes anywhere, and how many bytes the system has taken for it, at once."""

    def __init__(self, link: Link, keep: Keep, channel: str) -> None:
        super().__init__(link, 0)
        self._keep = keep
        self._channel = channel

    def connectionMade(self) -> None:
        """It is connected; only now it is known who that is."""
        stream = self._link.open_kept(self, self._channel, _peer_process(self.transport))
        if stream is None:
            self._lost = True
            self.transport.abortConnection()
            return
        self.stream = stream
        self._count_writes()
        super().connectionMade()
        # OPEN goes out.
        self._link.local_data(stream, b"")

    def _count_writes(self) -> None:
        """Twisted's own count is of what its buffer has taken, which is lost with the process."""
        transport, stream, handed = self.transport, self.stream, self._keep.handed
        write = transport.writeSomeData

        def write_and_count(data: bytes) -> int | Exception:
            # Nothing between these two: killed there, what was sent would be sent again.
            size: int | Exception = write(data)
            if isinstance(size, int) and size > 0:
                handed(stream, size)
                self._link.local_drained(stream, size)
            return size

        transport.writeSomeData = write_and_count

    def dataReceived(self, data: bytes) -> None:
        """The front end says something."""
        self._keep.took(self.stream, data)
        super().dataReceived(data)

    def _written(self, size: int) -> None:
        """Counted when the system takes it."""


def _peer_process(transport: Any) -> int:
    """The process at the other end of a UNIX socket; 0 where the system does not tell."""
    wanted = getattr(socket, "SO_PEERCRED", None)
    if wanted is None or transport.socket.family != socket.AF_UNIX:
        return 0
    (pid,) = _PID.unpack_from(transport.socket.getsockopt(socket.SOL_SOCKET, wanted, 12))
    return int(pid)
