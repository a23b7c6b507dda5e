"""Two machines on a network: two network namespaces joined by a cable. Needs root and iproute2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from twisted.internet import reactor
from twisted.trial import unittest

from sksd import paths
from tests.system.daemon import LIMIT, DaemonCase, Process, until

IP = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class TwoMachines(DaemonCase):
    """A daemon on one, a person on the other."""

    def setUp(self) -> None:
        if os.getuid() or IP is None:
            raise unittest.SkipTest("network namespaces need root and iproute2")
        super().setUp()
        self.host, self.desk = (f"sksd{os.getpid()}{side}" for side in "hd")
        for name in (self.host, self.desk):
            self.ip("netns", "add", name)
            self.addCleanup(self.ip, "netns", "del", name)
        self.ip("link", "add", "cable", "netns", self.host, "type", "veth", "peer", "cable", "netns", self.desk)
        for number, name in enumerate((self.host, self.desk), 1):
            self.ip("-n", name, "link", "set", "lo", "up")
            self.ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            self.ip("-n", name, "link", "set", "cable", "up")
            self.ip("-n", name, "route", "add", "default", "dev", "cable")
        self.configure("name = Big machine\n")
        # The person has folders of their own: nothing is shared but the network.
        folders = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME")
        self.theirs = {name: str(self.top / "desk" / name) for name in folders}
        for folder in self.theirs.values():
            os.makedirs(folder, 0o700)

    def ip(self, *arguments: str) -> None:
        """Run ip(8)."""
        assert IP is not None
        subprocess.run([IP, *arguments], check=True, capture_output=True)

    def sksd(self, *arguments: str, **environ: str) -> Process:
        """The command line on the person's machine."""
        command = (IP or "", "netns", "exec", self.desk, sys.executable, "-m", "sksd", *arguments)
        return self.run_process(*command, env={**self.theirs, **environ})

    async def says(self, *arguments: str, **environ: str) -> tuple[int, str]:
        """(exit code, output) of a command."""
        process = self.sksd(*arguments, **environ)
        code: Any = await process.ended.addTimeout(LIMIT, reactor)
        return code, process.output.decode()

    async def test_find_trust_run_and_a_cable_pulled(self) -> None:
        serve = (sys.executable, "-m", "sksd", "serve")
        daemon = await self.start(IP or "", "netns", "exec", self.host, *serve)
        token = {"SKSD_PASSWORD": paths.token().read_text().strip()}
        _, found = await self.says("hosts", "--json")
        self.assertTrue(found.startswith("["), found)
        [host] = json.loads(found)
        self.assertEqual((host["name"], host["addresses"][0], host["alive"]), ("Big machine", "10.77.0.1", True))
        code, output = await self.says("run", "big machine", "-c", "6*7", **token)
        self.assertEqual(code, 1, output)
        self.assertIn(host["fingerprint"], output)
        code, output = await self.says("trust", "big machine", "--fingerprint", host["fingerprint"])
        self.assertEqual(code, 0, output)
        self.assertEqual(await self.says("run", "big machine", "-c", "print(6*7)", **token), (0, "42\n"))
        program = "print('busy', flush=True); print('heard', input())"
        running = self.sksd("run", "big machine", "-c", program, **token)
        await running.says(b"busy")
        self.ip("-n", self.host, "link", "set", "cable", "down")
        await running.says(b"reconnecting")
        self.ip("-n", self.host, "link", "set", "cable", "up")
        await running.says(b"back")
        running.transport.write(b"you\n")  # type: ignore[attr-defined]
        self.assertEqual(await running.ended.addTimeout(LIMIT, reactor), 0, running.output)
        self.assertIn(b"heard you", running.output)
        self.assertNotIn(b"Traceback", running.output)
        code, output = await self.says("stop", "big machine", "--all", **token)
        self.assertEqual(code, 0, output)
        await self.stop(daemon)
        self.assertEqual(json.loads((await self.says("hosts", "--json"))[1]), [])
        await until(lambda: not self.named("relay"), "no relay is left")
