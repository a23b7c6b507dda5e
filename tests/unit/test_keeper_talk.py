"""Requests and replies between front ends and a kernel, over streams and links that come and go."""

from __future__ import annotations

import errno
import os
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import TestCase

from sksd.keeper import sessions, spool
from sksd.link import zmtp
from tests.unit.keeping import MIB, Front, World


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
