"""Kernels that are stopped, for want of room, and kernels that die."""

from __future__ import annotations

import errno
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import TestCase

from sksd.errors import EngineEnded
from sksd.keeper import journal, sessions
from sksd.link import zmtp
from tests.unit.keeping import MIB, WORDS, Front, World, message, plain, texts

ENDED = EngineEnded(engine="e", how="exit code 1", log="")


class Stalls(TestCase):
    """A kernel that says more than can be kept is stopped, and loses nothing."""

    def setUp(self) -> None:
        self.world = World(self, buffer=MIB, journal=MIB)
        self.relay = self.world.relay()
        self.front = Front(self.world, self.relay, "iopub")

    def fill(self, words: list[bytes]) -> None:
        """Say so much that it must be stopped; what is not read waits in the socket."""
        for word in words:
            self.world.publish(*message(word, b"{}", bytes(100_000)))

    def test_buffer(self) -> None:
        self.relay.cut()
        self.fill(WORDS[:40])
        [reason] = self.world.stalls
        self.assertIn("fills the buffer", str(reason))
        self.assertLess(self.world.channels.journal.end, 2 * MIB)
        self.relay.connect()
        self.world.advance(1.5)
        self.assertEqual(texts(self.front), plain(WORDS[:40]))
        self.assertEqual(self.world.stalls[-1], None)

    def test_a_link_that_ends_relieves(self) -> None:
        self.relay.cut()
        self.fill(WORDS[:40])
        self.relay.link.end()
        [link] = self.world.channels.links
        link.end()
        self.assertEqual(self.world.stalls[1:], [None])

    def test_dead_while_stalled(self) -> None:
        """What its socket still held comes, too; half a message does not."""
        self.relay.cut()
        self.fill(WORDS[:40])
        self.world.publish_raw(zmtp.join(message(WORDS[40]))[:-1])
        self.world.state = "dead"
        last = self.world.channels.last()
        done = ensureDeferred(last)
        self.world.settle()
        self.world.down()
        self.successResultOf(done)
        self.world.bury(ENDED)
        self.relay.connect()
        self.world.advance(1.0)
        self.assertEqual(texts(self.front), plain(WORDS[:40]))
        self.assertIsInstance(self.successResultOf(self.relay.link.when_ended()), EngineEnded)

    def test_restarted_while_stalled(self) -> None:
        """A new kernel is read at once, whoever is behind; and it is stopped when it, too, says more."""
        self.relay.cut()
        self.fill(WORDS[:40])
        self.world.state = "restarting"
        self.world.channels.let_go()
        self.world.settle()
        self.world.down()
        self.world.up, self.world.state = True, "starting"
        self.world.advance(0.5)
        [socket] = self.world.sockets("iopub")
        self.assertEqual((socket.topics, socket.wire.producerState), ([b""], "producing"))
        self.fill(WORDS[40:50])
        self.assertEqual(self.world.stalls[1:], [None])
        self.world.state = "running"
        self.fill(WORDS[50:52])
        self.assertEqual(len(self.world.stalls), 3)
        self.relay.connect()
        self.world.advance(1.5)
        self.assertEqual(texts(self.front), plain(WORDS[:52]))

    def test_full_disk(self) -> None:
        self.fill(WORDS[:2])

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        raw = zmtp.join(message(WORDS[2])) + zmtp.join(message(WORDS[3]))
        with patch.object(journal, "write", full):
            self.world.publish_raw(raw[:-10])
            self.world.publish_raw(raw[-10:])
            self.fill(WORDS[4:6])
            self.world.advance(3.0)
            [reason] = self.world.stalls
            self.assertIn("No space", str(reason))
        self.world.advance(1.5)
        self.assertEqual(self.world.stalls[1:], [None])
        self.assertEqual(texts(self.front), plain(WORDS[:6]))

    def test_full_disk_and_the_kernel_dies_in_a_message(self) -> None:
        """What was whole is kept, half a message is none."""

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        halves = zmtp.join(message(WORDS[1])), zmtp.join(message(WORDS[2]))
        self.world.publish_raw(zmtp.join(message(WORDS[0])) + halves[0][:10])
        with patch.object(journal, "write", full):
            self.world.publish_raw(halves[0][10:] + halves[1][:20])
            self.world.down()
            self.world.up = True
        self.world.advance(2.0)
        self.world.publish(*message(WORDS[3]))
        self.assertEqual(texts(self.front), plain([WORDS[0], WORDS[1], WORDS[3]]))


class Ends(TestCase):
    """The kernel has died."""

    def setUp(self) -> None:
        self.world = World(self)

    def die(self) -> None:
        """As the engine does it."""
        self.world.die()
        self.successResultOf(ensureDeferred(self.world.last))
        self.world.bury(ENDED)

    def test_everything_then_why(self) -> None:
        relay = self.world.relay()
        front, shell = (Front(self.world, relay, channel) for channel in ("iopub", "shell"))
        self.world.publish(*message(WORDS[0]))
        self.world.publish_raw(zmtp.join(message(WORDS[1]))[:-1])
        self.die()
        self.assertEqual(texts(front), plain(WORDS[:1]))
        self.assertTrue(front.whole and front.wire.gone and shell.wire.gone)
        self.assertIsInstance(self.successResultOf(relay.link.when_ended()), EngineEnded)
        # Nobody has missed anything.
        self.assertEqual(self.world.channels.seen, self.world.channels.journal.end)

    def test_killed_while_the_link_is_cut(self) -> None:
        relay = self.world.relay()
        front, shell = (Front(self.world, relay, channel) for channel in ("iopub", "shell"))
        shell.say(b"a")
        relay.cut()
        for word in WORDS[:80]:
            self.world.publish(*message(word, b"{}", bytes(100_000)))
        self.world.sockets("shell")[0].wire.give(zmtp.join([b"A"]))
        self.die()
        self.assertLess(self.world.channels.seen, self.world.channels.journal.end)
        relay.connect()
        self.world.advance(1.5)
        self.assertEqual((texts(front), shell.heard), (plain(WORDS[:80]), [[b"A"]]))
        self.assertIsInstance(self.successResultOf(relay.link.when_ended()), EngineEnded)
        self.assertEqual(self.world.channels.seen, self.world.channels.journal.end)
        self.assertFalse(self.world.links.waiting())

    def test_cut_while_the_last_words_are_on_their_way(self) -> None:
        """They come again, and then the reason."""
        relay = self.world.relay()
        front = Front(self.world, relay, "iopub")
        assert relay.near is not None and relay.far is not None
        # What the keeper writes from now on gets lost.
        carry, relay.near = relay.near, None
        for word in WORDS[:5]:
            self.world.publish(*message(word))
        self.die()
        relay.near = carry
        relay.far.clear()
        relay.cut()
        self.assertEqual(texts(front), [])
        relay.connect()
        self.world.advance(1.5)
        self.assertEqual(texts(front), plain(WORDS[:5]))
        self.assertIsInstance(self.successResultOf(relay.link.when_ended()), EngineEnded)

    def test_unheard(self) -> None:
        """That it is busy is nothing to come back for."""
        busy = [part.replace(b"stream", b"status") for part in message(b"busy")]
        self.world.publish(*busy)
        self.world.publish(*busy)
        self.assertFalse(self.world.channels.unheard)
        self.world.publish(*message(WORDS[0]))
        self.world.publish(*busy)
        self.assertTrue(self.world.channels.unheard)
        self.world.channels.skip()
        self.assertFalse(self.world.channels.unheard)
        self.world.publish(b"no Jupyter message")
        self.assertTrue(self.world.channels.unheard)

    def test_a_front_end_that_comes_late(self) -> None:
        """Its stream is closed."""
        relay = self.world.relay()
        relay.cut()
        self.die()
        front = Front(self.world, relay, "iopub")
        relay.connect()
        self.assertTrue(front.wire.gone)

    def test_nothing_is_left_of_closed_channels(self) -> None:
        relay = self.world.relay()
        for channel in ("iopub", "shell", "control"):
            Front(self.world, relay, channel)
        self.world.channels.close()
        self.world.settle()
        self.assertEqual([socket for socket in self.world.kernel if not socket.wire.gone], [])
        relay.link.end()
        self.world.advance(sessions._PARKED + 10)
        for link in self.world.channels.links:
            link.end()
        calls = [call for call in self.world.clock.getDelayedCalls() if "LoopingCall" not in str(call)]
        self.assertEqual(calls, [])
