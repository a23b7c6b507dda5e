"""The daemon itself: how it starts, how it refuses to, and who gets in."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import sys
from typing import Any

from twisted.internet import defer, reactor, threads
from zeroconf import Zeroconf

from sksd import paths
from sksd.client import discovery, session
from sksd.errors import HostGone, LoginMethod, LoginRefused, TimedOut, Unreachable
from sksd.wire.local import read_note
from tests.system.daemon import LIMIT, ROOT, DaemonCase, Local, until

TWISTD = (sys.executable, str(paths.executables() / "twistd"))


class Starting(DaemonCase):
    """Every way to start it."""

    async def works(self) -> None:
        """Somebody can log in."""
        here = await self.log_in()
        self.assertEqual((await here.host()).mode, "user")
        await here.close()

    async def test_twistd_in_the_foreground(self) -> None:
        daemon = await self.start()
        await self.works()
        # twistd ends itself by the signal that it was sent, once all is closed.
        self.assertIn(await self.stop(daemon), (0, -signal.SIGTERM))
        self.assertFalse(paths.daemon_note().exists())

    async def test_twistd_in_the_background(self) -> None:
        pid, log = self.top / "pid", self.top / "log"
        starting = self.run_process(*TWISTD, f"--pidfile={pid}", f"--logfile={log}", "-y", str(ROOT / "sksd.tac"))
        self.assertEqual(await starting.ended, 0, starting.output)
        await until(lambda: read_note(paths.daemon_note()), "the daemon listens")
        await self.works()
        os.kill(int(pid.read_text()), signal.SIGTERM)
        await until(lambda: not pid.exists(), "the daemon ends")

    async def test_twistd_plugin(self) -> None:
        daemon = await self.start(*TWISTD, "-n", "--pidfile=", "sksd", "--config", str(self.configuration))
        await self.works()
        await self.stop(daemon)

    async def test_environments_are_announced_where_that_was_asked_for(self) -> None:
        name = f"announces {self.top.name}"
        prefix = self.home / ".conda" / "envs" / "solver"
        (prefix / "conda-meta").mkdir(parents=True)
        (prefix / "conda-meta" / "history").touch()
        self.configure(f"name = {name}\nlisten = 127.0.0.1\nannounce_environments = yes\n")
        daemon = await self.start()
        browser = discovery.Browser(
            reactor, lambda _: None, lambda: Zeroconf(interfaces=["127.0.0.1"])
        )
        await browser.start()
        try:
            await until(
                lambda: any(host.name == name and "solver" in host.environments for host in browser.found),
                "the record tells of it",
            )
        finally:
            await browser.stop()
        await self.stop(daemon)

    async def test_sksd_serve(self) -> None:
        daemon = await self.start(sys.executable, "-m", "sksd", "serve")
        await self.works()
        self.assertIn(await self.stop(daemon, signal.SIGINT), (0, -signal.SIGINT))

    async def test_ended_by_somebody_in_a_hurry(self) -> None:
        daemon = await self.start(sys.executable, "-m", "sksd", "serve")
        await self.works()
        for _ in range(5):
            daemon.kill(signal.SIGINT)
            daemon.kill(signal.SIGTERM)
        await daemon.ended
        self.assertNotIn(b"Traceback", daemon.output)
        self.assertFalse(paths.daemon_note().exists())

    async def test_first_start_makes_private_files(self) -> None:
        daemon = await self.start()
        for name in ("certificate.pem", "key.pem", "token", "secret"):
            path = paths.state() / name
            self.assertTrue(path.exists(), name)
            if name != "certificate.pem":
                self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, name)
        self.assertEqual(stat.S_IMODE(paths.state().stat().st_mode), 0o700)
        before = self.note()
        await self.stop(daemon)
        daemon = await self.start()
        again = self.note()
        self.assertEqual((again.fingerprint, again.port), (before.fingerprint, before.port))
        await self.stop(daemon)

    async def test_second_daemon_is_refused(self) -> None:
        daemon = await self.start()
        second = self.run_process(sys.executable, "-m", "sksd", "serve")
        self.assertEqual(await second.ended, 1)
        self.assertIn(b"runs already", second.output)
        await self.works()
        await self.stop(daemon)


class Refusing(DaemonCase):
    """What keeps it from starting is one sentence, exit code 1, and no traceback."""

    async def refused(self, *words: str, **environ: str) -> None:
        """Both entry points say `words`, in one line."""
        for command in (
            (*TWISTD, "-n", "--pidfile=", "-y", str(ROOT / "sksd.tac")),
            (*TWISTD, "--pidfile=" + str(self.top / "p"), "--logfile=" + str(self.top / "l"), "sksd"),
        ):
            started = self.run_process(*command, env=environ)
            self.assertEqual(await started.ended, 1, started.output)
            said = [line for line in started.output.decode().splitlines() if "[-] Loading" not in line]
            self.assertEqual(len(said), 1, said)
            for word in words:
                self.assertIn(word, said[0])

    async def test_unknown_key(self) -> None:
        self.configure("name = lab\nprot = 7\n")
        await self.refused(str(self.configuration), "line 3", "prot", "port")

    async def test_wrong_type(self) -> None:
        self.configure("port = many\n")
        await self.refused(str(self.configuration), "line 2", "port = many")

    async def test_busy_port(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.configure(f"listen = 127.0.0.1\nport = {port}\n")
            await self.refused(str(self.configuration), "line 3", str(port), "taken")

    async def test_missing_file(self) -> None:
        missing = str(self.top / "none.conf")
        await self.refused(missing, SKSD_CONF=missing)

    async def test_file_that_others_may_write(self) -> None:
        self.configuration.chmod(0o664)
        await self.refused(str(self.configuration), "write")

    async def test_switched_off(self) -> None:
        self.configure("enable = no\n")
        await self.refused("enable", "line 2")

    async def test_state_that_cannot_be_written(self) -> None:
        (self.top / "s").rmdir()
        (self.top / "s").write_text("a file")
        await self.refused(str(self.top / "s"))
        (self.top / "s").unlink()


class Entering(DaemonCase):
    """Login, and what is not one."""

    async def test_wrong_token(self) -> None:
        daemon = await self.start()
        with self.assertRaises(LoginRefused):
            await self.log_in("wrong")
        with self.assertRaises(LoginRefused):
            await self.log_in(paths.token().read_text().strip(), "somebody")
        here = await self.log_in()
        await here.close()
        await self.stop(daemon)
        self.assertNotIn(paths.token().read_text().strip().encode(), daemon.output)
        self.assertNotIn(b"wrong", daemon.output)
        self.assertNotIn(b"Traceback", daemon.output)

    async def test_third_wrong_token_ends_the_connection(self) -> None:
        daemon = await self.start()
        connection = await session.connect(reactor, Local(self.note()))
        for _ in range(3):
            with self.assertRaises(LoginRefused):
                await connection.login("", "wrong")
        await until(lambda: connection._broker.disconnected, "the daemon hangs up")
        with self.assertRaises(HostGone):
            await connection.login("", paths.token().read_text().strip())
        await self.stop(daemon)

    async def test_unknown_method(self) -> None:
        daemon = await self.start()
        connection = await session.connect(reactor, Local(self.note()))
        with self.assertRaises(LoginMethod):
            await connection.login("", "x", "guest")
        await connection.close()
        await self.stop(daemon)

    async def test_garbage_leaves_the_daemon_up(self) -> None:
        daemon = await self.start()

        def throw(data: bytes, tls: bool, alpn: list[str]) -> None:
            with socket.create_connection(("127.0.0.1", self.note().port), 5) as raw:
                stream: Any = raw
                try:
                    if tls:
                        context = ssl.create_default_context()
                        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                        if alpn:
                            context.set_alpn_protocols(alpn)
                        stream = context.wrap_socket(raw)
                    stream.sendall(data)
                    while stream.recv(65536):
                        pass
                except OSError:
                    pass

        noise = os.urandom(100_000)
        for tls, alpn in ((False, []), (True, []), (True, ["sksd-pb/1"]), (True, ["sksd-link/1"]), (True, ["h2"])):
            await threads.deferToThread(throw, noise, tls, alpn).addTimeout(LIMIT, reactor)
        here = await self.log_in()
        await here.close()
        await self.stop(daemon)
        self.assertNotIn(b"Traceback", daemon.output)
        self.assertLess(len(daemon.output.splitlines()), 40)

    async def test_old_tls_is_refused(self) -> None:
        daemon = await self.start()

        def shake() -> str:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with socket.create_connection(("127.0.0.1", self.note().port), 5) as raw:
                try:
                    context.wrap_socket(raw)
                except OSError as refused:
                    return type(refused).__name__
            return "accepted"

        self.assertNotEqual(await threads.deferToThread(shake), "accepted")
        await self.stop(daemon)

    async def test_nobody_there(self) -> None:
        daemon = await self.start()
        route = Local(self.note())
        await self.stop(daemon)
        with self.assertRaises(Unreachable) as caught:
            await session.connect(reactor, route)
        self.assertIn("connection refused", str(caught.exception))

    async def test_somebody_else_there(self) -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            daemon = await self.start()
            route = Local(self.note())
            await self.stop(daemon)
            route.port = deaf.getsockname()[1]
            with self.assertRaises(TimedOut):
                await session.connect(reactor, route, timeout=0.5)

    async def test_connection_that_dies_without_login(self) -> None:
        daemon = await self.start()
        connection = await session.connect(reactor, Local(self.note()))
        daemon.kill(signal.SIGSTOP)
        logging_in = defer.ensureDeferred(connection.login("", "x"))
        daemon.kill(signal.SIGKILL)
        with self.assertRaises(HostGone):
            await logging_in
        await daemon.ended
        paths.daemon_note().unlink()
