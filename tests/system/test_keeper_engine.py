"""Real kernels that say more than may wait, and kernels of another kind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

import psutil
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from sksd.errors import EngineEnded, KernelDied
from sksd.keeper import records
from sksd.keeper.engine import Sizes
from sksd.wire.names import DEAD, RUNNING
from tests.system.daemon import until
from tests.system.engines import LIMIT, MIB, EngineCase, printed, run


class StallTests(EngineCase):
    """A kernel that says more than may wait."""

    sizes = Sizes(journal=MIB, buffer=MIB, memory=256 * 1024)

    async def test_buffer(self) -> None:
        """20 MB printed while the link is cut: the kernel is stopped, says why, and all of it comes."""
        engine = await self.engine()
        joined = await self.join(engine)
        front = await self.client(joined)
        await until(lambda: engine.state == RUNNING and not engine.stalled, "it runs")
        await joined.cut()
        line = "x" * 99
        code = f"for n in range(2000): print('\\n'.join(['{line}'] * 100), flush=True)"
        running = deferToThread(run, front, code)
        await joined.connect()
        await joined.cut()
        if not engine.stalled:
            # The request may not have left in that moment.
            await joined.connect()
            await until(lambda: len(joined.near.core.streams) and joined.near.core.received > 2 * MIB, "it prints")
            await joined.cut()
        await until(lambda: engine.stalled, "it is stopped")
        self.assertIn("fills the buffer", str(engine.describe().reason))
        assert engine.record.identity is not None
        process = psutil.Process(engine.record.identity.pid)
        await until(lambda: process.status() == psutil.STATUS_STOPPED, "SIGSTOP has come", 3)
        await joined.connect()
        reply, said = await running
        self.assertEqual(reply["status"], "ok")
        text = printed(said)
        self.assertTrue(text == f"{line}\n" * 200_000, len(text))
        await until(lambda: engine.stalled is None, "it goes on")

    async def test_restarted_while_stopped(self) -> None:
        """And interrupted: what is stopped can be ended, too."""
        engine = await self.engine()
        joined = await self.join(engine)
        front = await self.client(joined)
        front.execute("while True: print('x' * 1000)")
        await until(lambda: joined.near.core.received > MIB, "it prints")
        await joined.cut()
        await until(lambda: engine.stalled, "it is stopped")
        engine.interrupt()
        await engine.restart(1.0)
        self.assertEqual((engine.state, engine.describe().state), (RUNNING, RUNNING))
        await engine.stop(5.0)
        self.assertEqual(engine.state, DEAD)
        # Who comes back is told.
        await joined.connect()
        self.assertIsInstance(await joined.near.when_ended().addTimeout(LIMIT, reactor), EngineEnded)

    async def test_full_disk(self) -> None:
        """Stopped, told, and when there is room it goes on; nothing is lost."""
        if os.getuid():
            raise SkipTest("only root can mount a small disk")
        small = self.folder / "s" / "sksd" / "engines"
        small.mkdir(mode=0o700, parents=True)
        mounted = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(small)]
        subprocess.run(mounted, check=True, capture_output=True)
        self.addCleanup(subprocess.run, ["umount", "-l", str(small)], check=True)
        engine = await self.engine()
        joined = await self.join(engine)
        front = await self.client(joined)
        with contextlib.suppress(OSError), open(small / "full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        running = deferToThread(run, front, "for n in range(3000): print(str(n) * 50, flush=True)")
        await until(lambda: engine.stalled, "it is stopped")
        self.assertIn("No space", str(engine.describe().reason))
        (small / "full").unlink()
        _, said = await running
        text = printed(said)
        self.assertTrue(text == "".join(str(n) * 50 + "\n" for n in range(3000)), len(text))
        self.assertIsNone(engine.describe().reason)


SILENT = """
import json, sys, zmq
from jupyter_client.session import Session
info = json.load(open(sys.argv[-1]))
session = Session(key=info["key"].encode(), check_pid=False)
shell = zmq.Context.instance().socket(zmq.ROUTER)
shell.bind(f"ipc://{info['ip']}-{info['shell_port']}")
count = 0
while True:
    names, request = session.recv(shell, mode=0)
    count += 1
    open("asked", "w").write(str(count))
    session.send(shell, "kernel_info_reply", {"status": "ok"}, parent=request, ident=names)
"""


class StartTests(EngineCase):
    """Kernels of another kind."""

    async def test_one_that_publishes_nothing(self) -> None:
        """It is ready soon all the same, and is not asked without end."""
        began = time.monotonic()
        engine = await self.engine("-c", SILENT)
        self.assertEqual(engine.state, RUNNING)
        self.assertLess(time.monotonic() - began, 10)
        self.assertLess(int((self.folder / "asked").read_text()), 60)

    async def test_one_that_dies(self) -> None:
        """Nothing is left of it."""
        with self.assertRaises(KernelDied):
            await self.engine("-c", "raise SystemExit(3)")
        self.assertEqual(list(records.folder().iterdir()), [])
        self.assertEqual(self.engines.all(), [])
