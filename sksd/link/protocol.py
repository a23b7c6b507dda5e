"""Binds a `Link` to a Twisted transport."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from sksd.link.hello import Hello
from sksd.link.limits import WRITE
from sksd.link.link import Link
from sksd.wire.handshake import socket_of


@implementer(IPushProducer)
class LinkConnection(Protocol):
    """One connection of `link`: over TLS at the relay, on a UNIX socket at the engine's end.

    With `hello` it is the accepting end's, after the HELLO with which the client asks to go on.
    """

    #: Any stream transport of Twisted.
    transport: Any

    def __init__(self, link: Link, hello: Hello | None = None) -> None:
        self.link = link
        self._hello = hello

    def connectionMade(self) -> None:
        """The transport is there: HELLO goes out, or is answered."""
        tune(self.transport)
        self.transport.registerProducer(self, True)
        if self._hello is None:
            self.link.connected(self.transport)
        else:
            self.link.resumed(self.transport, self._hello)

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the other end."""
        self.link.received(self.transport, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The transport is gone."""
        closed = reason.check(ConnectionDone) is not None
        problem = "the connection was closed" if closed else "the connection broke off"
        self.link.disconnected(self.transport, problem)

    def pauseProducing(self) -> None:
        """The transport has enough."""
        self.link.room(self.transport, False)

    def resumeProducing(self) -> None:
        """The transport can take more."""
        self.link.room(self.transport, True)

    def stopProducing(self) -> None:
        """The connection is being lost; connectionLost tells the rest."""


def tune(transport: Any) -> None:
    """Set a transport of a link for short waits: no Nagle, and little that is not on its way in the
    system's buffer.

    Called on every leg, the daemon's two too: what lies in a buffer delays the small messages behind it.
    """
    leg = socket_of(transport)
    if leg is None:
        return
    leg.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if lowat is not None:
        leg.setsockopt(socket.IPPROTO_TCP, lowat, WRITE)
