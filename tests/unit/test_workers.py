"""Workers that do not behave, in processes of their own."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet import defer, reactor
from twisted.trial import unittest

from sksd.conda import messages as conda
from sksd.errors import BadRequest, BadSpec, Cancelled, NoSuchTask, WorkerFailed
from sksd.proxy import workers
from sksd.proxy.workers import Silence, Workers
from sksd.wire.messages import Progress

DONE = '{"event": "done", "prefix": "/x", "name": "x", "changed": true}'


class Listening(Silence):
    """Fires when something is told."""

    def __init__(self) -> None:
        self.told: defer.Deferred[str] = defer.Deferred()

    def progress(self, event: Progress) -> None:
        """The first."""
        if not self.told.called:
            self.told.callback(event.step)


class WorkersTests(unittest.TestCase):
    """`program` is what a worker runs instead of the real thing."""

    timeout = 60

    def workers(self, program: str) -> Workers:
        self.idle = 0

        def idle() -> None:
            self.idle += 1

        command = (sys.executable, "-c", f"import sys, json, os, signal, time\njob = sys.stdin.read()\n{program}")
        return Workers(reactor, idle, os.environ, command)

    def job(self, **more: Any) -> conda.Job:
        return conda.Job(operation="create", prefix="/x", **more)

    async def test_done(self) -> None:
        """It gets the job, whole; what is no event is passed over; it leads a session of its own."""
        program = "assert json.loads(job)['name'] == 'x' * 300000\nprint('hm')\nassert os.getsid(0) == os.getpid()"
        here = self.workers(f"{program}\nprint({DONE!r})")
        done = await here.run(self.job(name="x" * 300_000), Silence())
        self.assertEqual((done.prefix, done.changed, here.busy(), self.idle), ("/x", True, 0, 1))

    async def test_errors(self) -> None:
        failed = '{"event": "error", "code": "bad-spec", "message": "", "fields": {"spec": "=="}}'
        for program, kind in ((f"print({failed!r}); sys.exit(1)", BadSpec), ("sys.exit(3)", WorkerFailed)):
            with self.assertRaises(kind):
                await self.workers(program).run(self.job(), Silence())
        self.assertEqual(self.idle, 1)

    async def test_does_not_end(self) -> None:
        """A worker that takes no notice of SIGTERM is killed."""
        self.patch(workers, "UNDO_LIMIT", 0.2)
        ready = '{"event": "progress", "step": "linking", "message": "m"}'
        program = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint({ready!r}, flush=True)\ntime.sleep(100)"
        here, listening = self.workers(program), Listening()
        with here.named("t"):
            running = defer.ensureDeferred(here.run(self.job(), listening, "t"))
            self.assertEqual(await listening.told, "linking")
            here.cancel("t")
            here.cancel("t")
            with self.assertRaises(WorkerFailed) as caught:
                await running
        self.assertIn("signal 9", str(caught.exception))

    async def test_waiting_is_cancelled(self) -> None:
        """The second change of one prefix waits, and need not."""
        here, listening = self.workers(f"time.sleep(0.3)\nprint({DONE!r})"), Listening()
        first = defer.ensureDeferred(here.run(self.job(), Silence()))
        with here.named("t"):
            with self.assertRaises(BadRequest), here.named("t"):
                pass
            second = defer.ensureDeferred(here.run(self.job(), listening, "t"))
            self.assertEqual(await listening.told, "waiting")
            here.cancel("t")
            with self.assertRaises(Cancelled):
                await second
        await first
        with self.assertRaises(NoSuchTask):
            here.cancel("t")
        self.assertEqual(self.idle, 1)

    async def test_cannot_be_started(self) -> None:
        here = Workers(reactor, lambda: None, os.environ, ("/no/such/program",))
        with self.assertRaises(WorkerFailed):
            await here.run(self.job(), Silence())
