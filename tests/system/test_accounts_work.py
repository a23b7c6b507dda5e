"""Work on a shared host: relays and environments of people, while the daemon comes and goes."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from twisted.internet import reactor, threads

from sksd.client import session
from sksd.wire import messages
from tests import channel
from tests.system.accounts import HostCase
from tests.system.daemon import LIMIT, until

COUNT = "import time\nfor number in range(300):\n    print(number, flush=True)\n    time.sleep(0.02)"


class Work(HostCase):
    """What a person does there."""

    def events(self, user: str) -> list[dict[str, Any]]:
        """The audit log's lines about somebody."""
        lines = (self.top / "state" / "daemon" / "audit.log").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry.get("user") == user]

    async def test_environment_is_its_owners(self) -> None:
        there, ada, bob = self.top / "channel", self.host.ada, self.host.bob
        await threads.deferToThread(shutil.copytree, channel.channel(), there, copy_function=os.link)
        self.configure(f"[environments]\nchannels = {there.as_uri()}\n")
        await self.start()
        home = Path(pwd.getpwnam(ada).pw_dir)
        self.addCleanup(shutil.rmtree, home / ".conda", True)
        self.addCleanup(shutil.rmtree, home / ".cache", True)
        create = ("env", "create", "local", "mine", "--no-kernel", "--require", "sksd-test-base=1.0")
        done = await self.sksd(ada, *create)
        self.assertEqual(done.returncode, 0, done.stderr)
        prefix = home / ".conda" / "envs" / "mine"
        made = [home / ".cache", *prefix.rglob("*"), *(home / ".cache").rglob("*")]
        self.assertTrue((prefix / "conda-meta" / "history").exists())
        self.assertEqual({path.lstat().st_uid for path in made}, {pwd.getpwnam(ada).pw_uid})
        mine = {"event": "environment-changed", "environment": str(prefix), "change": "create_environment"}
        found = [each for each in self.events(ada) if each["event"] == "environment-changed"]
        self.assertEqual([{**each, **mine} for each in found], found)
        self.assertEqual([each["address"] for each in found], [f"this machine ({ada})"])
        # What bob asks for is done as bob, who may do nothing to it.
        for command in (("env", "remove", "local", str(prefix), "--yes"), ("env", "packages", "local", str(prefix))):
            done = await self.sksd(bob, *command)
            self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
            self.assertNotIn("Traceback", done.stderr)
        self.assertTrue(prefix.exists())
        done = await self.sksd(ada, "env", "remove", "local", "mine", "--yes")
        self.assertEqual((done.returncode, prefix.exists()), (0, False), done.stderr)
        self.assertEqual(self.events(ada)[-2]["change"], "remove_environment")

    async def test_relay_goes_on_when_daemon_and_gate_were_killed(self) -> None:
        daemon = await self.start()
        file, ada = Path(pwd.getpwnam(self.host.ada).pw_dir, "relay.json"), self.host.ada
        environment = str(self.host.python.parent.parent)
        relay = self.run_process(
            self.host.python, "-m", "sksd", "relay", "local", environment, "--transport", "tcp", "-f", str(file),
            user=ada,
        )  # fmt: skip
        await relay.says(b"relay.json")
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.start_channels()
        self.addCleanup(client.stop_channels)
        await threads.deferToThread(client.wait_for_ready, LIMIT)
        said: list[str] = []

        def output(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])

        counting = threads.deferToThread(
            client.execute_interactive, COUNT, timeout=2 * LIMIT, output_hook=output, allow_stdin=False
        )
        for _ in range(2):
            before = len(said)
            await until(lambda before=before: len(said) > before + 20, "the engine speaks")
            gates = self.named(r"-m sksd\.gate \{")
            self.assertTrue(gates)
            daemon.kill(signal.SIGKILL)
            await until(lambda gates=gates: not any(each.is_running() for each in gates), "the gate ends, too")
            daemon = await self.start()
        reply = await counting
        self.assertEqual(reply["content"]["status"], "ok")
        self.assertEqual("".join(said).split(), [str(each) for each in range(300)])
        relay.kill(signal.SIGTERM)
        await relay.ended.addTimeout(LIMIT, reactor)
        await until(lambda: not self.named("spyder_kernels"), "the engine ends with its relay")
        self.assertNotIn(b"Traceback", relay.output)

    async def test_changes_and_engines_of_another_login_are_told(self) -> None:
        await self.start()
        one, other = [await self.log_in(self.host.ada) for _ in range(2)]
        theirs = await self.log_in(self.host.bob)
        told: list[tuple[str, messages.Event]] = []

        def listen(here: session.Session, name: str) -> None:
            here.on_event = lambda event: told.append((name, event))

        listen(other, "ada")
        listen(theirs, "bob")
        await theirs.engines()
        engine = await self.spin_up(one)
        await until(lambda: [1 for _, event in told if event.engine and event.engine.id == engine.id], "it is told")
        await (await one.engine(engine.id)).shutdown(0.0)
        await theirs.engines()
        self.assertEqual({name for name, event in told if event.engine is not None}, {"ada"})
