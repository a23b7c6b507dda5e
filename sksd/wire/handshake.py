"""Starting a protocol once TLS is agreed: both ends need it, and both must know when it never is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import interfaces, protocol
from twisted.internet.address import UNIXAddress
from twisted.python.failure import Failure
from zope.interface import implementer

#: Label and length of a channel's binding (RFC 9266, section 2); its context is empty.
EXPORTER_LABEL: Final = b"EXPORTER-Channel-Binding"
EXPORTER_LENGTH: Final = 32
#: A peer that is gone without a word is noticed within 30 s, silent or not (tcp(7); the last is in milliseconds).
_LIVENESS: Final = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))
    if hasattr(socket, name)
}


def socket_of(transport: Any) -> socket.socket | None:
    """The socket below a transport, through TLS; None for one without, or that is not TCP."""
    while not hasattr(transport, "socket") and getattr(transport, "transport", None) is not None:
        transport = transport.transport
    found: socket.socket | None = getattr(transport, "socket", None)
    return found if found is not None and found.family in (socket.AF_INET, socket.AF_INET6) else None


def channel_binding(transport: Any) -> bytes:
    """What only the two ends of this TLS connection can know (RFC 9266, tls-exporter). For the method `ssh-key`."""
    bound: bytes = transport.getHandle().export_keying_material(EXPORTER_LABEL, EXPORTER_LENGTH)
    return bound


@implementer(interfaces.IHandshakeListener)
class AfterHandshake(protocol.Protocol):
    """Wrapped directly by TLS. `choose` is called with the negotiated ALPN name (None: none was offered) when the
    handshake is over, and answers with the protocol to go on with, or None to hang up. `lost` is called when the
    connection ends before that; without this, whoever waits for a broker would wait for ever.
    """

    transport: Any

    def __init__(
        self,
        choose: Callable[[bytes | None], protocol.Protocol | None],
        lost: Callable[[Failure], None],
    ) -> None:
        self._choose = choose
        self._lost = lost
        self._inner: protocol.Protocol | None = None

    def connectionMade(self) -> None:
        """Called when the connection is there; TLS is not yet."""
        if isinstance(self.transport.getPeer(), UNIXAddress):
            # It has neither delays nor peers that vanish without a word.
            return
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        leg = socket_of(self.transport)
        if leg is not None:
            for option, value in _LIVENESS.items():
                leg.setsockopt(socket.IPPROTO_TCP, option, value)

    def handshakeCompleted(self) -> None:
        """Called by TLS."""
        inner = self._choose(self.transport.negotiatedProtocol)
        if inner is None:
            self.transport.loseConnection()
            return
        self._inner = inner
        inner.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        """Hands the plain bytes on."""
        if self._inner is not None:
            self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Tells the protocol, or whoever waits for one."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
        else:
            self._lost(reason)
