"""What the keeper itself says to a kernel, and whether memory ran out."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from jupyter_client.session import Session
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import TestCase

from sksd.keeper import memory
from sksd.keeper.engine import Engine
from sksd.keeper.lifecycle import End, Lifecycle
from sksd.keeper.probe import Question
from sksd.keeper.sockets import RETRY
from sksd.link import zmtp
from sksd.wire import jupyter
from tests.unit.keeping import CONNECTION, KEY, Socket, Wire


class Messages(TestCase):
    """As jupyter_client has them."""

    def setUp(self) -> None:
        self.session = Session(key=KEY, check_pid=False)

    def read(self, frames: list[bytes]) -> dict[str, Any]:
        """As a front end reads them: with their signature checked."""
        before, parts = self.session.feed_identities(frames, copy=True)
        self.session.digest_history.clear()
        return dict(self.session.deserialize(parts, copy=True), before=before)

    def frames(self, metadata: dict[str, Any], *buffers: bytes) -> list[bytes]:
        """A message of jupyter_client's with a topic."""
        said = self.session.msg("stream", {"text": "é\n"}, metadata=metadata)
        return [b"topic", *self.session.serialize(said), *buffers]

    def test_request(self) -> None:
        said = self.read(jupyter.new(KEY, "kernel_info_request", {"a": 1}))
        self.assertEqual((said["msg_type"], said["content"]), ("kernel_info_request", {"a": 1}))

    def test_past(self) -> None:
        """Signed again, with what else was there, buffers and all."""
        frames = self.frames({"mine": [1, {"b": None}], "sksd": "old"}, b"one", b"", bytes(1000))
        old, new = self.read(frames), self.read(jupyter.as_past(KEY, frames, 3))
        self.assertEqual(new.pop("metadata"), {"mine": [1, {"b": None}], "sksd": {"past": True, "left": 3}})
        old.pop("metadata")
        self.assertEqual(new, old)

    def test_past_of_what_is_no_message(self) -> None:
        good = self.frames({})
        for frames in (
            [b"x"], [b"", b"y"], [jupyter.DELIMITER], good[:5], [*good[:5], b"[1]", *good[6:]],
            [*good[:5], b"{", *good[6:]], [*good[:5], b'{"\xff": 1}', *good[6:]],
        ):  # fmt: skip
            self.assertEqual(jupyter.as_past(KEY, frames, 3), frames)

    def test_without_a_key(self) -> None:
        self.assertEqual(jupyter.new(b"", "x", {})[1], b"")

    def test_answers(self) -> None:
        frames = self.frames({})
        self.assertEqual(jupyter.content_of(KEY, frames), {"text": "é\n"})
        broken = [*frames]
        broken[-1] = b"[]"
        signed = [jupyter._sign(KEY, broken[3:7]) if number == 2 else part for number, part in enumerate(broken)]
        for wrong in (broken, signed, frames[:6], [], [b"x"]):
            self.assertIsNone(jupyter.content_of(KEY, wrong))


class Questions(TestCase):
    """One answer to one question, on connections in memory."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.answers: list[dict[str, Any]] = []
        self.question = Question(self.clock, CONNECTION, "shell", "kernel_info_request", {}, self.answers.append)
        self.kernel = self.connect()

    def connect(self) -> Socket:
        """The kernel takes the newest connection."""
        found = Socket("shell", Wire(self.clock.unixClients[-1][1].buildProtocol(None)))
        found.turn()
        return found

    def answer(self, key: bytes = KEY) -> bytes:
        """On the wire."""
        return zmtp.join(jupyter.new(key, "kernel_info_reply", {"status": "ok"}))

    def test_answered(self) -> None:
        self.assertEqual(len(self.kernel.said), 1)
        data = self.answer(b"another key") + zmtp.join([b"garbage"]) + self.answer() + self.answer()
        for at in range(len(data)):
            self.kernel.wire.give(data[at : at + 1])
        self.assertEqual(self.answers, [{"status": "ok"}])
        self.assertTrue(self.kernel.wire.gone)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_half_an_answer(self) -> None:
        """It is asked again, and half a message of before forgotten."""
        self.kernel.wire.give(self.answer()[:-1])
        self.kernel.wire.lose()
        self.clock.advance(RETRY)
        again = self.connect()
        self.assertEqual(len(again.said), 1)
        again.wire.give(self.answer())
        self.assertEqual(self.answers, [{"status": "ok"}])

    def test_closed_while_connecting(self) -> None:
        self.kernel.wire.lose()
        self.clock.advance(RETRY)
        self.question.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_zmtp(self) -> None:
        """A kernel that answers nonsense is tried again."""
        self.kernel.wire.give(b"\xff" * 100)
        self.assertTrue(self.kernel.wire.gone)
        self.clock.advance(RETRY)
        self.assertEqual(len(self.clock.unixClients), 2)
        self.question.close()


class OutOfMemory(TestCase):
    """Files as Linux has them."""

    def setUp(self) -> None:
        self.top = Path(tempfile.mkdtemp())
        self.patch(memory, "_GROUPS", self.top)
        self.group = self.top / "user" / "mine"
        self.group.mkdir(parents=True)

    def watch(self, lines: str) -> memory.Memory:
        """With `lines` in /proc/PID/cgroup."""
        with patch.object(Path, "read_text", lambda _: lines):
            file = memory._events(1)
        with patch.object(memory, "_events", lambda _: file):
            return memory.Memory(1)

    def test_version_2(self) -> None:
        events = self.group / "memory.events"
        events.write_text("low 0\noom 1\noom_kill 3\n")
        watched = self.watch("0::/user/mine\n")
        self.assertFalse(watched.ran_out())
        events.write_text("low 0\noom 2\noom_kill 4\n")
        self.assertTrue(watched.ran_out())

    def test_version_1(self) -> None:
        for controllers in ("memory", "cpu,memory"):
            control = self.top / "memory" / "mine" / "memory.oom_control"
            control.parent.mkdir(parents=True, exist_ok=True)
            control.write_text("oom_kill_disable 0\noom_kill 0\n")
            watched = self.watch(f"5:{controllers}:/mine\n1:name=systemd:/x\n")
            control.write_text("oom_kill_disable 0\noom_kill 1\n")
            self.assertTrue(watched.ran_out())

    def test_unknown(self) -> None:
        """No such file, no such process, nonsense: nobody knows."""
        self.assertFalse(self.watch("0::/nowhere\n").ran_out())
        self.assertFalse(memory.Memory(2**22 + 1).ran_out())
        (self.group / "memory.events").write_text("what\n")
        self.assertFalse(self.watch("0::/user/mine\n").ran_out())

    def test_only_sigkill_is_of_memory(self) -> None:
        engine: Any = Engine.__new__(Engine)
        engine.record = SimpleNamespace(ended=None)
        engine._never_started, engine._memory = None, SimpleNamespace(ran_out=lambda: True)
        words = []
        for number in (signal.SIGKILL, signal.SIGSEGV):
            engine._life = Lifecycle(1.0)
            engine._life.ended(End(signal=number))
            words.append(engine.how())
        self.assertEqual(words, ["killed by SIGKILL, because memory ran out", "killed by SIGSEGV"])


