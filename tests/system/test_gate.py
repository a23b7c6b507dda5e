"""The gate in the hands of a daemon that was taken over: it starts nothing for anybody who has not come in."""

from __future__ import annotations

import array
import base64
import json
import pwd
import socket
import struct
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.internet import defer, reactor

from sksd.server import token
from sksd.wire import gate as wire
from sksd.wire import sshkey
from sksd.wire.names import PREAMBLE_LINK, PREAMBLE_PB
from sksd.wire.tickets import Tickets, account_key
from tests.system.accounts import HostCase, as_user
from tests.system.daemon import LIMIT, Process, until


def owner(connected: socket.socket) -> int:
    """The uid at the other end."""
    uid: int = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid


class TakenOver(HostCase):
    """The test is the daemon."""

    def setUp(self) -> None:
        super().setUp()
        self.secret = self.top / "gate" / "secret"
        token.secret(self.secret)
        self.local = socket.socket(socket.AF_UNIX)
        self.path = self.top / "local"
        self.local.bind(str(self.path))
        self.path.chmod(0o666)
        self.local.listen(5)
        self.daemon, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.daemon.settimeout(LIMIT)
        self.addCleanup(self.local.close)
        order = {
            "secret": str(self.secret), "lang": "C.UTF-8", "limits": {}, "rules": {}, "guest": "", "cast": False,
            "closed": [0, pwd.getpwnam(self.host.daemon_account).pw_uid],
        }  # fmt: skip
        self.process = Process()
        command = [str(self.host.python), "-I", "-m", "sksd.gate", json.dumps(order)]
        with theirs:
            files: dict[int, Any] = {0: "w", 1: "r", 2: "r", 3: theirs.fileno(), 4: self.local.fileno()}
            reactor.spawnProcess(  # type: ignore[attr-defined]
                self.process, command[0], command, env=self.environ, path="/", childFDs=files
            )
        self._children.append(self.process)
        self.addCleanup(self.daemon.close)

    def ask(self, ask: str, **request: Any) -> dict[str, Any]:
        """One request and its answer; a descriptor is in `given`."""
        wire.send(self.daemon, {"id": 7, "ask": ask, **request})
        found = wire.receive(self.daemon, 1)
        assert found is not None
        said, descriptor = found
        self.assertEqual(said.pop("id"), 7)
        self.given = None if descriptor is None else socket.socket(fileno=descriptor)
        if self.given is not None:
            self.given.settimeout(LIMIT)
            self.addCleanup(self.given.close)
        return said

    def log_in(self, user: str) -> str:  # type: ignore[override]
        """A grant, by the password."""
        said = self.ask("check", method="password", user=user, secret=self.host.password, rhost="192.0.2.1")
        self.assertEqual(said["account"], user)
        word: str = said["grant"]
        return word

    def refused(self, word: str) -> None:
        """It starts no proxy."""
        self.assertEqual((self.ask("proxy", grant=word), self.given), ({"reason": "bad"}, None))

    def test_no_proxy_without_a_login(self) -> None:
        ada = self.log_in(self.host.ada)
        until = json.loads(ada[64:])
        for word in (
            "",
            "0" * 64,
            self.host.bob,
            ada.replace(self.host.ada, self.host.bob),
            ada.replace(f'"uid": {until["uid"]}', '"uid": 0'),
            ada[:-1],
            ada + " ",
            "0" * 64 + ada[64:],
        ):
            self.refused(word)
        for user in (self.host.ada, self.host.bob):
            self.assertEqual(self.of(user), [])
        self.assertEqual(self.ask("proxy", grant=ada), {})
        assert self.given is not None
        self.assertEqual(owner(self.given), pwd.getpwnam(self.host.ada).pw_uid)
        # What has begun stays; the login that is over starts nothing more.
        wire.send(self.daemon, {"ask": "proxy", "grant": ada, "end": True})
        self.refused(ada)

    def test_nobody_comes_in_by_other_ways(self) -> None:
        bob = self.host.bob
        for request in (
            {"method": "trusted", "user": bob},
            {"method": "local", "user": bob, "uid": pwd.getpwnam(bob).pw_uid},
            {"method": "password", "user": bob, "secret": None, "rhost": ""},
            {"method": "password", "user": bob, "secret": self.host.password + "\0", "rhost": ""},
            {"method": "password", "user": [bob], "secret": "x", "rhost": ""},
            {"method": "ticket", "user": bob, "secret": "v1." + "A" * 60},
            {"method": "ticket", "secret": Tickets("k" * 43).issue(bob, "abc")},
            {"method": "ticket", "secret": Tickets(account_key("s", bob, 1)).issue(bob, "abc")},
            {"method": "ticket", "secret": Tickets(account_key("s", bob, 1)).issue("nobody-there", "abc")},
        ):
            said = self.ask("check", **request)
            self.assertEqual(sorted(set(said) & {"account", "grant", "engine"}), [], request)
        self.assertEqual(self.of(bob), [])

    def attempt(self, key: Any, user: str, nonce: str | None = None, **wrong: Any) -> dict[str, Any]:
        """One that is right, but for what is `wrong` with it."""
        said = nonce or self.ask("nonce")["nonce"]
        blob = base64.b64decode(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
        signed = sshkey.message(user, b"channel", base64.b64decode(said))
        proof = sshkey.proof(blob, sshkey.sign(key, signed))
        return {
            "channel": base64.b64encode(b"channel").decode(), "nonce": said, "address": "192.0.2.1",
            "keys": [{"key": proof.key, "signature": proof.signature}], **wrong,
        }  # fmt: skip

    def by_key(self, user: str, attempt: Any) -> Any:
        """Whom it lets in."""
        said = self.ask("check", method="ssh-key", user=user, secret=attempt)
        self.assertEqual(said.get("reason"), None if "account" in said else "refused")
        return said.get("account")

    @defer.inlineCallbacks
    def test_ssh_key_is_good_once(self) -> Any:
        ada, bob, key = self.host.ada, self.host.bob, Ed25519PrivateKey.generate()
        file = self.authorize(ada, key)
        attempt = self.attempt(key, ada)
        # What a daemon has seen of a login is good for no other.
        self.assertEqual([self.by_key(ada, attempt) for _ in range(2)], [ada, None])
        own = base64.b64encode(b"n" * 32).decode()
        for user, wrong in (
            (ada, self.attempt(key, ada, own)),
            (ada, self.attempt(key, ada, base64.b64encode(self.log_in(ada).encode()).decode())),
            (ada, self.attempt(key, bob)),
            (bob, self.attempt(key, bob)),
            ("nobody-there", self.attempt(key, "nobody-there")),
            ("root", self.attempt(key, "root")),
            (ada, self.attempt(key, ada, channel="")),
            (ada, self.attempt(key, ada, more=1)),
            (ada, self.attempt(key, ada, keys=[{"key": "", "signature": ""}] * 7)),
            (ada, self.attempt(key, ada, keys=[])),
            (ada, self.attempt(Ed25519PrivateKey.generate(), ada)),
        ):
            self.assertIsNone(self.by_key(user, wrong), wrong)
        file.chmod(0o660)
        self.assertIsNone(self.by_key(ada, self.attempt(key, ada)))
        # It is read as ada, who cannot read root's.
        kept = self.top / "keys"
        kept.write_bytes(file.read_bytes())
        kept.chmod(0o600)
        file.unlink()
        file.symlink_to(kept)
        self.assertIsNone(self.by_key(ada, self.attempt(key, ada)))
        kept.chmod(0o644)
        self.assertEqual(self.by_key(ada, self.attempt(key, ada)), ada)
        # What looks at keys ends with its word.
        yield defer.ensureDeferred(until(lambda: not self.of(ada), "nothing is left"))

    def test_who_is_here_cannot_be_staged(self) -> None:
        # A socket of somebody else's, passed along: its credentials are bob's, but it did not come from him.
        listening = f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind({str(self.top / 'b' / 's')!r})"
        (self.top / "b").mkdir()
        (self.top / "b").chmod(0o777)
        as_user(self.host.bob, self.host.python, "-c", listening)
        ours, _ = socket.socketpair()
        message = json.dumps({"id": 7, "ask": "check", "method": "local"}).encode()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ours.fileno()]))
        self.daemon.sendmsg([message], [rights])
        found = wire.receive(self.daemon, 1)
        self.assertEqual(found, ({"id": 7, "reason": "bad"}, None))
        # Somebody who does come is who he is, and what he is let in for is his own.
        for user, account in ((self.host.bob, self.host.bob), (self.host.daemon_account, None), ("root", None)):
            calling = f"import socket; socket.socket(socket.AF_UNIX).connect({str(self.path)!r})"
            self.assertEqual(as_user(user, self.host.python, "-c", calling).returncode, 0)
            said = self.ask("check", method="local")
            self.assertEqual((said.get("account"), self.given is not None), (account, True))

    def test_ticket_opens_one_link_and_nothing_else(self) -> None:
        ada = pwd.getpwnam(self.host.ada)
        key = account_key(token.secret(self.secret), ada.pw_name, ada.pw_uid)
        for preamble, answer in ((PREAMBLE_PB + b"xxxx", b""), (PREAMBLE_LINK + b"\x00" * 64, b"\x03")):
            said = self.ask("check", method="ticket", secret=Tickets(key).issue(ada.pw_name, "abc"))
            self.assertEqual((said["account"], said["engine"]), (ada.pw_name, "abc"))
            self.assertEqual(self.ask("proxy", grant=said["grant"]), {})
            assert self.given is not None
            self.given.sendall(preamble)
            # Perspective Broker is hung up on; a link is answered, if only with what is wrong with it.
            received = self.given.recv(1)
            self.assertEqual(bool(received), bool(answer), preamble)
            self.refused(said["grant"])

    def test_refusals_take_the_same_time(self) -> None:
        for user, secret in ((self.host.ada, "wrong"), ("nobody-there", "wrong"), ("", "\U0001f600" * 4096)):
            begun = time.monotonic()
            said = self.ask("check", method="password", user=user, secret=secret, rhost="")
            self.assertEqual(said, {"reason": "refused"})
            self.assertLess(abs(time.monotonic() - begun - 1.5), 0.3)
        key = Ed25519PrivateKey.generate()
        for user in (self.host.ada, "nobody-there"):
            attempt, begun = self.attempt(key, user), time.monotonic()
            self.assertIsNone(self.by_key(user, attempt))
            self.assertLess(abs(time.monotonic() - begun - 1.5), 0.3)

    @defer.inlineCallbacks
    def test_garbage(self) -> Any:
        for data in (
            b"x", b"[]", b"null", b'{"ask": []}', b'{"ask": "exec", "method": "local"}', b"[" * 30000,
            b"{" + b" " * 100_000, b'{"id": 1}', b'{"ask": "proxy"}', b'{"ask": "check"}',
            b'{"ask": "proxy", "grant": {}}', b'{"ask": "check", "method": "ssh-key", "secret": "x", "user": "x"}',
        ):  # fmt: skip
            self.daemon.send(data)
        self.assertEqual(wire.receive(self.daemon), ({"id": None, "reason": "bad"}, None))
        self.log_in(self.host.ada)
        self.daemon.close()
        self.assertEqual((yield self.process.ended), 0)
        self.assertNotIn(b"Traceback", self.process.output)
