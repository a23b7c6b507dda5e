"""A shared host: each person's kernels run as that person, and nobody comes near another's."""

from __future__ import annotations

import base64
import grp
import json
import os
import pwd
import re
import signal
import statistics
import subprocess
import time
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet import defer, protocol, reactor
from twisted.python import failure
from twisted.trial import unittest

from sksd.client import session, sshkeys
from sksd.errors import (
    AccountRefused,
    BadRequest,
    GateGone,
    HostGone,
    LoginMethod,
    LoginRefused,
    NoSuchEngine,
    ProxyFailed,
    SksdError,
    SshKeyRefused,
)
from sksd.link import frames
from sksd.link.hello import goodbye_frame, hello_frame, new_hello, read_goodbye
from tests.system.accounts import HostCase, as_user, run
from tests.system.daemon import LIMIT, ROOT, Local, until


def about(pid: int | None, *names: str) -> list[str]:
    """Lines of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}
    return [found[name] for name in names]


class Linking(protocol.Protocol):
    """Sends HELLO with a ticket; `answer` fires with the kind of the first frame and its body."""

    def __init__(self, ticket: str) -> None:
        self.answer: defer.Deferred[tuple[int, bytes]] = defer.Deferred()
        self.over: defer.Deferred[None] = defer.Deferred()
        self._ticket = ticket
        self._said = b""

    def connectionMade(self) -> None:
        """HELLO."""
        self.transport.write(hello_frame(new_hello(self._ticket)))  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        """WELCOME or GOODBYE."""
        self._said += data
        if len(self._said) >= frames.HEADER.size and not self.answer.called:
            length = frames.HEADER.unpack_from(self._said)[0] & 0xFFFFFF
            end = frames.HEADER.size + length
            if len(self._said) >= end:
                self.answer.callback((self._said[0], self._said[frames.HEADER.size : end]))

    def connectionLost(self, reason: failure.Failure = protocol.connectionDone) -> None:
        """The host has read GOODBYE, or has said it."""
        self.over.callback(None)


class AccountCase(HostCase):
    """What the tests share."""

    async def link(self, ticket: str) -> SksdError | None:
        """Open a link by nothing but a ticket; None when it is welcome."""
        link = await session.open_link(reactor, Local(self.note()), lambda: Linking(ticket))
        kind, body = await link.answer.addTimeout(LIMIT, reactor)
        # One that was only cut would be waited for.
        link.transport.write(goodbye_frame(None))  # type: ignore[union-attr]
        await link.over.addTimeout(LIMIT, reactor)
        return None if kind == frames.WELCOME else read_goodbye(body)

    async def refused(self, error: type[SksdError], user: str, password: str | None = None) -> SksdError:
        """A login that fails as `error`."""
        with self.assertRaises(error) as caught:
            await self.log_in(user, password)
        return caught.exception

    def gate(self) -> psutil.Process:
        """The gate's own process, not one of its children."""
        found = [each for each in self.named(r"-m sksd\.gate \{") if each.ppid() == self.daemon_pid]
        return found[0]

    @property
    def daemon_pid(self) -> int:
        """The part that reads the network."""
        return self.note().pid

    def above(self, pid: int | None) -> tuple[psutil.Process, psutil.Process, psutil.Process]:
        """An engine's keeper, proxy and session."""
        keeper, proxy, holder = psutil.Process(pid).parents()[:3]
        words = [each.cmdline()[-1 if each.uids().real else -2] for each in (keeper, proxy, holder)]
        self.assertEqual(words, ["sksd.keeper", "sksd.proxy", "sksd.gate.session"])
        return keeper, proxy, holder

    def nothing_of_roots_has_a_network_socket(self) -> None:
        """`ps` and `ss` in one."""
        listening = 0
        for process in self.named("."):
            inet = process.net_connections("inet")
            listening += len(inet)
            if process.uids().real == 0:
                self.assertEqual(inet, [], process.cmdline())
        self.assertGreater(listening, 0)
        daemon = self.daemon_pid
        uid = str(pwd.getpwnam(self.host.daemon_account).pw_uid)
        self.assertEqual(about(daemon, "Uid", "Groups"), ["\t".join([uid] * 4), ""])
        self.assertEqual(about(daemon, "CapPrm", "CapEff", "NoNewPrivs"), ["0" * 16, "0" * 16, "1"])


class People(AccountCase):
    """Two people at once."""

    settings = "[limits]\nopen_files = 777\nprocesses = 500\n"

    async def test_each_kernel_is_its_owners_and_nobody_elses(self) -> None:
        daemon = await self.start()
        engines, tickets, sessions = {}, {}, {}
        for user in (self.host.ada, self.host.bob):
            sessions[user] = here = await self.log_in(user)
            engines[user] = await self.spin_up(here)
            tickets[user] = (await (await here.engine(engines[user].id)).ticket()).ticket
        for user, engine in engines.items():
            self.is_as_by_a_login(user, engine.pid)
        self.nothing_of_roots_has_a_network_socket()
        self.keeps_out(self.host.bob, self.host.ada, engines[self.host.ada].pid)
        await self.keeps_out_over_the_wire(sessions[self.host.bob], engines[self.host.ada].id, tickets)
        for password in (self.host.password, *tickets.values()):
            self.assertNotIn(password.encode(), daemon.output)
        self.assertNotIn(b"Traceback", daemon.output)

    def is_as_by_a_login(self, user: str, pid: int | None) -> None:
        """Ids, groups, limits, variables."""
        who = pwd.getpwnam(user)
        self.assertEqual(about(pid, "Uid", "Gid"), ["\t".join([str(each)] * 4) for each in (who.pw_uid, who.pw_gid)])
        groups = sorted(map(int, about(pid, "Groups")[0].split()))
        self.assertEqual(groups, sorted(os.getgrouplist(user, who.pw_gid)))
        self.assertEqual(grp.getgrnam(f"sksdg{self.host.mark}").gr_gid in groups, user == self.host.ada)
        self.assertEqual(about(pid, "Umask", "CapInh", "CapPrm", "CapEff", "CapAmb"), ["0077"] + ["0" * 16] * 4)
        process = psutil.Process(pid)
        self.assertEqual((process.cwd(), os.getsid(pid or 0)), (who.pw_dir, pid))
        limits = Path(f"/proc/{pid}/limits").read_text()
        self.assertRegex(limits, r"Max processes +500 +500 ")
        self.assertRegex(limits, r"Max open files +777 +777 ")
        environ = process.environ()
        for name, value in (("HOME", who.pw_dir), ("USER", user), ("LOGNAME", user), ("SHELL", "/bin/bash")):
            self.assertEqual(environ[name], value)
        self.assertFalse([name for name in environ if name.startswith("SKSD")])
        runtime = f"/run/user/{who.pw_uid}"
        self.assertEqual(environ.get("XDG_RUNTIME_DIR"), runtime if user == self.host.bob else None)
        self.assertEqual(process.cmdline()[-1].startswith(runtime), user == self.host.bob)
        # The session is root's, and between it and the kernel there is nobody else's process.
        above = [(parent.uids().real, parent.cmdline()[-2:][0]) for parent in process.parents()]
        holder = next(n for n, (uid, word) in enumerate(above) if (uid, word) == (0, "sksd.gate.session"))
        self.assertEqual({uid for uid, _ in above[:holder]}, {who.pw_uid})

    def keeps_out(self, one: str, other: str, pid: int | None) -> None:
        """`one` cannot see, signal, trace or listen in on the kernel `pid` of `other`."""
        process = psutil.Process(pid)
        uid = pwd.getpwnam(other).pw_uid
        runtime = Path(process.cmdline()[-1]).parent
        keeper, proxy, _ = self.above(pid)
        self.assertTrue(list(runtime.glob("k-*")))
        denied = (
            ["kill", "-0", str(pid)],
            ["kill", "-INT", str(proxy.pid)],
            ["kill", "-INT", str(keeper.pid)],
            ["cat", f"/proc/{keeper.pid}/environ"],
            ["ls", f"/proc/{keeper.pid}/fd"],
            ["cat", f"/proc/{pid}/environ"],
            ["head", "-c1", f"/proc/{pid}/mem"],
            ["ls", f"/proc/{pid}/fd"],
            ["ls", str(runtime)],
            ["ls", str(runtime.parent.parent)],
            ["ls", process.cwd()],
            ["cat", f"{process.cwd()}/.local/state/sksd/proxy.log"],
            ["ls", str(self.top / "state" / "gate")],
            ["ls", str(self.top / "state" / "daemon")],
            ["touch", str(self.top / "run" / "x")],
            *(
                [self.host.python, "-c", f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"]
                for path in (
                    *runtime.glob("k-*"), runtime.parent.parent / "proxy.sock", runtime.parent.parent / "keeper.sock"
                )
            ),
        )  # fmt: skip
        for command in denied:
            done = as_user(one, *command)
            self.assertNotEqual(done.returncode, 0, command)
            self.assertRegex(done.stderr, "[Pp]ermi(ssion denied|tted)", command)
        self.assertEqual(process.uids().real, uid)
        # Where the home is open, what sksd keeps in it is not.
        home = Path(pwd.getpwnam(other).pw_dir)
        home.chmod(0o755)
        self.addCleanup(home.chmod, 0o700)
        kept = [each for each in (home / ".local" / "state" / "sksd").rglob("*") if each.is_file()]
        self.assertLessEqual({"proxy.log", "keeper.log"}, {each.name for each in kept})
        self.assertTrue([each for each in kept if ".journal" in str(each)])
        reading = "import sys\nfor path in sys.argv[1:]:\n try: open(path)\n except PermissionError: print(path)"
        for tried, refused in ((one, True), (other, False)):
            done = as_user(tried, self.host.python, "-c", reading, *kept)
            self.assertEqual(done.stdout.splitlines(), [str(each) for each in kept if refused])

    async def keeps_out_over_the_wire(self, bob: session.Session, engine: str, tickets: dict[str, str]) -> None:
        """Neither by an engine's id, nor by a ticket made out of one's own."""
        with self.assertRaises(NoSuchEngine):
            await bob.engine(engine)
        self.assertIsNone(await self.link(tickets[self.host.ada]))
        version, _, mac = tickets[self.host.bob].split(".")
        payload = base64.urlsafe_b64encode(json.dumps([self.host.ada, engine]).encode()).decode().rstrip("=")
        for forged in (f"{version}.{payload}.{mac}", tickets[self.host.ada][:-2], "", "v1.."):
            error = await self.link(forged)
            self.assertEqual(error and error.code, "ticket-refused")

    async def test_person_who_is_deleted_while_his_kernel_runs(self) -> None:
        await self.start()
        user = self.host.add("eve")
        here = await self.log_in(user)
        engine = await self.spin_up(here)
        reference = await here.engine(engine.id)
        ticket = (await reference.ticket()).ticket
        subprocess.run(["userdel", "--force", user], capture_output=True, check=False)
        self.assertRaises(KeyError, pwd.getpwnam, user)
        await self.refused(LoginRefused, user)
        error = await self.link(ticket)
        self.assertEqual(error and error.code, "ticket-refused")
        self.assertEqual([each.id for each in await here.engines()], [engine.id])
        self.assertEqual((await reference.shutdown(0.0)).state, "dead")
        await here.close()
        await (await self.log_in(self.host.ada)).close()

    async def test_home_that_is_missing(self) -> None:
        await self.start()
        user = self.host.add("zoe")
        home = Path(pwd.getpwnam(user).pw_dir)
        home.rename(home.with_suffix(".away"))
        with self.assertRaises(ProxyFailed) as caught:
            await (await self.log_in(user)).engines()
        self.assertIn(str(home), str(caught.exception))


class Sessions(AccountCase):
    """What PAM gives a session, and until when."""

    async def test_session_is_the_persons_tree(self) -> None:
        service, limits = Path("/etc/pam.d/sksd"), self.top / "limits"
        if service.exists():
            raise unittest.SkipTest("this machine has an /etc/pam.d/sksd of its own")
        ada, told = self.host.ada, self.top / "told"
        limits.write_text(f"{ada} hard nofile 333\n")
        (self.top / "env").write_text("FROM_PAM=yes\nXDG_STATE_HOME=/nowhere\n")
        tell = self.top / "tell"
        tell.write_text(f'#!/bin/sh\necho "$PAM_TYPE $PAM_USER $PAM_SERVICE" >> {told}\n')
        tell.chmod(0o755)
        self.addCleanup(service.unlink)
        service.write_text(
            (ROOT / "etc" / "pam.d" / "sksd").read_text()
            + f"session required pam_limits.so conf={limits}\n"
            + f"session required pam_env.so envfile={self.top}/env\n"
            + f"session optional pam_exec.so {tell}\n"
        )
        daemon = await self.start()
        self.assertNotIn(b"is missing", daemon.output)
        here = await self.log_in(ada)
        engine = await self.spin_up(here)
        self.assertRegex(Path(f"/proc/{engine.pid}/limits").read_text(), r"Max open files +333 +333 ")
        environ = psutil.Process(engine.pid).environ()
        self.assertEqual((environ["FROM_PAM"], "XDG_STATE_HOME" in environ), ("yes", False))
        opened = f"open_session {ada} sksd\n"
        self.assertEqual(told.read_text(), opened)
        # It outlasts login and proxy, and ends with the last of the person's processes.
        keeper, proxy, holder = self.above(engine.pid)
        await here.close()
        await self.stop(daemon)
        for each in (proxy, keeper):
            each.kill()
            await until(lambda each=each: not each.is_running(), "it ends")
            self.assertEqual(told.read_text(), opened)
        self.assertEqual(psutil.Process(engine.pid).parent(), holder)
        psutil.Process(engine.pid).kill()
        await until(lambda: told.read_text() == opened + f"close_session {ada} sksd\n", "the session is closed")


class Entering(AccountCase):
    """Who gets in."""

    async def test_passwords_that_are_none(self) -> None:
        daemon = await self.start()
        ada = self.host.ada
        attempts = [
            self.refused(LoginRefused, user, password)
            for user, password in (
                (ada, "wrong"), (ada, ""), (ada, self.host.password + "\0"), (ada, self.host.password + "\0x"),
                ("", self.host.password), ("root", "x"), (self.host.daemon_account, ""), ("../etc/passwd", "x"),
                (ada, "\xe9" * 4096),
            )
        ]  # fmt: skip
        attempts += [
            self.refused(BadRequest, user, password)
            for user, password in ((ada, "\ud800"), (ada + "\0", self.host.password), (ada, "x" * 4097))
        ]
        # A megabyte before login is more than a stranger may say.
        attempts.append(self.refused(HostGone, ada, "x" * 600_000))
        await defer.gatherResults([defer.ensureDeferred(each) for each in attempts])
        with self.assertRaises(LoginMethod):
            await (await self.connect()).login(ada, "", "guest")
        # From the network nobody is known without a password.
        with self.assertRaises(LoginMethod):
            await (await self.connect()).login(ada, "", "local")
        self.assertEqual((await self.log_in(ada)).user, ada)
        self.assertNotIn(b"Traceback", daemon.output)
        self.assertNotIn(self.host.password.encode(), daemon.output)

    async def test_ssh_key(self) -> None:
        daemon = await self.start()
        ada, key = self.host.ada, Ed25519PrivateKey.generate()
        file = self.authorize(ada, key)
        path = self.top / "key"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        signers: list[sshkeys.Signer] = [sshkeys.of_file(path, lambda: "")]
        here = await (await self.connect()).login_by_key(ada, signers)
        self.assertEqual(here.user, ada)
        self.is_hers((await self.spin_up(here)).pid)
        # Another daemon, another gate: the key opens that, too.
        daemon.kill(signal.SIGKILL)
        await daemon.over
        daemon = await self.start()
        here.route = Local(self.note())
        self.assertEqual(len(await here.engines()), 1)
        for user in (self.host.bob, "root", self.host.daemon_account, "nobody-there", ""):
            with self.assertRaises(SshKeyRefused):
                await (await self.connect()).login_by_key(user, signers)
        file.write_text("")
        with self.assertRaises(SshKeyRefused):
            await (await self.connect()).login_by_key(ada, signers)
        audit = (self.top / "state" / "daemon" / "audit.log").read_text()
        entries = [json.loads(line) for line in audit.splitlines()]
        self.assertEqual({each["method"] for each in entries if each["event"] == "login"}, {"ssh-key"})
        # People's agents offer keys of other hosts.
        self.assertNotIn(b"failed login", daemon.output)
        self.assertNotIn(b"Traceback", daemon.output)

    def is_hers(self, pid: int | None) -> None:
        self.assertEqual(psutil.Process(pid).uids().real, pwd.getpwnam(self.host.ada).pw_uid)

    async def test_ssh_keys_switched_off(self) -> None:
        self.configure("ssh_keys = no\n")
        await self.start()
        connection = await self.connect()
        self.assertEqual(connection.welcome.methods, ["password"])
        with self.assertRaises(LoginMethod):
            await connection.login(self.host.ada, "", "ssh-key")

    async def test_unknown_and_wrong_are_alike(self) -> None:
        await self.start()
        took: dict[str, list[float]] = {self.host.ada: [], "nobody-of-that-name": []}
        said = set()

        async def attempt(user: str) -> None:
            connection = await self.connect()
            begun = time.monotonic()
            with self.assertRaises(LoginRefused) as caught:
                await connection.login(user, "wrong")
            took[user].append(time.monotonic() - begun)
            said.add(str(caught.exception))

        await defer.gatherResults([defer.ensureDeferred(attempt(user)) for _ in range(6) for user in took])
        known, unknown = took.values()
        self.assertEqual(len(said), 1)
        self.assertLess(max(min(known), min(unknown)), min(max(known), max(unknown)), took)
        # The gate's floor and the daemon's pause: what PAM took is hidden below them.
        self.assertGreaterEqual(min(known + unknown), 1.95, took)
        self.assertLess(abs(statistics.median(known) - statistics.median(unknown)), 0.25, took)

    async def test_closed_accounts_say_why_only_to_their_owner(self) -> None:
        await self.start()
        user = self.host.add("old")
        for commands, words in (
            ([["chage", "-d", "0", user]], "must be changed"),
            ([["chage", "-d", "2020-01-01", user], ["usermod", "-e", "2020-01-01", user]], "expired"),
        ):
            for command in commands:
                run(*command)
            attempts = (self.refused(AccountRefused, user), self.refused(LoginRefused, user, "wrong"))
            error, _ = await defer.gatherResults([defer.ensureDeferred(each) for each in attempts])
            self.assertIn(words, str(error))
        run("usermod", "-e", "", user)
        await (await self.log_in(user)).close()
        # With a locked password no password is right.
        run("usermod", "-L", user)
        await self.refused(LoginRefused, user)

    async def test_local_needs_no_password(self) -> None:
        await self.start()
        environment = str(self.host.python.parent.parent)
        for user in (self.host.ada, self.host.bob):
            done = await self.sksd(user, "run", "local", environment, "-c", "import os; print(os.getuid())")
            self.assertEqual(done.stdout.strip(), str(pwd.getpwnam(user).pw_uid), done.stderr)
        done = await self.sksd(self.host.bob, "engines", "local", "--user", self.host.ada)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("password is needed", done.stderr)
        for user in ("root", self.host.daemon_account):
            done = await self.sksd(user, "engines", "local")
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn("does not accept", done.stderr)
        # The daemon writes it, as the account that it goes on as.
        audit = self.top / "state" / "daemon" / "audit.log"
        self.assertEqual(audit.owner(), self.host.daemon_account)
        entries = [json.loads(line) for line in audit.read_text().splitlines()]
        for user in (self.host.ada, self.host.bob):
            mine = {entry["event"] for entry in entries if entry.get("user") == user}
            self.assertLessEqual({"login", "engine-started", "link-opened", "engine-ended", "logout"}, mine)
            self.assertIn(f"this machine ({user})", [entry.get("address") for entry in entries])


class Surviving(AccountCase):
    """What goes on when parts are killed."""

    async def test_daemon_is_killed(self) -> None:
        daemon = await self.start()
        here = await self.log_in(self.host.ada)
        engine = await self.spin_up(here)
        reference = await here.engine(engine.id)
        ticket = (await reference.ticket()).ticket
        gate = self.gate()
        daemon.kill(signal.SIGKILL)
        await until(lambda: not gate.is_running(), "the gate ends with the daemon")
        self.assertIn("No sksd daemon", (await self.sksd(self.host.ada, "engines", "local")).stderr)
        await self.start()
        # By the ticket alone, before anybody has logged in.
        self.assertIsNone(await self.link(ticket))
        here = await self.log_in(self.host.ada)
        self.assertEqual([each.pid for each in await here.engines()], [engine.pid])

    async def test_daemon_and_gate_are_killed_while_an_engine_speaks(self) -> None:
        daemon = await self.start()
        count = "import time\nfor number in range(400):\n    print(f'<{number}>', flush=True)\n    time.sleep(0.02)"
        running = self.run_process(
            self.host.python, "-m", "sksd", "run", "local", str(self.host.python.parent.parent), "-c", count,
            user=self.host.ada,
        )  # fmt: skip
        await running.says(b"<20>")
        kernel = self.named("spyder_kernels")[0]
        keeper, proxy, holder = self.above(kernel.pid)
        for _ in range(2):
            gate = self.gate()
            daemon.kill(signal.SIGKILL)
            await until(lambda gate=gate: not gate.is_running(), "the gate ends with the daemon")
            daemon = await self.start()
        self.assertEqual(await running.ended.addTimeout(LIMIT, reactor), 0, running.output)
        self.assertEqual(re.findall(rb"<(\d+)>", running.output), [b"%d" % each for each in range(400)])
        self.assertTrue(keeper.is_running())
        await self.stop(daemon)
        await until(lambda: not holder.is_running(), "the session of the last process ends")
        self.assertFalse(keeper.is_running() or proxy.is_running())

    async def test_twistd_in_the_background(self) -> None:
        pid, log = self.top / "pid", self.top / "log"
        twistd = (self.host.python, "-P", "-c", "from twisted.scripts.twistd import run; run()")
        starting = self.run_process(*twistd, f"--pidfile={pid}", f"--logfile={log}", "sksd")
        self.assertEqual(await starting.ended.addTimeout(LIMIT, reactor), 0, starting.output)
        await until(lambda: (self.top / "run" / "daemon.json").exists(), "the daemon listens")
        self.assertEqual((await self.log_in(self.host.ada)).user, self.host.ada)
        self.nothing_of_roots_has_a_network_socket()
        daemon = psutil.Process(self.daemon_pid)
        daemon.terminate()
        await until(lambda: not self.named("twistd|sksd.gate "), "both end")
        self.assertNotIn("Traceback", log.read_text())

    async def test_gate_is_killed(self) -> None:
        daemon = await self.start()
        here = await self.log_in(self.host.ada)
        engine = await self.spin_up(here)
        connection = await self.connect()
        self.gate().kill()
        with self.assertRaises(GateGone):
            await connection.login(self.host.ada, self.host.password)
        await daemon.ended.addTimeout(LIMIT, reactor)
        self.assertTrue(psutil.pid_exists(engine.pid or 0))

    async def test_proxy_is_killed(self) -> None:
        daemon = await self.start()
        here = await self.log_in(self.host.ada)
        engine = await self.spin_up(here)
        keeper, proxy, holder = self.above(engine.pid)
        proxy.kill()
        await until(lambda: keeper.ppid() == holder.pid, "the session takes the keeper over")
        self.assertEqual([each.pid for each in await here.engines()], [engine.pid])
        reference = await here.engine(engine.id)
        await reference.shutdown(0.0)
        await self.stop(daemon)
        await until(lambda: not holder.is_running(), "the session of the last process ends")

    async def test_keeper_is_killed(self) -> None:
        daemon = await self.start()
        here = await self.log_in(self.host.ada)
        engine = await self.spin_up(here)
        keeper, proxy, holder = self.above(engine.pid)
        keeper.kill()
        await until(lambda: psutil.Process(engine.pid).ppid() == holder.pid, "the session takes the engine over")
        self.assertEqual([each.pid for each in await here.engines()], [engine.pid])
        self.assertEqual([each.ppid() for each in self.named("sksd.keeper")], [proxy.pid])
        await (await here.engine(engine.id)).shutdown(0.0)
        await self.stop(daemon)
        await until(lambda: not holder.is_running(), "the session of the last process ends")


class Refusing(AccountCase):
    """What keeps a shared host's daemon from starting is one sentence."""

    async def sentence(self, code: int = 1) -> str:
        """What it says."""
        started = self.run_process(self.host.python, "-P", "-m", "sksd", "serve")
        self.assertEqual(await started.ended, code, started.output)
        said = started.output.decode()
        self.assertEqual(said.count("\n"), 1, said)
        return said

    async def test_not_by_root(self) -> None:
        environ = {**self.environ, "HOME": "/"}
        done = as_user(self.host.ada, self.host.python, "-P", "-m", "sksd", "serve", **environ)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"line 2: mode = system .* only root can start it")

    async def test_no_account_to_run_as(self) -> None:
        (self.top / "sksd.conf").write_text("[sksd]\nmode = system\nrun_as = nobody-here\n")
        self.assertIn("line 3: there is no account nobody-here", await self.sentence())
        (self.top / "sksd.conf").write_text("[sksd]\nmode = system\nrun_as = root\n")
        self.assertIn("useradd --system", await self.sentence())

    async def test_interpreter_that_others_cannot_reach(self) -> None:
        self.host.top.chmod(0o700)
        try:
            said = await self.sentence()
        finally:
            self.host.top.chmod(0o755)
        self.assertIn(f"other accounts cannot reach what is at {self.host.top}. Install sksd where", said)

    async def test_sksd_that_only_root_finds(self) -> None:
        packages = next(self.host.python.parents[1].glob("lib/python3.*/site-packages"))
        (packages / "sksd").rename(packages / "away")
        (self.top / "sksd").symlink_to(packages / "away")
        self.environ["PYTHONPATH"] = str(self.top)
        try:
            said = await self.sentence()
        finally:
            (packages / "away").rename(packages / "sksd")
        self.assertIn("without PYTHONPATH and the working folder it finds no sksd", said)

    async def test_interpreter_that_others_can_change(self) -> None:
        folder = self.host.python.parent
        os.chown(folder, pwd.getpwnam(self.host.ada).pw_uid, -1)
        try:
            said = await self.sentence()
        finally:
            os.chown(folder, 0, -1)
        self.assertIn(f"somebody else than root could change it, who owns what is at {folder}.", said)
