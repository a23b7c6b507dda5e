"""TLS on loopback: the daemon's context against the client's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from sksd.client.tls import Authorised, Creator, context
from sksd.client.trust import KnownHosts
from sksd.errors import CertificateChanged, CertificateRefused, CertificateUnknown, KnownHostsBroken, NotSksd
from sksd.server import certificate
from sksd.wire.fingerprint import fingerprint
from sksd.wire.names import ALPN_LINK, ALPN_PB

LIMIT = 10


@implementer(IHandshakeListener)
class End(Protocol):
    """One end: `shaken` fires with the ALPN name, `lost` when the connection is."""

    def __init__(self) -> None:
        self.shaken: Deferred[bytes | None] = Deferred()
        self.lost: Deferred[None] = Deferred()
        self.reason: Failure | None = None
        self.received = b""
        self.expected: Deferred[bytes] = Deferred()

    def handshakeCompleted(self) -> None:
        self.shaken.callback(self.transport.negotiatedProtocol)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if not self.expected.called:
            self.expected.callback(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reason = reason
        self.lost.callback(None)


class Server(Factory):
    """Keeps its connections. What a client sends before it trusts would be in `received`."""

    def __init__(self) -> None:
        self.ends: list[End] = []

    def buildProtocol(self, addr: object) -> End:
        end = End()
        self.ends.append(end)
        return end


class TLSTests(TestCase):
    """A listening port with the daemon's own certificate."""

    timeout = 30

    async def listen(self, options: Any) -> None:
        self.server = Server()
        endpoint = SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1")
        port = await endpoint.listen(self.server)
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port

    async def setUp(self) -> None:  # type: ignore[override]
        folder = Path(self.mktemp())
        self.identity = certificate.own(folder / "server")
        self.known = KnownHosts(folder / "client" / "known_hosts.json")
        await self.listen(certificate.context_factory(self.identity))

    async def connect(self, creator: Any) -> tuple[End, bytes | None]:
        """The client's end and the agreed ALPN name; raises what `explain` makes of a failure."""
        end = End()
        endpoint = wrapClientTLS(creator, TCP4ClientEndpoint(reactor, "127.0.0.1", self.port))
        await endpoint.connect(Factory.forProtocol(lambda: end))  # type: ignore[arg-type]
        ended: Deferred[Any] = Deferred()

        def shook(name: bytes | None) -> None:
            if not ended.called:
                ended.callback(name)

        def lost(_: None) -> None:
            if not ended.called:
                ended.errback(creator.explain(end.reason))

        end.shaken.addCallback(shook)
        end.lost.addCallback(lost)
        ended.addTimeout(LIMIT, reactor)
        name = await ended
        # A refusal in the last step of the handshake comes after handshakeCompleted.
        if getattr(creator, "problem", None):
            raise creator.problem
        return end, name

    def creator(self, alpn: bytes = ALPN_PB, **options: Any) -> Creator:
        return context("lab", alpn, known=self.known, **options)

    async def close(self, end: End) -> None:
        end.transport.loseConnection()  # type: ignore[union-attr]
        await end.lost.addTimeout(LIMIT, reactor)
        for other in self.server.ends:
            await other.lost.addTimeout(LIMIT, reactor)

    async def refused(self, creator: Any, kind: type[Exception]) -> Any:
        """The error, after it was made sure that nothing was remembered or received."""
        before = self.known.all()
        try:
            await self.connect(creator)
        except kind as error:
            found = error
        else:
            self.fail("accepted")
        for other in self.server.ends:
            await other.lost.addTimeout(LIMIT, reactor)
            self.assertEqual(other.received, b"")
        self.assertEqual(self.known.all(), before)
        return found

    async def test_right_pin(self) -> None:
        self.known.remember("lab", self.identity.fingerprint)
        for alpn in (ALPN_PB, ALPN_LINK):
            creator = self.creator(alpn)
            end, name = await self.connect(creator)
            self.assertEqual(name, alpn)
            self.assertEqual(creator.fingerprint, self.identity.fingerprint)
            self.assertIs(creator.problem, None)
            other = self.server.ends[-1]
            end.transport.write(b"hello")  # type: ignore[union-attr]
            self.assertEqual(await other.expected.addTimeout(LIMIT, reactor), b"hello")
            connection: SSL.Connection = end.transport.getHandle()  # type: ignore[union-attr]
            self.assertEqual(connection.get_protocol_version_name(), "TLSv1.3")
            await self.close(end)

    async def test_unknown(self) -> None:
        error = await self.refused(self.creator(), CertificateUnknown)
        self.assertEqual(error.fields, {"host": "lab", "fingerprint": self.identity.fingerprint})

    async def test_accept_new(self) -> None:
        end, _ = await self.connect(self.creator(accept_new=True, name="Lab"))
        (host,) = self.known.all()
        self.assertEqual((host.key, host.name, host.fingerprint), ("lab", "Lab", self.identity.fingerprint))
        await self.close(end)
        end, _ = await self.connect(self.creator())
        await self.close(end)

    async def test_changed(self) -> None:
        old = fingerprint(b"old")
        self.known.remember("lab", old)
        for accept_new in (False, True):
            error = await self.refused(self.creator(accept_new=accept_new), CertificateChanged)
            self.assertEqual(
                error.fields, {"host": "lab", "expected": old, "fingerprint": self.identity.fingerprint}
            )

    async def test_known_hosts_cannot_be_written(self) -> None:
        creator = self.creator(accept_new=True)
        self.known.path.parent.write_text("in the way")
        with self.assertRaises(KnownHostsBroken):
            await self.connect(creator)
        for other in self.server.ends:
            await other.lost.addTimeout(LIMIT, reactor)
            self.assertEqual(other.received, b"")

    async def test_tls_1_2_is_refused(self) -> None:
        old = CertificateOptions(lowerMaximumSecurityTo=TLSVersion.TLSv1_2, verify=False)

        @implementer(IOpenSSLClientConnectionCreator)
        class Old:
            def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
                return SSL.Connection(old.getContext(), None)

            def explain(self, reason: Failure) -> Exception:
                return reason.value  # type: ignore[return-value]

        error = await self.refused(Old(), SSL.Error)
        self.assertIn("protocol version", str(error))

    async def test_server_of_tls_1_2_is_refused(self) -> None:
        options = certificate.context_factory(self.identity)
        await self.listen(
            CertificateOptions(
                privateKey=options.privateKey,
                certificate=options.certificate,
                lowerMaximumSecurityTo=TLSVersion.TLSv1_2,
            )
        )
        self.known.remember("lab", self.identity.fingerprint)
        await self.refused(self.creator(), NotSksd)

    async def test_not_tls(self) -> None:
        class Plain(Protocol):
            def connectionMade(self) -> None:
                self.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")  # type: ignore[union-attr]
                self.transport.loseConnection()  # type: ignore[union-attr]

        port = reactor.listenTCP(0, Factory.forProtocol(Plain), interface="127.0.0.1")  # type: ignore
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port
        await self.refused(self.creator(), NotSksd)

    async def test_ca(self) -> None:
        ca = self.identity.certificate
        end, name = await self.connect(self.creator(ca=ca, hostname="localhost"))
        self.assertEqual(name, ALPN_PB)
        await self.close(end)
        end, _ = await self.connect(self.creator(ca=ca, hostname="127.0.0.1"))
        await self.close(end)

    async def test_ca_refuses(self) -> None:
        error = await self.refused(
            self.creator(ca=self.identity.certificate, hostname="other.example"), CertificateRefused
        )
        self.assertIn("another name", str(error))
        stranger = certificate.own(Path(self.mktemp())).certificate
        error = await self.refused(self.creator(ca=stranger, hostname="localhost"), CertificateRefused)
        self.assertIn("the CA that you trust", str(error))

    def test_ca_cannot_be_used(self) -> None:
        path = Path(self.mktemp())
        self.assertRaises(CertificateRefused, Authorised, "localhost", ALPN_PB, path)
        for content in (b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            path.write_bytes(content)
            self.assertRaises(CertificateRefused, Authorised, "localhost", ALPN_PB, path)
