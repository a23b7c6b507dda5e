"""Signatures of SSH keys, and which keys open an account."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from sksd.wire import authorized_keys, sshkey

NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
KINDS = (("ed25519", ""), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "2048"))


def make(folder: Path, kind: str = "ed25519", bits: str = "", passphrase: str = "") -> tuple[Path, bytes]:
    """A key of `ssh-keygen`'s: its file, and its blob."""
    path = folder / f"{kind}{bits}{'-locked' if passphrase else ''}"
    size = ["-b", bits] if bits else []
    command = ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-C", "a comment", "-f", str(path)]
    subprocess.run(command, check=True)
    return path, base64.b64decode(path.with_suffix(".pub").read_text().split()[1])


class Signatures(unittest.TestCase):
    """Ours against ssh-keygen's."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def test_each_kind(self) -> None:
        data = sshkey.message("ada", b"channel", b"nonce")
        for kind, bits in KINDS:
            path, blob = make(self.folder, kind, bits)
            key = load_ssh_private_key(path.read_bytes(), None)
            signature = sshkey.sign(key, data)  # type: ignore[arg-type]
            self.assertTrue(sshkey.verified(blob, signature, data), kind)
            self.assertFalse(sshkey.verified(blob, signature, data + b"x"), kind)
            other = sshkey.message("bob", b"channel", b"nonce")
            self.assertFalse(sshkey.verified(blob, signature, other), kind)
            for position in range(0, len(signature), 7):
                broken = bytearray(signature)
                broken[position] ^= 1
                self.assertFalse(sshkey.verified(blob, bytes(broken), data), (kind, position))

    def test_as_ssh_keygen_signs(self) -> None:
        path, blob = make(self.folder)
        file = self.folder / "message"
        file.write_bytes(b"text")
        subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "login@sksd", "-f", path, file], check=True)
        armored = Path(f"{file}.sig").read_text().splitlines()[1:-1]
        signature = sshkey._strings(base64.b64decode("".join(armored))[10:])[-1]
        # The same envelope, around a message of ours.
        envelope = b"SSHSIG" + b"".join(
            sshkey._string(each) for each in (b"login@sksd", b"", b"sha512", hashlib.sha512(b"text").digest())
        )
        self.assertTrue(sshkey.verified(blob, signature, envelope))

    def test_kinds_that_are_not_taken(self) -> None:
        path, blob = make(self.folder, "rsa", "1024")
        key = load_ssh_private_key(path.read_bytes(), None)
        self.assertFalse(sshkey.verified(blob, sshkey.sign(key, b"data"), b"data"))  # type: ignore[arg-type]
        for name in (b"ssh-dss", b"sk-ssh-ed25519@openssh.com", b"ssh-ed25519-cert-v01@openssh.com", b"x", b"\xff"):
            self.assertIsNone(sshkey.kind(sshkey._string(name) + b"rest"))

    @given(st.binary(max_size=200), st.binary(max_size=200))
    def test_nothing_raises(self, blob: bytes, signature: bytes) -> None:
        self.assertFalse(sshkey.verified(blob, signature, b""))
        for name in sshkey.ALGORITHMS:
            wire = sshkey._string(name.encode())
            self.assertFalse(sshkey.verified(wire + blob, wire + signature, b""))

    def test_proven(self) -> None:
        path, blob = make(self.folder)
        key = load_ssh_private_key(path.read_bytes(), None)
        signature = sshkey.sign(key, sshkey.message("ada", b"c", b"n"))  # type: ignore[arg-type]
        proof = sshkey.proof(blob, signature)

        def proven(user: str = "ada", channel: bytes = b"c", nonce: bytes = b"n") -> list[bytes]:
            c, n = (base64.b64encode(each).decode() for each in (channel, nonce))
            return sshkey.proven(user, sshkey.Attempt(channel=c, nonce=n, address="", keys=[proof]))

        self.assertEqual(proven(), [blob])
        for wrong in (proven("bob"), proven(channel=b"d"), proven(nonce=b"o")):
            self.assertEqual(wrong, [])
        broken = sshkey.Attempt(channel="", nonce="", address="", keys=[sshkey.KeyProof(key="A", signature="A")])
        self.assertEqual(sshkey.proven("ada", broken), [])


class Keys(unittest.TestCase):
    """authorized_keys."""

    BLOB = sshkey._string(b"ssh-ed25519") + sshkey._string(bytes(range(32)))
    KEY = "ssh-ed25519 " + base64.b64encode(BLOB).decode()

    def permits(self, text: str, address: str = "192.0.2.7") -> bool:
        return authorized_keys.permits(text, self.BLOB, address, NOW)

    def test_lines_that_permit(self) -> None:
        for line in (
            "{}",
            "  {} ada@home  ",
            "restrict {}",
            "restrict,pty {}",
            'no-pty,environment="A=\\"b, c\\"" {}',
            'from="192.0.2.0/24" {}',
            'from="192.0.2.7" {}',
            'from="10.0.0.0/8,192.0.2.?" {}',
            'from="192.0.2.*,!192.0.2.8" {}',
            'expiry-time="20261121" {}',
            'expiry-time="202611201201Z" {}',
            'from="192.0.2.0/24",restrict,expiry-time="20270101Z"\t{} # x',
            "# a comment\n\nnonsense\n{}",
        ):
            self.assertTrue(self.permits(line.format(self.KEY)), line)

    def test_lines_that_do_not(self) -> None:
        for line in (
            "",
            "# {}",
            "ssh-ed25519",
            'command="true" {}',
            'restrict,command="true" {}',
            'COMMAND="true" {}',
            "cert-authority {}",
            'principals="ada" {}',
            "verify-required {}",
            "something-new {}",
            'from="192.0.2.8" {}',
            'from="*,!192.0.2.0/24" {}',
            'from="lab.example" {}',
            'from="" {}',
            'from="2001:db8::/32" {}',
            'expiry-time="20261120" {}',
            'expiry-time="202611201200Z" {}',
            'expiry-time="soon" {}',
            'from="192.0.2.0/24 {}',
            "restrict, {}",
            ",restrict {}",
            "ssh-rsa " + self.KEY.split()[1],
            self.KEY[:-4],
        ):
            self.assertFalse(self.permits(line.format(self.KEY)), line)

    def test_mapped_and_scoped_addresses(self) -> None:
        self.assertTrue(self.permits(f'from="192.0.2.0/24" {self.KEY}', "::ffff:192.0.2.7"))
        self.assertTrue(self.permits(f'from="fe80::/10" {self.KEY}', "fe80::1%eth0"))
        self.assertFalse(self.permits(f'from="*" {self.KEY}', "somewhere"))

    def test_a_later_line_may_permit(self) -> None:
        self.assertTrue(self.permits(f'command="x" {self.KEY}\n{self.KEY}'))

    @given(st.text(max_size=100))
    def test_nothing_raises(self, text: str) -> None:
        self.permits(f"{text} {self.KEY}")
        self.permits(f'from="{text}" {self.KEY}')
        self.permits(f'expiry-time="{text}" {self.KEY}')

    def test_file_that_others_may_write(self) -> None:
        home = Path(self.mktemp())
        (home / ".ssh").mkdir(parents=True)
        home.chmod(0o755)
        (home / ".ssh").chmod(0o700)
        self.assertEqual(authorized_keys.read(home), "")
        path = authorized_keys.place(home)
        path.write_text("text")
        path.chmod(0o600)
        self.assertEqual(authorized_keys.read(home), "text")
        for each in (path, path.parent, home):
            before = each.stat().st_mode
            each.chmod(before | 0o020)
            self.assertEqual(authorized_keys.read(home), "", each)
            each.chmod(before)
        path.unlink()
        os.mkfifo(path, 0o600)
        self.assertEqual(authorized_keys.read(home), "")
