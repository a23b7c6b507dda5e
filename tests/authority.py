"""A certificate authority for the tests, with an intermediate."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.UTC)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


class Authority:
    """`ca` is its certificate's file; `issue` makes others in the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._root_key, self._middle_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self._root = self._sign("Test Root", self._root_key, None, self._root_key)
        self._middle = self._sign("Test Intermediate", self._middle_key, self._root, self._root_key)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(_pem(self._root))
        self.intermediate = _pem(self._middle)

    def _sign(self, name: str, key: Any, issuer: x509.Certificate | None, by: Any, *more: Any, days: int = 30) -> Any:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer is not None else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=40))
            .not_valid_after(NOW + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=not more, path_length=None), critical=True)
        )
        for extension in more:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(by, hashes.SHA256())

    def issue(self, name: str, *, client: bool = False, days: int = 30) -> tuple[Path, Path]:
        """The files of a certificate with its chain, and of its key, for `localhost` or for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        made = self._sign(
            name, key, self._middle, self._middle_key, x509.ExtendedKeyUsage([usage]), names, days=days
        )
        certificate, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(_pem(made) + self.intermediate)
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        private.chmod(0o600)
        return certificate, private
