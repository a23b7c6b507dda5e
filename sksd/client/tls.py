"""The client's end of TLS: TLS 1.3 only, and the host's certificate checked before a byte is sent to it.

Either a list of trusted certificates (CA) that somebody configured, or the pin that `trust` remembers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from sksd.client.trust import KnownHosts
from sksd.errors import (
    CertificateChanged,
    CertificateRefused,
    CertificateUnknown,
    ClientCertificate,
    ClientCertificateUnusable,
    HostGone,
    NotSksd,
    SksdError,
)
from sksd.wire.fingerprint import fingerprint, same

#: Files, PEM: the client's certificate with its chain, and its key.
ClientFiles = tuple[Path, Path]
_PEM_END: Final = b"-----END CERTIFICATE-----"


def _der(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def _own(files: ClientFiles | None) -> dict[str, Any]:
    """What CertificateOptions takes for the client's own certificate; raises ClientCertificateUnusable."""
    if files is None:
        return {}
    certificate, key = files
    file = certificate
    try:
        parts = certificate.read_bytes().split(_PEM_END)[:-1]
        first, *rest = (crypto.load_certificate(crypto.FILETYPE_PEM, part + _PEM_END + b"\n") for part in parts)
        file = key
        private = crypto.load_privatekey(crypto.FILETYPE_PEM, key.read_bytes(), b"")
        options: dict[str, Any] = {"privateKey": private, "certificate": first, "extraCertChain": rest}
        # Asks OpenSSL whether both belong together.
        CertificateOptions(**options).getContext()
    except (OSError, ValueError, TypeError, crypto.Error, SSL.Error) as error:
        problem = getattr(error, "strerror", None) or "it is not PEM, has a passphrase, or is not of the other file"
        raise ClientCertificateUnusable(file=str(file), problem=problem) from None
    return options


def client_refused(reason: Failure, host: str) -> SksdError | None:
    """The error to raise where a host has hung up because of the client's certificate, or for want of one.

    Called when a connection ends before the first answer: in TLS 1.3 the alert comes after the client's handshake.
    """
    if isinstance(reason.value, SSL.Error) and reason.value.args:
        for part in reason.value.args[0]:
            _, alert, problem = str(part[-1]).partition("alert ")
            if alert:
                return ClientCertificate(host=host, problem=problem)
    return None


@implementer(IOpenSSLClientConnectionCreator)
class Pinned:
    """Connects to a host by the pin that is known for `key`; one instance for one attempt.

    Pass it to `wrapClientTLS` or `SSL4ClientEndpoint`. When the connection is lost during the handshake,
    `explain` turns the reason into the error to raise. With `accept_new` an unknown certificate is
    remembered, once the host has proved that it holds the key to it. Raises KnownHostsBroken.
    """

    def __init__(
        self,
        known: KnownHosts,
        key: str,
        alpn: bytes,
        *,
        accept_new: bool = False,
        name: str = "",
        client: ClientFiles | None = None,
    ) -> None:
        self._known = known
        self._key = key
        self._accept_new = accept_new
        self._name = name
        self._pin = known.get(key)
        self._alpn = alpn
        self._options = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_3, verify=False, **_own(client))
        #: Fingerprint of the certificate that the host showed; None before it did.
        self.fingerprint: str | None = None
        #: Why the host was refused; None when it was not.
        self.problem: SksdError | None = None
        self._shaken = False

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Called by Twisted as the connection begins."""
        context = self._options.getContext()
        context.set_verify(SSL.VERIFY_PEER, self._verify)
        context.set_info_callback(self._progress)
        connection = SSL.Connection(context, None)
        connection.set_app_data(tlsProtocol)
        # Not through CertificateOptions: Twisted releases differ in whether a context made by them offers it.
        connection.set_alpn_protos([self._alpn])
        return connection

    def _refusal(self, shown: str) -> SksdError | None:
        if self._pin is None:
            return None if self._accept_new else CertificateUnknown(host=self._key, fingerprint=shown)
        if same(self._pin, shown):
            return None
        return CertificateChanged(host=self._key, expected=self._pin, fingerprint=shown)

    def _verify(
        self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
    ) -> bool:
        # Only the host's own certificate counts, and neither its dates nor its issuer: it is the pin that is
        # trusted. An exception in here would be printed, not raised.
        if depth == 0:
            self.fingerprint = fingerprint(_der(certificate))
            self.problem = self._refusal(self.fingerprint)
        return self.problem is None

    def _progress(self, connection: SSL.Connection, where: int, result: int) -> None:
        # OpenSSL says "done" again for each session ticket that the host sends later.
        if self._shaken or not where & SSL.SSL_CB_HANDSHAKE_DONE:
            return
        self._shaken = True
        try:
            certificate = connection.get_peer_certificate()
            if certificate is None:
                raise NotSksd(address=self._key, problem="it shows no certificate")
            # `check` remembers it when accepted; that `_verify` was not asked at all is ruled out here, too.
            self._known.check(self._key, fingerprint(_der(certificate)), self._accept_new, self._name)
        except Exception as error:
            problem = error if isinstance(error, SksdError) else SksdError(problem=str(error))
            self.problem = problem
            connection.get_app_data().failVerification(Failure(problem))

    def explain(self, reason: Failure) -> SksdError:
        """The error to raise for `reason`, with which `connectionLost` was called."""
        return self.problem or _explained(reason, self._key)


@implementer(IOpenSSLClientConnectionCreator)
class Authorised:
    """Connects to a host whose certificate must come from one of the certificates in the PEM file `ca` and be
    for `hostname`, a name or an IP address. Otherwise as `Pinned`. Raises CertificateRefused when `ca` cannot
    be used.
    """

    def __init__(self, hostname: str, alpn: bytes, ca: Path, client: ClientFiles | None = None) -> None:
        self._hostname = hostname
        self.fingerprint: str | None = None
        self.problem: SksdError | None = None
        try:
            parts = ca.read_bytes().split(_PEM_END)[:-1]
            roots = [Certificate.loadPEM(part + _PEM_END + b"\n") for part in parts]
            if not roots:
                raise ValueError("there is no certificate in it")
        except (OSError, ValueError, crypto.Error) as error:
            problem = f"{ca} cannot be used: {getattr(error, 'strerror', None) or error or 'not PEM'}"
            raise CertificateRefused(host=hostname, problem=problem) from None
        self._creator = optionsForClientTLS(
            hostname,
            trustRoot=trustRootFromCertificates(roots),
            acceptableProtocols=[alpn],
            extraCertificateOptions={"raiseMinimumTo": TLSVersion.TLSv1_3, **_own(client)},
        )

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Called by Twisted as the connection begins."""
        connection: SSL.Connection = self._creator.clientConnectionForTLS(tlsProtocol)
        return connection

    def explain(self, reason: Failure) -> SksdError:
        """The error to raise for `reason`, with which `connectionLost` was called."""
        return self.problem or _explained(reason, self._hostname)


Creator = Pinned | Authorised


def context(
    key: str,
    alpn: bytes,
    *,
    known: KnownHosts,
    accept_new: bool = False,
    name: str = "",
    ca: Path | None = None,
    hostname: str = "",
    client: ClientFiles | None = None,
) -> Creator:
    """What to wrap one connection in. Called by the session and the relay, anew for each attempt.

    `key` is the host's key (trust.host_key), `alpn` one of the names in sksd.wire.names, `name` the pretty
    name to note down, `client` what the client shows where the host asks for a certificate. With `ca`,
    `hostname` is what the certificate must be for: what the person typed, never what the network said. Raises
    KnownHostsBroken, CertificateRefused, ClientCertificateUnusable.
    """
    if ca is not None:
        return Authorised(hostname or key, alpn, ca, client)
    return Pinned(known, key, alpn, accept_new=accept_new, name=name, client=client)


def _explained(reason: Failure, host: str) -> SksdError:
    error = reason.value
    if isinstance(error, SksdError):
        return error
    if isinstance(error, VerificationError):
        return CertificateRefused(host=host, problem="it is for another name")
    if isinstance(error, SSL.Error):
        words = [str(part[-1]) for part in (error.args[0] if error.args else ()) if part and part[-1]]
        sentence = ", ".join(words) or "TLS failed"
        if "certificate verify failed" in sentence:
            return CertificateRefused(host=host, problem="it does not come from the CA that you trust")
        return NotSksd(address=host, problem=sentence)
    return HostGone(host=host, problem=reason.getErrorMessage() or "the connection was closed")
