"""A worker ends at the worst of times: what is there afterwards is what was there before."""

from __future__ import annotations

import signal
import time

from sksd.conda.messages import Done, Failed, Progress
from tests.system.worker import Worker, WorkerCase

BASE, MANY = "sksd-test-base", "sksd-test-many"
PHASES = ("solving", "downloading", "linking", "pip", "registering")


class Kills(WorkerCase):
    """kill -9 in each phase, then a repair; SIGTERM in each phase."""

    def setUp(self) -> None:
        super().setUp()
        self.wheel("sksdpip", "1.0")

    def made(self) -> Worker:
        """A creation with every phase in it, its package cache empty so that there is something to fetch."""
        self.environ["RATTLER_CACHE_DIR"] = str(self.top / f"cache-{time.monotonic_ns()}")
        return self.start("create", "new", specs=["python", MANY], pip=["sksdpip"])

    def changed(self) -> Worker:
        """The same for a change."""
        return self.start("add", "old", specs=[f"{MANY} >=2", f"{BASE} >=2"], pip=["sksdpip"])

    def nothing_left(self) -> None:
        self.assertFalse(self.prefix("new").exists())
        self.assertNotIn(str(self.prefix("new")), self.registered())
        self.assertEqual(self.pending(), [])

    def test_kill_a_creation(self) -> None:
        for phase in PHASES:
            worker = self.made()
            self.assertIsNotNone(worker.step(phase), phase)
            worker.kill()
            self.assertFalse(any(isinstance(event, Done) for event in worker.events), phase)
            done = self.done("repair").events[-1]
            assert isinstance(done, Done)
            self.assertEqual(done.changed, phase != "solving", phase)
            self.nothing_left()

    def test_cancel_a_creation(self) -> None:
        for phase in PHASES:
            worker = self.made()
            worker.step(phase)
            last = worker.kill(signal.SIGTERM)
            if phase == "registering" and isinstance(last, Done):
                # Its last step was done before the signal came.
                self.done("remove", "new")
                continue
            assert isinstance(last, Failed), (phase, last)
            self.assertEqual(last.code, "cancelled", phase)
            self.assertIn("removed" if phase != "solving" else "Nothing was changed", last.message)
            self.nothing_left()

    def test_kill_a_change(self) -> None:
        self.done("create", "old", specs=["python", f"{MANY} 1.0", f"{BASE} <2"])
        (self.prefix("old") / "share" / "mine.txt").write_text("mine")
        before, packages = self.files("old"), self.packages("old")
        history = (self.prefix("old") / "conda-meta" / "history").read_bytes()
        for phase in (*PHASES, "unlinking"):
            worker = self.changed()
            self.assertIsNotNone(worker.step(phase), phase)
            worker.kill()
            self.done("repair")
            self.assertEqual(self.packages("old"), packages, phase)
            after = self.files("old")
            self.assertEqual({**before, **after}.keys() - (before.keys() & after.keys()), set(), phase)
            self.assertEqual(after, before, phase)
            self.assertEqual((self.prefix("old") / "conda-meta" / "history").read_bytes(), history, phase)
            self.assertEqual(self.pending(), [])
        self.changed().end()
        self.assertEqual(self.packages("old")[BASE], "2.0")

    def test_cancel_a_change(self) -> None:
        self.done("create", "old", specs=["python", f"{MANY} 1.0", f"{BASE} <2"])
        before = self.files("old")
        for phase in ("linking", "pip"):
            worker = self.changed()
            worker.step(phase)
            last = worker.kill(signal.SIGTERM)
            assert isinstance(last, Failed)
            self.assertIn("It is as it was before.", last.message)
            self.assertIn("undoing", worker.steps)
            self.assertEqual(self.files("old"), before, phase)

    def test_the_next_job_mends(self) -> None:
        worker = self.made()
        worker.step("linking")
        worker.kill()
        self.assertTrue(self.prefix("new").exists())
        done = self.done("create", "new", specs=[BASE]).events[-1]
        assert isinstance(done, Done)
        self.assertIn("cut off", done.notes[0])
        self.assertEqual(self.packages("new"), {BASE: "2.0"})

    def test_repair_leaves_the_living_alone(self) -> None:
        worker = self.made()
        worker.step("linking")
        self.done("repair")
        self.assertIsInstance(worker.end(), Done)

    def test_a_removal_is_finished(self) -> None:
        self.done("create", "old", specs=[MANY])
        worker = self.start("remove", "old")
        worker.step("unlinking")
        worker.kill(signal.SIGTERM)
        self.assertIsInstance(worker.events[-1], Done)
        self.assertFalse(self.prefix("old").exists())

    def test_progress_is_no_flood(self) -> None:
        began = time.monotonic()
        worker = self.made()
        worker.end()
        took = time.monotonic() - began
        count = sum(isinstance(event, Progress) and event.step == "linking" for event in worker.events)
        self.assertLess(count, 10 * took + 5)
