"""Finding, trusting, logging in, and engines, at the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from zeroconf import ServiceInfo, Zeroconf

from sksd import paths
from sksd.wire.announcement import Announcement, encode
from sksd.wire.names import SERVICE_TYPE
from tests.system.cli import CommandCase
from tests.system.daemon import LIMIT


class Hosts(CommandCase):
    """With a daemon that announces itself."""

    settings = "name = Ada's test host\nlisten = 127.0.0.1\n"

    async def discovered(self) -> Any:
        """Our daemon in the listing; announcing takes it a second."""
        for _ in range(10):
            for each in await self.answer("hosts"):
                if each["port"] == self.note().port:
                    return each
        raise AssertionError("it was not found")

    async def test_found_trusted_used(self) -> None:
        host = await self.discovered()
        self.assertEqual((host["name"], host["alive"]), ("Ada's test host", True))
        self.assertEqual(host["fingerprint"], self.note().fingerprint)
        await self.fails("not known here", "info", "Ada's test host")
        await self.sksd("trust", "Ada's test host", "--fingerprint", host["fingerprint"])
        token = paths.token().read_text().strip()
        info = await self.answer("info", "ada's TEST host", SKSD_PASSWORD=token)
        self.assertEqual(info["name"], "Ada's test host")
        self.assertEqual([each["key"] for each in await self.answer("trust", "--list")], ["ada's test host"])
        await self.sksd("trust", "Ada's test host", "--forget")
        await self.fails("not known here", "info", "Ada's test host")

    async def test_host_that_does_not_answer_is_marked(self) -> None:
        record = Announcement(version="0", protocol=1, name="Gone", hostname="gone", methods=("password",))
        info = ServiceInfo(
            SERVICE_TYPE, f"Gone.{SERVICE_TYPE}", port=1, properties=encode(record), server="gone-sksd.local.",
            parsed_addresses=["127.0.0.1"],
        )  # fmt: skip
        # Not in the reactor's thread, whose loop it would take over.
        zeroconf = await deferToThread(Zeroconf, interfaces=["127.0.0.1"])
        self.addCleanup(deferToThread, zeroconf.close)
        await deferToThread(zeroconf.register_service, info, allow_name_change=True)
        await self.discovered()
        found = {each["name"]: each["alive"] for each in await self.answer("hosts")}
        self.assertEqual((found["Gone"], found["Ada's test host"]), (False, True))
        self.assertRegex((await self.sksd("hosts")).out, "Gone .* does not answer\n")


class Access(CommandCase):
    """By address."""

    async def test_wrong_password(self) -> None:
        await self.fails("does not accept this user and password", "info", "local", SKSD_PASSWORD="wrong")
        command = await self.sksd("info", "local", "--password-stdin", stdin="wrong\n", code=1)
        self.assertIn("does not accept", command.err)
        paths.token().rename(self.top / "token")
        await self.fails("A password is needed", "info", "local")
        (self.top / "token").rename(paths.token())

    async def test_certificate_changed(self) -> None:
        address = f"127.0.0.1:{self.note().port}"
        token = paths.token().read_text().strip()
        await self.sksd("info", address, "--accept-new", SKSD_PASSWORD=token)
        await self.sksd("info", address, SKSD_PASSWORD=token)
        await self.stop(self.daemon)
        for path in paths.state().rglob("*.pem"):
            path.unlink()
        self.daemon = await self.start()
        address = f"127.0.0.1:{self.note().port}"
        sentence = await self.fails("has changed", "info", address, "--accept-new", SKSD_PASSWORD=token)
        self.assertIn("--forget", sentence)
        # The note of the daemon itself is newer than anything that was remembered.
        await self.sksd("info", "local")

    async def test_unknown_hosts(self) -> None:
        await self.fails("No host named nobody-here", "info", "nobody-here", "--timeout", "1")
        await self.fails("connection refused", "info", "127.0.0.1:1")
        await self.fails("is not a host", "info", "a/b")

    async def test_something_else_answers(self) -> None:
        from twisted.internet import protocol

        class Silent(protocol.Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(b"SSH-2.0-OpenSSH\r\n")

        port = reactor.listenTCP(  # type: ignore[attr-defined]
            0, protocol.Factory.forProtocol(Silent), interface="127.0.0.1"
        )
        self.addCleanup(port.stopListening)
        await self.fails("is not an sksd daemon", "info", f"127.0.0.1:{port.getHost().port}")

    async def test_guests_are_not_taken(self) -> None:
        await self.fails("login method 'guest'", "info", "local", "--guest")

    async def test_login_without_a_keyring(self) -> None:
        token = paths.token().read_text().strip()
        address = f"127.0.0.1:{self.note().port}"
        await self.fails("has no keyring", "login", address, "--accept-new", SKSD_PASSWORD=token)

    async def test_login_with_a_keyring(self) -> None:
        ring = {"PYTHON_KEYRING_BACKEND": "keyrings.alt.file.PlaintextKeyring", "XDG_DATA_HOME": str(self.top / "d")}
        token = paths.token().read_text().strip()
        address = f"127.0.0.1:{self.note().port}"
        await self.sksd("login", address, "--accept-new", SKSD_PASSWORD=token, **ring)
        await self.sksd("info", address, **ring)
        await self.sksd("login", address, "--forget", **ring)
        await self.fails("A password is needed", "info", address, **ring)

    async def test_proxy_that_hangs(self) -> None:
        await self.answer("envs", "local")
        [proxy] = self.named("sksd.proxy")
        proxy.suspend()
        try:
            done = await self.sksd("envs", "local", "--timeout", "0.7", code=1)
        finally:
            proxy.resume()
        self.assertIn("did not answer within 0.7 s", done.err)

    async def test_environments(self) -> None:
        found = await self.answer("envs", "local")
        own = [each for each in found if each["own"]]
        self.assertEqual([each["prefix"] for each in own], [sys.prefix])
        self.assertTrue(own[0]["fits"])
        wanting = await self.answer("envs", "local", "--kernels", ">=99")
        self.assertFalse(any(each["fits"] for each in wanting))
        self.assertIn("99", wanting[0]["reason"])
        table = await self.sksd("envs", "local")
        self.assertIn(sys.prefix, table.out)
        self.assertNotIn("\x1b", table.out)

    async def test_bad_environments(self) -> None:
        bare = self.top / "bare"
        import venv

        venv.create(bare, with_pip=False, symlinks=True)
        for environment, words in {
            "nope": "There is no environment nope",
            "a/b": "a/b is not an environment",
            "/": "does not fit",
            str(bare): "kernel",
        }.items():
            await self.fails(words, "run", "local", environment, "-c", "1")
        outcome = await self.answer("start", "local", sys.prefix, "--kernels", ">=99", code=1)
        self.assertEqual((outcome["outcome"], outcome["engine"]), ("environment incompatible", None))
        await self.fails("is not a folder", "start", "local", sys.prefix, "--cwd", "/no/such")


class Engines(CommandCase):
    """Started, used, ended."""

    async def test_life(self) -> None:
        options = ["--label", "x", "--cwd", "/", "--env", "GREETING=hi"]
        outcome = await self.answer("start", "local", sys.prefix, *options)
        engine = outcome["engine"]["id"]
        self.assertEqual(outcome["outcome"], "started")
        listed = await self.answer("engines", "local")
        self.assertEqual([(each["id"], each["label"], each["state"]) for each in listed], [(engine, "x", "running")])
        code = "import os; x = 42; print(os.getcwd(), os.environ['GREETING'])"
        self.assertEqual((await self.sksd("run", "local", "--engine", engine[:4], "-c", code)).out, "/ hi\n")
        self.assertEqual((await self.sksd("run", "local", "--engine", engine, "-c", "x")).out, "42\n")
        await self.sksd("run", "local", "--engine", engine, "-c", "import os; os.write(2, b'to the log'); None")
        self.assertIn("to the log", (await self.sksd("log", "local", engine, "-n", "3")).out)
        await self.sksd("interrupt", "local", engine)
        await self.sksd("restart", "local", engine)
        await self.sksd("run", "local", "--engine", engine, "-c", "x", code=1)
        stopped = await self.answer("stop", "local", engine)
        how = "stopped from this machine"
        self.assertEqual([(each["state"], each["reason"]) for each in stopped], [("dead", how)])
        for command in (["interrupt", "local"], ["log", "local"], ["stop", "local"]):
            await self.fails(f"There is no engine {engine}", *command, engine)

    async def test_relay(self) -> None:
        for transport in ("ipc", "tcp"):
            file = self.home / f"{transport}.json"
            command = self.begin("relay", "local", "--transport", transport, "--file", str(file))
            await command.says(b".json")
            info = json.loads(file.read_text())
            self.assertEqual((info["transport"], file.stat().st_mode & 0o777), (transport, 0o600))
            if transport == "ipc":
                self.assertEqual(os.stat(Path(info["ip"]).parent).st_mode & 0o777, 0o700)
            command.kill(signal.SIGTERM)
            self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 143)
            self.assertFalse(file.exists())
            self.assertEqual(list(paths.runtime().glob("relay-*")), [])
        self.assertEqual(await self.answer("engines", "local"), [])

    async def test_relay_ends_with_the_engine(self) -> None:
        engine = (await self.answer("start", "local", sys.prefix))["engine"]["id"]
        command = self.begin("relay", "local", "--engine", engine)
        await command.says(b".json")
        await self.sksd("stop", "local", engine)
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 1)
        self.assertIn("has ended", command.err)

    async def test_what_a_killed_relay_leaves_goes_with_the_next(self) -> None:
        engine = (await self.answer("start", "local", sys.prefix))["engine"]["id"]
        command = self.begin("relay", "local", "--engine", engine)
        await command.says(b".json")
        command.kill(signal.SIGKILL)
        await command.ended
        self.assertEqual(len(list(paths.runtime().glob("relay-*"))), 1)
        await self.sksd("run", "local", "--engine", engine, "-c", "1")
        self.assertEqual(list(paths.runtime().glob("relay-*")), [])
        Path(command.out.strip()).unlink()
        await self.forget_links()

    async def test_engine_of_a_killed_run_ends(self) -> None:
        command = self.begin("run", "local", "-c", "import time\nprint('go', flush=True)\ntime.sleep(99)")
        await command.says(b"go")
        [engine] = await self.answer("engines", "local")
        self.assertEqual(engine["links"], 1)
        command.kill(signal.SIGKILL)
        await command.ended

        async def links() -> int:
            return int((await self.answer("engines", "local"))[0]["links"])

        while await links():
            pass
        # It waits for the sleeper; what matters is that the sockets go.
        await self.sksd("interrupt", "local", engine["id"])
        await self.sksd("run", "local", "--engine", engine["id"], "-c", "1")
        await self.forget_links()
