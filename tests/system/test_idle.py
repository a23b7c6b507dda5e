"""Real kernels that nobody uses, and some that only look like it."""

from __future__ import annotations

import time

from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from sksd.keeper.engine import Engine
from sksd.keeper.engines import Engines
from sksd.keeper.looking import Looking
from sksd.wire.names import DEAD, RUNNING
from tests.system.daemon import until
from tests.system.engines import LIMIT, EngineCase, run

#: Seconds without use that these tests allow.
ALLOWED = 2.0


class IdleTests(EngineCase):
    """`idle_timeout`."""

    def allow(self, seconds: float | None = ALLOWED) -> None:
        """Begin to look."""
        self.looking = Looking(reactor, self.engines)
        self.looking.allow(seconds)
        self.addCleanup(self.looking.stop)

    async def outlast(self, engine: Engine) -> None:
        """Wait until another engine, which nobody uses, has been stopped; `engine` goes on."""
        other = await self.engine()
        began = time.monotonic()
        await until(lambda: other.state == DEAD, "the unused one is stopped", LIMIT)
        self.assertGreaterEqual(time.monotonic() - began, ALLOWED * 0.9)
        self.assertEqual(engine.state, RUNNING)

    async def left(self, code: str) -> Engine:
        """An engine with `code` sent to it, and nobody at it any more."""
        engine = await self.engine()
        joined = await self.join(engine)
        front = await self.client(joined)
        await deferToThread(run, front, "1")
        front.execute(code)
        await until(lambda: engine.use({}).busy, "it has begun")
        front.stop_channels()
        joined.near.end()
        await until(lambda: not engine.describe().links, "nobody is attached")
        return engine

    async def test_unused_is_stopped_and_says_why(self) -> None:
        engine = await self.engine()
        self.allow()
        await until(lambda: engine.state == DEAD and engine.closed, "it is stopped")
        self.assertEqual(engine.describe().reason, "stopped after 2 s without use")
        # Whoever looks for it finds it.
        self.assertEqual(self.engines.all(), [engine])

    async def test_what_it_said_is_kept(self) -> None:
        engine = await self.left("import time; time.sleep(0.5); print('at last')")
        await until(lambda: not engine.use({}).busy, "it has said it")
        self.allow()
        await until(lambda: engine.state == DEAD and engine.closed, "it is stopped")
        self.assertTrue(engine.unheard)
        later = Engines(reactor, self.logs, lambda _: None)
        later.adopt()
        self.assertEqual([each.describe().reason for each in later.all()], ["stopped after 2 s without use"])

    async def test_busy_without_a_word_or_work(self) -> None:
        engine = await self.left("import time; time.sleep(1000)")
        self.allow()
        await self.outlast(engine)

    async def test_work_in_a_process_of_its_own(self) -> None:
        child = "subprocess.Popen([sys.executable, '-c', 'while True: pass'])"
        engine = await self.left(f"import subprocess, sys, time; p = {child}; time.sleep(0.5)")
        await until(lambda: not engine.use({}).busy, "the kernel itself is idle")
        self.allow()
        await self.outlast(engine)

    async def test_attached(self) -> None:
        engine = await self.engine()
        joined = await self.join(engine)
        self.allow()
        await self.outlast(engine)
        joined.near.end()
        await until(lambda: engine.state == DEAD, "it is stopped once its front end is gone")

    async def test_restarted_while_busy(self) -> None:
        engine = await self.left("import time; time.sleep(1000)")
        await engine.restart(0.5)
        self.allow()
        await until(lambda: engine.state == DEAD, "what was under way before does not count")

    async def test_off(self) -> None:
        self.allow(None)
        self.assertFalse(self.looking._looking.running)
