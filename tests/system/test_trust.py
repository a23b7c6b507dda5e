"""Certificates that are renewed and asked for, SSH keys, and what the audit log tells of it all."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import defer, reactor

from sksd import paths
from sksd.client import session, sshkeys
from sksd.client.hosts import Target
from sksd.client.trust import KnownHosts
from sksd.errors import ClientCertificate, LoginMethod, LoginRefused, SshKeyRefused, SshKeyUnusable
from sksd.wire import messages, sshkey
from sksd.wire.fingerprint import fingerprint
from tests.authority import Authority
from tests.system.cli import CommandCase
from tests.system.daemon import ROOT, DaemonCase, Local, until
from tests.unit.test_sshkey import make


async def never(connection: session.Connection) -> session.Session:
    """For a login that is not made again."""
    raise AssertionError("it was refused")


class Certificates(DaemonCase):
    """`[tls]`."""

    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority(self.top / "ca")
        self.files = self.authority.issue("localhost")

    def settings(self, *more: str) -> None:
        certificate, key = self.files
        tls = "\n".join((f"certificate = {certificate}", f"key = {key}", *more))
        self.configure(f"[sksd]\nannounce = no\nlisten = 127.0.0.1\n[tls]\n{tls}\n")

    async def connect(self, **target: Any) -> session.Connection:
        known = KnownHosts(self.top / "known.json")
        target = {"ca": self.authority.ca, "certificate_name": "127.0.0.1", **target}
        route = Target("there", "127.0.0.1", self.note().port, "there", known, **target)
        connection = await session.connect(reactor, route)
        self.addCleanup(lambda: defer.ensureDeferred(connection.close()))
        return connection

    async def shown(self) -> str:
        """The fingerprint that a new connection sees."""
        connection = await self.connect()
        handle = connection._broker.transport.getHandle()
        der = handle.get_peer_certificate(as_cryptography=True).public_bytes(Encoding.DER)
        await connection.close()
        return fingerprint(der)

    async def test_renewed_upon_hangup_and_nobody_is_dropped(self) -> None:
        self.settings()
        daemon = await self.start()
        before = self.note().fingerprint
        self.assertEqual(await self.shown(), before)
        connection = await self.connect()
        here = await connection.login("", paths.token().read_text().strip())
        renewed = self.authority.issue("renewed")
        for old, new in zip(self.files, renewed, strict=True):
            os.replace(new, old)
        daemon.kill(signal.SIGHUP)
        await until(lambda: self.note().fingerprint != before, "the new one counts")
        self.assertEqual(await self.shown(), self.note().fingerprint)
        self.assertEqual((await here.host()).fingerprint, self.note().fingerprint)
        # One that cannot be used changes nothing.
        self.files[0].write_text("nonsense")
        daemon.kill(signal.SIGHUP)
        await daemon.says(b"was not renewed")
        self.assertEqual(await self.shown(), self.note().fingerprint)
        expired, _ = self.authority.issue("expired", days=-1)
        os.replace(expired, self.files[0])
        daemon.kill(signal.SIGHUP)
        await until(lambda: daemon.output.count(b"was not renewed") == 2, "it says so")
        await here.ping()
        await self.stop(daemon)
        self.assertNotIn(b"Traceback", daemon.output)

    async def test_whoever_has_no_certificate_is_kept_out(self) -> None:
        self.settings(f"client_ca = {self.authority.ca}")
        daemon = await self.start()
        mine = self.authority.issue("ada", client=True)
        connection = await self.connect(client=mine)
        await connection.login("", paths.token().read_text().strip())
        stranger = Authority(self.top / "stranger").issue("eve", client=True)
        for wrong in (None, stranger, self.authority.issue("old", client=True, days=-1), self.files):
            with self.assertRaises(ClientCertificate) as caught:
                await self.connect(client=wrong)
            self.assertIn("--client-certificate", str(caught.exception))
        # Also where the host's own certificate is pinned.
        connection = await self.connect(client=mine, ca=None, accept_new=True)
        await connection.close()
        await self.stop(daemon)
        self.assertNotIn(b"Traceback", daemon.output)
        self.assertLess(len(daemon.output.splitlines()), 30)


class Commands(CommandCase):
    """What a person says."""

    def agent(self) -> str:
        """An ssh-agent of the test's own."""
        path = str(self.top / "agent")
        agent = self.run_process("/usr/bin/ssh-agent", "-D", "-a", path)

        async def end() -> None:
            agent.kill(signal.SIGTERM)
            await agent.ended

        self.addCleanup(lambda: defer.ensureDeferred(end()))
        return path

    def authorize(self, public: Path, options: str = "") -> None:
        keys = self.home / ".ssh" / "authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        keys.write_text(f"{options}{public.read_text()}")
        keys.chmod(0o600)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.note().port}"

    async def test_ssh_keys(self) -> None:
        path, _ = make(self.top)
        locked, _ = make(self.top, "ecdsa", "256", "secret")
        await self.fails("does not offer", "login", self.address, "--accept-new", "--ssh-key", str(path))
        self.authorize(path.with_suffix(".pub"))
        said = await self.answer("login", self.address, "--ssh-key", str(path))
        self.assertEqual(said, {"host": self.address, "user": getpass.getuser(), "stored": False})
        await self.fails("takes none of your SSH keys", "envs", self.address, "--ssh-key", str(self.other()))
        await self.fails("passphrase", "envs", self.address, "--ssh-key", str(locked))
        await self.fails("no private key", "envs", self.address, "--ssh-key", str(path.with_suffix(".pub")))
        self.authorize(path.with_suffix(".pub"), 'from="192.0.2.1" ')
        await self.fails("takes none", "envs", self.address, "--ssh-key", str(path))

    def other(self) -> Path:
        (self.top / "other").mkdir()
        return make(self.top / "other")[0]

    async def test_agent(self) -> None:
        path, _ = make(self.top, "rsa", "2048")
        sock = self.agent()
        await until(lambda: os.path.exists(sock), "the agent listens")
        for key in (self.other(), path):
            subprocess.run(["ssh-add", "-q", key], env={**self.environ, "SSH_AUTH_SOCK": sock}, check=True)
        self.authorize(path.with_suffix(".pub"), "restrict ")
        await self.answer("envs", self.address, "--accept-new", SSH_AUTH_SOCK=sock)
        self.authorize(path.with_suffix(".pub"), 'command="true" ')
        # The next in turn is a password, which nobody is there to give.
        await self.fails("password is needed", "envs", self.address, SSH_AUTH_SOCK=sock)
        await self.fails("password is needed", "envs", self.address, SSH_AUTH_SOCK=str(self.top / "nowhere"))
        self.assertNotIn(b"failed login", self.daemon.output)
        # Somebody else listens there, and says what is no agent's.
        self.assertEqual(sshkeys.of_agent(str(paths.runtime() / "proxy.sock")), [])

    async def test_signature_of_another_connection(self) -> None:
        path, _ = make(self.top)
        self.authorize(path.with_suffix(".pub"))
        key = sshkeys.of_file(path, lambda: "")
        one = await session.connect(reactor, Local(self.note()))
        other = await session.connect(reactor, Local(self.note()))
        self.assertNotEqual(one.welcome.nonce, other.welcome.nonce)
        proofs: list[messages.KeyProof] = []
        prove = sshkeys.prove

        def keep(signers: Any, data: bytes) -> Any:
            proofs.extend(prove(signers, data))
            return proofs

        self.patch(sshkeys, "prove", keep)
        await one.login_by_key("", [key])
        self.assertEqual(len(proofs), 1)
        with self.assertRaises(LoginRefused):
            await other._login(messages.Login(method="ssh-key", keys=proofs), never)
        # The same for another user's name, or with none.
        with self.assertRaises(LoginRefused):
            await other._login(messages.Login(method="ssh-key", user="root2", keys=proofs), never)
        with self.assertRaises(LoginRefused):
            await other._login(messages.Login(method="ssh-key"), never)
        for each in (one, other):
            await each.close()

    def test_files_that_are_no_keys(self) -> None:
        path = self.top / "key"
        self.assertRaises(SshKeyUnusable, sshkeys.of_file, path, lambda: "")
        for content in (b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", os.urandom(1000)):
            path.write_bytes(content)
            self.assertRaises(SshKeyUnusable, sshkeys.of_file, path, lambda: "")
        locked, _ = make(self.top, "ecdsa", "256", "secret")
        self.assertRaises(SshKeyUnusable, sshkeys.of_file, locked, lambda: "wrong")
        self.assertTrue(sshkeys.of_file(locked, lambda: "secret").blob)

    async def test_switched_off(self) -> None:
        path, _ = make(self.top)
        self.authorize(path.with_suffix(".pub"))
        await self.stop(self.daemon)
        self.configure(f"{self.settings}ssh_keys = no\n")
        self.daemon = await self.start()
        connection = await session.connect(reactor, Local(self.note()))
        self.assertEqual(connection.welcome.methods, ["password"])
        with self.assertRaises(LoginMethod):
            await connection.login_by_key("", [sshkeys.of_file(path, lambda: "")])
        await connection.close()

    async def test_certificate_that_was_given_to_trust_is_shown_from_then_on(self) -> None:
        await self.stop(self.daemon)
        authority = Authority(self.top / "ca")
        certificate, key = authority.issue("ada", client=True)
        self.configure(f"[sksd]\n{self.settings}[tls]\nclient_ca = {authority.ca}\n")
        self.daemon = await self.start()
        token = paths.token().read_text()
        mine = ("--client-certificate", str(certificate), "--client-key", str(key))
        shown = ("--fingerprint", self.note().fingerprint)
        await self.sksd("trust", self.address, *shown)
        await self.fails("certificate from its own CA", "envs", self.address, SKSD_PASSWORD=token.strip())
        await self.answer("envs", self.address, *mine, SKSD_PASSWORD=token.strip())
        await self.sksd("trust", self.address, *shown, *mine)
        await self.answer("envs", self.address, SKSD_PASSWORD=token.strip())
        await self.fails("cannot be used", "envs", self.address, "--client-certificate", str(key))
        # For what stops the daemon's engines at the end.
        self.environ |= {"SKSD_CLIENT_CERTIFICATE": str(certificate), "SKSD_CLIENT_KEY": str(key)}

    async def test_audit(self) -> None:
        secret = "hunter2-which-is-not-it"
        await self.fails("does not accept", "envs", self.address, "--accept-new", SKSD_PASSWORD=secret)
        engine = (await self.answer("start", "local", os.path.dirname(paths.executables())))["engine"]["id"]
        await self.sksd("run", "local", "--engine", engine, "-c", "print(1)")
        await self.sksd("restart", "local", engine)
        await self.sksd("stop", "local", engine)
        file = paths.state() / "audit.log"
        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        happened = [entry["event"] for entry in entries]
        for event in (
            "daemon-started", "login-refused", "login", "engine-started", "link-opened", "link-closed",
            "engine-restarted", "engine-stopped", "engine-ended", "logout",
        ):  # fmt: skip
            self.assertIn(event, happened)
        started = next(entry for entry in entries if entry["event"] == "engine-started")
        login = next(entry for entry in entries if entry["event"] == "login" and entry["login"] == started["login"])
        self.assertEqual((login["user"], login["method"]), (getpass.getuser(), "password"))
        self.assertEqual((login["address"], started["engine"]), ("127.0.0.1", engine))
        token, tickets = paths.token().read_text().strip(), (paths.state() / "secret").read_text().strip()
        for text in (file.read_text(), self.daemon.output.decode()):
            for word in (secret, token, tickets, "v1."):
                self.assertNotIn(word, text)
        filter_file = ROOT / "etc" / "fail2ban" / "sksd.conf"
        [failregex] = re.findall("^failregex = (.*)$", filter_file.read_text(), re.MULTILINE)
        # As fail2ban does: the date is taken away, and <ADDR> stands for an address.
        regex = re.compile(failregex.replace("<ADDR>", "(?P<address>[0-9a-fA-F:.]+)"))
        lines = [re.sub(r"^\S+ ", "", line) for line in self.daemon.output.decode().splitlines()]
        self.assertEqual([found["address"] for line in lines if (found := regex.search(line))], ["127.0.0.1"])


class Refused(CommandCase):
    """SSH keys where a host has never heard of them."""

    async def test_none(self) -> None:
        connection = await session.connect(reactor, Local(self.note()))
        with self.assertRaises(SshKeyRefused):
            await connection.login_by_key("", [])
        with self.assertRaises(LoginMethod):
            await connection._login(messages.Login(method="ssh-key", keys=[sshkey.proof(b"k", b"s")]), never)
        await connection.close()
