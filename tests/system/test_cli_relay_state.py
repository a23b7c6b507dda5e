"""`sksd relay --state` as a person meets it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from twisted.internet import reactor, threads

from sksd import paths
from tests.system.cli import Command, CommandCase
from tests.system.daemon import LIMIT


class RelayState(CommandCase):
    """One daemon for each test."""

    async def relay(self, *arguments: str) -> Command:
        command = self.begin("relay", "local", *arguments, "--state", str(self.home / "state"))
        await command.says(b".json")
        return command

    async def kill(self, command: Command) -> None:
        command.kill(signal.SIGKILL)
        await command.over

    async def test_the_same_again(self) -> None:
        """Place, key and engine stay, without a password; a second relay, or another command, is refused."""
        state = str(self.home / "state")
        command = await self.relay(sys.prefix)
        await self.fails("A relay that runs has", "relay", "local", sys.prefix, "--state", state)
        file = Path(command.out.strip())
        info = json.loads(file.read_text())
        await self.kill(command)
        await self.fails("belongs to a link to engine", "relay", "local", "--engine", "x", "--state", state)
        paths.token().rename(self.home / "token")
        command = await self.relay(sys.prefix)
        (self.home / "token").rename(paths.token())
        self.assertEqual(Path(command.out.strip()), file)
        self.assertEqual(json.loads(file.read_text()), info)
        command.kill(signal.SIGTERM)
        code = await command.ended.addTimeout(LIMIT, reactor)
        self.assertEqual(code, 128 + signal.SIGTERM, command.output.decode())
        left = [Path(state), file, *paths.runtime().glob("relay-*")]
        self.assertEqual([str(path) for path in left if path.exists()], [])

    async def test_engine_ended_meanwhile(self) -> None:
        """The front end gets the rest of what the engine had said, then the relay ends and says why."""
        engine = (await self.answer("start", "local", sys.prefix))["engine"]["id"]
        command = await self.relay("--engine", engine)
        client = BlockingKernelClient()
        client.load_connection_file(command.out.strip())
        client.start_channels()
        self.addCleanup(client.stop_channels)
        await threads.deferToThread(client.wait_for_ready, LIMIT)
        code = "import time\nprint('before', flush=True)\ntime.sleep(2)\nprint('after', flush=True)"
        request = client.execute(code)
        said = b""
        while b"before" not in said:
            message = await threads.deferToThread(client.get_iopub_msg, LIMIT)
            said += message["content"].get("text", "").encode()
        await self.kill(command)
        await self.sksd("run", "local", "--engine", engine, "-c", "1")
        await self.sksd("stop", "local", engine)
        command = await self.relay("--engine", engine)
        while b"after" not in said:
            message = await threads.deferToThread(client.get_iopub_msg, LIMIT)
            if message["parent_header"].get("msg_id") == request:
                said += message["content"].get("text", "").encode()
        self.assertEqual(said, b"before\nafter\n")
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 1)
        self.assertIn("has ended", command.err)
        self.assertFalse((self.home / "state").exists())
