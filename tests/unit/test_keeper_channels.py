"""What front ends get of a kernel over links, and a kernel of them: cursors, replies, cuts, stalls, the end."""

from __future__ import annotations

import errno
import os
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import TestCase

from sksd.errors import EngineEnded
from sksd.keeper import journal, sessions, spool
from sksd.link import zmtp
from tests.unit.keeping import MIB, Front, Wire, World, message, texts

WORDS = [f"word {number}".encode() for number in range(400)]
ENDED = EngineEnded(engine="e", how="exit code 1", log="")


def plain(words: list[bytes], past: int = 0) -> list[tuple[str, bool]]:
    """What `texts` answers for `words`, the first `past` of them marked."""
    return [(word.decode(), number < past) for number, word in enumerate(words)]


class Iopub(TestCase):
    """The journal's way to the front ends."""

    def setUp(self) -> None:
        self.world = World(self)

    def publish(self, *words: bytes) -> None:
        """One message each."""
        for word in words:
            self.world.publish(*message(word))

    def test_what_was_missed_comes_first_and_is_marked(self) -> None:
        self.publish(*WORDS[:5])
        self.world.channels.skip()
        self.publish(*WORDS[5:8])
        for replay, first in (("missed", 5), ("now", 8), ("start", 0)):
            # Only looking on, so that nothing is seen by it.
            relay = self.world.relay(replay=replay, watch=True)
            front = Front(self.world, relay, "iopub")
            self.assertEqual(texts(front), plain(WORDS[first:8], 8 - first))
        self.publish(WORDS[8])
        for front, first in zip(self.world.fronts, (5, 8, 0), strict=True):
            self.assertEqual(texts(front), plain(WORDS[first:9], 8 - first))

    def test_what_was_said_before_the_first_front_end_is_there_is_no_past(self) -> None:
        relay = self.world.relay(replay="now")
        self.publish(*WORDS[:3])
        front = Front(self.world, relay, "iopub")
        self.assertEqual(texts(front), plain(WORDS[:3]))

    def test_a_second_front_end_on_a_link_hears_what_is_said_from_then_on(self) -> None:
        relay = self.world.relay()
        one = Front(self.world, relay, "iopub")
        self.publish(WORDS[0])
        two = Front(self.world, relay, "iopub")
        self.publish(WORDS[1])
        self.assertEqual(texts(one), plain(WORDS[:2]))
        self.assertEqual(texts(two), plain(WORDS[1:2]))

    def test_a_front_end_that_comes_back_goes_on_where_it_was(self) -> None:
        relay = self.world.relay()
        front = Front(self.world, relay, "iopub")
        self.publish(*WORDS[:3])
        # At once: what it has taken is known all the same.
        front.close()
        self.publish(*WORDS[3:5])
        again = Front(self.world, relay, "iopub")
        self.publish(WORDS[5])
        self.assertEqual(texts(front) + texts(again), plain(WORDS[:6]))

    def test_what_a_front_end_has_not_taken_comes_again(self) -> None:
        relay = self.world.relay()
        front = Front(self.world, relay, "iopub")
        self.publish(WORDS[0])
        front.slow()
        self.world.publish(*message(WORDS[1], b"{}", bytes(3 * MIB)))
        front.close()
        again = Front(self.world, relay, "iopub")
        self.assertEqual(texts(front) + texts(again), plain(WORDS[:2]))
        self.assertTrue(again.whole)

    def test_seen_is_what_was_taken(self) -> None:
        front = Front(self.world, self.world.relay(), "iopub")
        self.publish(*WORDS[:3])
        self.world.advance(1.5)
        self.assertEqual(self.world.channels.seen, self.world.channels.journal.end)
        self.assertEqual((self.world.folder / "seen").read_text(), str(self.world.channels.journal.end))
        front.slow()
        self.publish(WORDS[3])
        self.world.advance(1.5)
        late = Front(self.world, self.world.relay(), "iopub")
        self.assertEqual(texts(late), plain(WORDS[3:4], 1))

    def test_who_looks_on_has_seen_nothing(self) -> None:
        front = Front(self.world, self.world.relay(watch=True), "iopub")
        self.publish(WORDS[0])
        self.world.advance(1.5)
        self.assertEqual(texts(front), plain(WORDS[:1]))
        self.assertEqual((self.world.channels.seen, self.world.channels.journal.lag), (0, 0))

    def test_a_new_link_begins_with_a_whole_message(self) -> None:
        """Though another front end has had half of it."""
        slow = Front(self.world, self.world.relay(), "iopub")
        self.world.publish(*message(WORDS[0], b"{}", bytes(5 * MIB)))
        self.publish(WORDS[1])
        slow.slow()
        self.world.publish(*message(WORDS[2], b"{}", bytes(5 * MIB)))
        # Half of it is taken.
        slow.tap.pauseProducing = lambda: None
        while slow.bytes < 7 * MIB:
            slow.world.kernel and slow.tap.resumeProducing()
            self.world.settle()
        seen = self.world.channels.seen
        self.assertGreater(seen, 5 * MIB)
        late = Front(self.world, self.world.relay(), "iopub")
        self.assertTrue(late.whole)
        self.assertIn(texts(late), (plain(WORDS[2:3], 1), []))

    def test_half_seen(self) -> None:
        """The file may say any place."""
        self.publish(*WORDS[:3])
        self.world.channels.seen = self.world.channels.journal.end - 3
        late = Front(self.world, self.world.relay(), "iopub")
        self.assertEqual(texts(late), plain(WORDS[2:3], 1))

    def test_slow_and_cut_ones_hold_up_nobody(self) -> None:
        relays = [self.world.relay() for _ in range(3)]
        quick, slow, cut = (Front(self.world, relay, "iopub") for relay in relays)
        slow.slow()
        relays[2].cut()
        for word in WORDS[:60]:
            self.world.publish(*message(word, b"{}", os.urandom(200_000)))
        self.assertEqual(texts(quick), plain(WORDS[:60]))
        self.assertEqual((texts(slow), texts(cut), self.world.stalls), ([], [], []))
        relays[2].connect()
        self.assertEqual(texts(cut), plain(WORDS[:60]))
        slow.quick()
        self.assertEqual(texts(slow), plain(WORDS[:60]))
        self.assertEqual(quick.heard, slow.heard)
        self.assertEqual(quick.heard, cut.heard)

    def test_cut_again_and_again(self) -> None:
        """While messages come in any pieces."""
        relay = self.world.relay()
        front = Front(self.world, relay, "iopub")
        raw = b"".join(zmtp.join(message(word, b"{}", word * 50)) for word in WORDS)
        for number, at in enumerate(range(0, len(raw), 1777)):
            if number % 5 == 1:
                relay.cut(seen=number % 2 == 0)
            self.world.publish_raw(raw[at : at + 1777])
            if number % 5 == 4:
                relay.connect()
        if relay.near is None:
            relay.connect()
        self.assertEqual(texts(front), plain(WORDS))

    def test_a_watcher_too_slow_for_the_journal_goes_on_with_what_is_there(self) -> None:
        """Nothing is kept for it, and nobody else suffers."""
        world = World(self, journal=2 * MIB)
        relay = world.relay(watch=True)
        slow = Front(world, relay, "iopub")
        quick = Front(world, world.relay(), "iopub")
        slow.slow()
        for word in WORDS[:40]:
            world.publish(*message(word, b"{}", bytes(200_000)))
        world.advance(1.5)
        self.assertEqual(texts(quick), plain(WORDS[:40]))
        slow.quick()
        again = Front(world, relay, "iopub")
        world.publish(*message(WORDS[40]))
        self.assertEqual(texts(again)[-1], (WORDS[40].decode(), False))
        self.assertTrue(again.whole)

    def test_what_cannot_be_read_is_skipped(self) -> None:
        relay = self.world.relay()
        front = Front(self.world, relay, "iopub")
        front.slow()
        for word in WORDS[:60]:
            self.world.publish(*message(word, b"{}", bytes(200_000)))
        for segment in sorted((self.world.folder / "journal").iterdir())[:-1]:
            segment.unlink()
        front.quick()
        again = Front(self.world, relay, "iopub")
        self.publish(WORDS[60])
        self.assertEqual(texts(again)[-1], (WORDS[60].decode(), False))

    def test_the_past_is_read_once(self) -> None:
        self.publish(*WORDS)
        read = [0]
        whole = journal.Journal.read

        def counted(self: Any, offset: int, limit: int) -> bytes:
            data = whole(self, offset, limit)
            read[0] += len(data)
            return data

        with patch.object(journal.Journal, "read", counted):
            front = Front(self.world, self.world.relay(replay="start"), "iopub")
        self.assertEqual(texts(front), plain(WORDS, len(WORDS)))
        self.assertLess(read[0], 3 * self.world.channels.journal.end)

    def test_garbage(self) -> None:
        """A front end that speaks no ZMTP loses its stream, and nobody else anything."""
        relay = self.world.relay()
        good = Front(self.world, relay, "iopub")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 80):
            tap = relay.link.open_tap("shell")
            assert tap is not None
            wire = Wire(tap)
            tap.dataReceived(garbage)
            self.world.settle()
            self.assertTrue(wire.disconnecting)
        self.publish(WORDS[0])
        self.assertEqual(texts(good), plain(WORDS[:1]))

    def test_many_messages_at_once(self) -> None:
        front = Front(self.world, self.world.relay(), "iopub")
        words = [b"%d" % number for number in range(3000)]
        self.world.publish_raw(b"".join(zmtp.join(message(word)) for word in words))
        self.assertEqual(texts(front), plain(words))

    def test_an_iopub_that_speaks_no_zmtp(self) -> None:
        """It is connected again, and half a message of it forgotten."""
        front = Front(self.world, self.world.relay(), "iopub")
        self.world.publish_raw(zmtp.join(message(WORDS[0]))[:50])
        [socket] = self.world.sockets("iopub")
        self.world.publish_raw(b"\xf0" * 400)
        socket.wire.lose()
        self.world.advance(0.5)
        self.publish(WORDS[1])
        self.assertEqual(texts(front), plain(WORDS[1:2]))


class Talk(TestCase):
    """shell, control, stdin."""

    def setUp(self) -> None:
        self.world = World(self)
        self.relay = self.world.relay()

    def reply(self, *frames: bytes) -> None:
        """From the kernel's newest connection for shell."""
        self.world.sockets("shell")[-1].wire.give(zmtp.join(frames))
        self.world.settle()

    def said(self) -> list[list[bytes]]:
        """What the kernel has heard on shell, in all."""
        return [frames for socket in self.world.kernel if socket.channel == "shell" for frames in socket.said]

    def test_question_and_answer(self) -> None:
        fronts = [Front(self.world, self.relay, "shell", name) for name in (b"one", b"two")]
        for front in fronts:
            front.say(b"question", front.peer._identity)
        sockets = self.world.sockets("shell")
        self.assertEqual([socket.peer.peer_identity for socket in sockets], [b"one", b"two"])
        for socket in sockets:
            socket.wire.give(zmtp.join([b"answer to", socket.peer.peer_identity]))
        self.world.settle()
        self.assertEqual([front.heard for front in fronts], [[[b"answer to", b"one"]], [[b"answer to", b"two"]]])

    def test_who_comes_back_gets_what_waited_once(self) -> None:
        front = Front(self.world, self.relay, "shell", b"me")
        front.say(b"a")
        self.reply(b"A")
        front.say(b"b")
        front.close()
        self.reply(b"B")
        again = Front(self.world, self.relay, "shell", b"me")
        self.assertEqual((front.heard, again.heard), ([[b"A"]], [[b"B"]]))
        again.say(b"c")
        self.reply(b"C")
        self.world.advance(1.5)
        again.close()
        third = Front(self.world, self.relay, "shell", b"me")
        self.assertEqual((again.heard, third.heard), ([[b"B"], [b"C"]], []))
        self.assertEqual(self.said(), [[b"a"], [b"b"], [b"c"]])
        self.assertEqual(len(self.world.sockets("shell")), 1)

    def test_who_does_not_come_back_is_forgotten(self) -> None:
        Front(self.world, self.relay, "shell", b"me").close()
        self.assertEqual(len(self.world.sockets("shell")), 1)
        self.world.advance(sessions._PARKED + 1)
        self.assertEqual(self.world.sockets("shell"), [])
        self.assertEqual(self.world.channels._sessions, {})

    def test_another_link_with_the_same_identity(self) -> None:
        """It gets the place, with what the first had not taken."""
        first = Front(self.world, self.relay, "shell", b"me")
        first.say(b"a")
        self.relay.cut()
        self.reply(b"A")
        other = self.world.relay()
        second = Front(self.world, other, "shell", b"me")
        self.assertEqual((first.heard, second.heard), ([], [[b"A"]]))
        second.say(b"b")
        self.reply(b"B")
        self.assertEqual(second.heard, [[b"A"], [b"B"]])
        self.assertEqual(self.said(), [[b"a"], [b"b"]])

    def test_a_request_cut_off(self) -> None:
        """Never reaches the kernel; what was asked before does."""
        front = Front(self.world, self.relay, "shell", b"me")
        front.tap.dataReceived(zmtp.join([b"a"]) + zmtp.join([b"b", bytes(100_000)])[:-1])
        self.world.settle()
        front.close()
        again = Front(self.world, self.relay, "shell", b"me")
        again.say(b"c")
        self.assertEqual(self.said(), [[b"a"], [b"c"]])
        self.assertEqual(self.world.sockets("shell")[0].raw, b"")

    def test_a_request_over_a_cut(self) -> None:
        """Once, and whole."""
        front = Front(self.world, self.relay, "shell", b"me")
        asked = [[b"%d" % number, os.urandom(40_000)] for number in range(20)]
        for number, frames in enumerate(asked):
            raw = zmtp.join(frames)
            front.tap.dataReceived(raw[:20_000])
            if number % 3 == 0:
                self.world.settle()
            self.relay.cut(seen=number % 2 == 0)
            front.tap.dataReceived(raw[20_000:])
            self.relay.connect()
        self.assertTrue(self.said() == asked, len(self.said()))

    def test_a_reply_cut_off(self) -> None:
        """Never reaches the front end."""
        front = Front(self.world, self.relay, "shell", b"me")
        front.say(b"a")
        [socket] = self.world.sockets("shell")
        socket.wire.give(zmtp.join([b"A", bytes(100_000)])[:-1])
        self.world.settle()
        # The kernel is started anew.
        socket.wire.lose()
        self.world.advance(0.5)
        front.say(b"b")
        self.reply(b"B")
        self.assertEqual(front.heard, [[b"B"]])

    def test_a_reply_half_taken_comes_whole_to_the_next_stream(self) -> None:
        front = Front(self.world, self.relay, "shell", b"me")
        front.say(b"a")
        self.reply(b"A")
        front.slow()
        big = os.urandom(9 * MIB)
        self.reply(b"B", big)
        front.close()
        again = Front(self.world, self.relay, "shell", b"me")
        self.assertTrue((front.heard, again.heard) == ([[b"A"]], [[b"B", big]]))

    def test_requests_wait_for_a_kernel_that_is_not_there(self) -> None:
        self.world.up = False
        front = Front(self.world, self.relay, "shell", b"me")
        big = os.urandom(3 * MIB)
        for number in range(5):
            front.tap.dataReceived(zmtp.join([b"%d" % number, big]))
        self.world.settle()
        # No more than is to wait has been taken.
        self.assertGreater(self.relay.link.core.held, 2 * MIB)
        self.world.up = True
        self.world.advance(0.5)
        self.assertTrue(self.said() == [[b"%d" % number, big] for number in range(5)], len(self.said()))
        self.assertEqual(self.relay.link.core.held, 0)

    def test_a_spool_that_is_full(self) -> None:
        """The kernel is not read; when there is room again, all comes, in order."""
        world = World(self, buffer=MIB)
        relay = world.relay()
        front = Front(world, relay, "shell", b"me")
        front.say(b"a")
        front.slow()
        [socket] = world.sockets("shell")
        replies = [[b"%d" % number, os.urandom(700_000)] for number in range(20)]
        for frames in replies:
            socket.wire.give(zmtp.join(frames))
        world.settle()
        self.assertEqual(socket.wire.producerState, "paused")
        front.quick()
        for _ in range(30):
            world.advance(1.0)
        self.assertTrue(front.heard == replies, len(front.heard))
        self.assertEqual(socket.wire.producerState, "producing")

    def test_a_spool_that_cannot_be_written(self) -> None:
        front = Front(self.world, self.relay, "shell", b"me")
        front.say(b"a")
        front.slow()
        [socket] = self.world.sockets("shell")
        replies = [[b"%d" % number, os.urandom(900_000)] for number in range(12)]

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with patch.object(spool, "write", full):
            for frames in replies:
                socket.wire.give(zmtp.join(frames))
            self.world.settle()
            self.assertEqual(socket.wire.producerState, "paused")
        front.quick()
        for _ in range(15):
            self.world.advance(1.0)
        self.assertTrue(front.heard == replies, len(front.heard))

    def test_a_large_reply_is_put_together_once(self) -> None:
        front = Front(self.world, self.relay, "shell", b"me")
        front.say(b"a")
        [socket] = self.world.sockets("shell")
        raw = zmtp.join([b"A", bytes(64 * MIB)])
        began = os.times().user
        for at in range(0, len(raw), 65536):
            socket.wire.give(raw[at : at + 65536])
        self.assertLess(os.times().user - began, 1.5)
        self.world.settle()
        self.assertEqual(len(front.heard), 1)


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
        from twisted.internet.defer import ensureDeferred

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
        from twisted.internet.defer import ensureDeferred

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
