"""The daemon's certificate: made once, loaded with care; and the fingerprint people compare."""

from __future__ import annotations

import datetime
import ipaddress
import os
import stat
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from sksd.errors import CannotWrite, ConfigurationFile
from sksd.server import certificate
from sksd.wire.fingerprint import fingerprint, normal, same
from tests.authority import Authority

NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)


class OwnTests(SynchronousTestCase):
    """The certificate that the daemon makes for itself."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())

    def test_made_once(self) -> None:
        first = certificate.own(self.folder)
        self.assertEqual(certificate.own(self.folder), first)
        for path in (first.certificate, first.key):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(sorted(os.listdir(self.folder)), ["certificate.lock", "certificate.pem", "key.pem"])
        self.assertNotIn("PRIVATE", repr(first))
        self.assertNotIn("private_key", repr(first))
        self.assertEqual(
            first.chain[0].public_key().public_numbers(), first.private_key.public_key().public_numbers()
        )

    def test_two_starts_at_once(self) -> None:
        found: set[str] = set()
        gate = threading.Barrier(8)

        def start() -> None:
            gate.wait(10)
            found.add(certificate.own(self.folder).fingerprint)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        self.assertEqual(len(found), 1)

    def test_key_without_certificate_is_made_anew(self) -> None:
        first = certificate.own(self.folder)
        first.certificate.unlink()
        self.assertNotEqual(certificate.own(self.folder).fingerprint, first.fingerprint)

    def test_certificate_without_key_is_refused(self) -> None:
        certificate.own(self.folder).key.unlink()
        self.assertIn("key.pem", str(self.assertRaises(ConfigurationFile, certificate.own, self.folder)))

    def test_contents(self) -> None:
        names, addresses = ("box.example", "localhost"), ("127.0.0.1", "fd00::2")
        pem, _ = certificate.make(names, addresses, NOW)
        made = x509.load_pem_x509_certificate(pem)
        self.assertIsInstance(made.public_key(), ec.EllipticCurvePublicKey)
        self.assertEqual(made.subject.rfc4514_string(), "CN=box.example")
        alternatives = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(alternatives.get_values_for_type(x509.DNSName), list(names))
        found = alternatives.get_values_for_type(x509.IPAddress)
        self.assertEqual(found, [ipaddress.ip_address(address) for address in addresses])
        self.assertFalse(made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
        self.assertLess(made.not_valid_before_utc, NOW)
        self.assertGreater(made.not_valid_after_utc, NOW + datetime.timedelta(days=9 * 365))
        certificate.make(("x" * 200, "é"), (), NOW)

    def test_own_names_and_addresses(self) -> None:
        self.assertIn("localhost", certificate.own_names())
        self.assertIn("127.0.0.1", certificate.own_addresses())
        for address in certificate.own_addresses():
            ipaddress.ip_address(address)

    def test_cannot_be_made(self) -> None:
        self.folder.write_text("in the way")
        self.assertRaises(CannotWrite, certificate.own, self.folder)


class LoadTests(SynchronousTestCase):
    """Files that somebody gave."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.certificate, self.key = folder / "c.pem", folder / "k.pem"
        public, private = certificate.make(("box",), (), NOW)
        self.certificate.write_bytes(public)
        self.key.write_bytes(private)
        self.key.chmod(0o600)

    def refused(self, *words: str, now: datetime.datetime = NOW) -> None:
        error = self.assertRaises(ConfigurationFile, certificate.load, self.certificate, self.key, now)
        for word in words:
            self.assertIn(word, str(error))

    def test_loaded(self) -> None:
        loaded = certificate.load(self.certificate, self.key, NOW)
        der = x509.load_pem_x509_certificate(self.certificate.read_bytes()).public_bytes(Encoding.DER)
        self.assertEqual(loaded.fingerprint, fingerprint(der))
        certificate.context_factory(loaded).getContext()

    def test_with_chain(self) -> None:
        authority = Authority(self.certificate.parent)
        loaded = certificate.load(*authority.issue("box"), client_ca=authority.ca)
        self.assertEqual((len(loaded.chain), len(loaded.client_ca)), (2, 1))
        certificate.context_factory(loaded).getContext()

    def test_chain_in_disorder(self) -> None:
        other, _ = certificate.make(("ca",), (), NOW)
        self.certificate.write_bytes(self.certificate.read_bytes() + other)
        self.refused("certificate 2 in it")

    def test_key_open_to_others(self) -> None:
        for mode in (0o644, 0o640, 0o602):
            self.key.chmod(mode)
            self.refused(str(self.key), "others can read this key", "chmod 600")

    def test_mismatch(self) -> None:
        self.key.write_bytes(certificate.make(("box",), (), NOW)[1])
        self.refused(str(self.certificate), f"{self.key} is not the key")

    def test_dates(self) -> None:
        self.refused("is the clock right?", now=NOW - datetime.timedelta(days=2))
        self.refused("has expired on 2036-11-17", now=NOW + datetime.timedelta(days=4000))

    def test_not_pem(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
        self.key.write_bytes(sealed)
        self.refused(str(self.key), "passphrase")
        odd = dsa.generate_private_key(1024)
        self.key.write_bytes(odd.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.refused("this kind of key")
        self.key.write_bytes(b"nothing")
        self.refused(str(self.key), "private key in PEM")
        for content in (b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            self.certificate.write_bytes(content)
            self.refused(str(self.certificate), "certificate in PEM")

    def test_not_files(self) -> None:
        self.certificate.unlink()
        self.refused(str(self.certificate), "it is missing: put it back")
        os.mkfifo(self.certificate)
        self.refused("not an ordinary file")


class FingerprintTests(SynchronousTestCase):
    """The form that people compare."""

    def test_as_ssh_writes_it(self) -> None:
        self.assertEqual(fingerprint(b""), "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU")

    def test_same(self) -> None:
        @given(st.binary(), st.binary())
        def compared(one: bytes, other: bytes) -> None:
            left, right = fingerprint(one), fingerprint(other)
            self.assertEqual(same(left, right), one == other)
            self.assertEqual(normal(left), left)
            typed = f" sha256:{left[7:20]} {left[20:]}=\n"
            self.assertTrue(same(typed, left) and same(left, left[7:]))
            self.assertFalse(same(left, left.swapcase()))

        compared()

    def test_no_fingerprint(self) -> None:
        for text in ("", "SHA256:", "SHA256:" + "A" * 42, "MD5:" + "A" * 43, "é" * 43):
            self.assertIs(normal(text), None)
            self.assertFalse(same(text, text))
