"""The daemon's certificate: made at the first start, or the organisation's own.

The one that is made is self-signed and meant to be pinned by clients (trust on first use); the names in it
serve those who put it into a list of trusted certificates instead.
"""

from __future__ import annotations

import datetime
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Final

import attrs
import ifaddr
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto
from twisted.internet.ssl import Certificate, CertificateOptions, TLSVersion, trustRootFromCertificates

from sksd import paths
from sksd.errors import CannotWrite, ConfigurationFile
from sksd.wire.fingerprint import fingerprint
from sksd.wire.names import ALPN_LINK, ALPN_PB

#: A pinned certificate that ends makes every client refuse the host, so it lasts as long as a machine does.
LIFETIME: Final = datetime.timedelta(days=10 * 365)
#: Clocks of clients differ; a certificate from yesterday is valid for all of them.
_BACKDATED: Final = datetime.timedelta(days=1)
#: Bytes of a PEM file.
_LARGEST: Final = 256 * 1024

#: The kinds of key that TLS 1.3 signs with.
PrivateKey = (
    ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey
)


@attrs.frozen
class Identity:
    """A loaded certificate with its key. `certificate` and `key` are the PEM files; the key itself is in no
    repr."""

    certificate: Path
    key: Path
    #: As people compare it (sksd.wire.fingerprint).
    fingerprint: str
    #: UTC.
    expires: datetime.datetime
    chain: tuple[x509.Certificate, ...] = attrs.field(repr=False, eq=False)
    private_key: PrivateKey = attrs.field(repr=False, eq=False)
    #: Whose certificates clients must show; empty: clients show none.
    client_ca: tuple[x509.Certificate, ...] = attrs.field(default=(), repr=False, eq=False)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def own_names() -> tuple[str, ...]:
    """What this machine may be called, without asking the network."""
    hostname = socket.gethostname() or "localhost"
    short = hostname.partition(".")[0]
    return tuple(dict.fromkeys((hostname, short, f"{short}.local", "localhost")))


def own_addresses() -> tuple[str, ...]:
    """This machine's IP addresses, loopback included, without scopes."""
    found = {"127.0.0.1": None, "::1": None}
    for adapter in ifaddr.get_adapters():
        for address in adapter.ips:
            found[address.ip if isinstance(address.ip, str) else address.ip[0].partition("%")[0]] = None
    return tuple(found)


def make(names: Iterable[str], addresses: Iterable[str], now: datetime.datetime) -> tuple[bytes, bytes]:
    """A new self-signed certificate for `names` and `addresses`, valid from `now`, and its key, both PEM.

    ECDSA P-256, an end entity (RFC 5280, basicConstraints CA:FALSE) for servers.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = tuple(names)
    # RFC 5280, ub-common-name.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names if name.isascii()]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
            "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _read(path: Path, secret: bool) -> bytes:
    try:
        # Not to be held up by a FIFO in the place of the file.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ConfigurationFile(file=str(path), problem="it is not an ordinary file")
            # Debian lets a group of daemons read keys that belong to root.
            allowed = 0o040 if about.st_uid == 0 and os.geteuid() != 0 else 0
            if secret and about.st_mode & 0o077 & ~allowed:
                raise ConfigurationFile(
                    file=str(path), problem=f"others can read this key: say `chmod 600 {path}`"
                )
            return file.read(_LARGEST)
    except FileNotFoundError:
        problem = "it is missing: put it back, or take away certificate and key, for new ones"
        raise ConfigurationFile(file=str(path), problem=problem) from None
    except OSError as error:
        raise ConfigurationFile(file=str(path), problem=error.strerror or str(error)) from None


def _key(path: Path) -> PrivateKey:
    try:
        key = load_pem_private_key(_read(path, secret=True), password=None)
    except TypeError:
        raise ConfigurationFile(
            file=str(path), problem="the key has a passphrase, and the daemon could not ask for it"
        ) from None
    except Exception as error:
        if isinstance(error, ConfigurationFile):
            raise
        raise ConfigurationFile(file=str(path), problem="it does not hold a private key in PEM") from None
    if not isinstance(key, PrivateKey):
        raise ConfigurationFile(
            file=str(path), problem="this kind of key cannot be used: make an ECDSA or RSA one"
        )
    return key


def _certificates(path: Path) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(_read(path, secret=False)))
    except ValueError:
        raise ConfigurationFile(file=str(path), problem="it does not hold a certificate in PEM") from None


def load(
    certificate: Path, key: Path, now: datetime.datetime | None = None, client_ca: Path | None = None
) -> Identity:
    """The identity in two PEM files, checked at `now` (UTC). Called at the daemon's start, and when they change.

    Raises ConfigurationFile when a file cannot be read, others can read the key, both do not belong together, the
    chain is in disorder, or the certificate is not valid now.
    """
    now = now or _now()
    chain = _certificates(certificate)
    private = _key(key)
    first = chain[0]

    def public(owner: x509.Certificate | PrivateKey) -> bytes:
        return owner.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    if public(first) != public(private):
        raise ConfigurationFile(file=str(certificate), problem=f"{key} is not the key of this certificate")
    if now < first.not_valid_before_utc:
        raise ConfigurationFile(
            file=str(certificate),
            problem=f"it is valid from {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: is the clock right?",
        )
    if now > first.not_valid_after_utc:
        raise ConfigurationFile(
            file=str(certificate), problem=f"it has expired on {first.not_valid_after_utc:%Y-%m-%d}: renew it"
        )
    for number, (issued, issuer) in enumerate(pairwise(chain), start=2):
        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigurationFile(
                file=str(certificate),
                problem=f"certificate {number} in it did not issue the one before: the daemon's own comes first, then"
                " whose it comes from, up to the CA's",
            ) from None
    return Identity(
        certificate=certificate,
        key=key,
        client_ca=_certificates(client_ca) if client_ca is not None else (),
        fingerprint=fingerprint(first.public_bytes(Encoding.DER)),
        expires=first.not_valid_after_utc,
        chain=chain,
        private_key=private,
    )


def own(
    folder: Path | None = None, now: datetime.datetime | None = None, client_ca: Path | None = None
) -> Identity:
    """The identity in `folder` (default: the caller's state folder), made when there is none.

    Two daemons that start at once make one. Called at the daemon's start when the configuration names no
    certificate. Raises as `load` does, and CannotWrite.
    """
    now = now or _now()
    folder = paths.private(folder or paths.state())
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    try:
        lock = os.open(folder / "certificate.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.lexists(certificate):
                # The certificate comes last: a key without one was never shown to anybody.
                public, private = make(own_names(), own_addresses(), now)
                paths.write_private(key, private)
                paths.write_private(certificate, public)
        finally:
            os.close(lock)
    except OSError as error:
        raise CannotWrite(path=str(folder), problem=error.strerror or str(error)) from None
    return load(certificate, key, now, client_ca)


def context_factory(identity: Identity) -> CertificateOptions:
    """What the daemon's port listens with: TLS 1.3 only, ALPN for Perspective Broker and links, and a certificate of
    the client's where the identity has a `client_ca`."""
    first, *rest = (crypto.X509.from_cryptography(certificate) for certificate in identity.chain)
    roots = [Certificate(crypto.X509.from_cryptography(each)) for each in identity.client_ca]
    return CertificateOptions(
        privateKey=crypto.PKey.from_cryptography_key(identity.private_key),
        certificate=first,
        extraCertChain=rest,
        raiseMinimumTo=TLSVersion.TLSv1_3,
        acceptableProtocols=[ALPN_PB, ALPN_LINK],
        trustRoot=trustRootFromCertificates(roots) if roots else None,
    )
