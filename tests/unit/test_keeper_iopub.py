"""What front ends get of what a kernel publishes: cursors, the past, cuts."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import TestCase

from sksd.keeper import journal
from sksd.link import zmtp
from tests.unit.keeping import MIB, WORDS, Front, Wire, World, message, plain, texts


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
        self.assertLess(read[0], 5 * self.world.channels.journal.end)

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
