"""The edge of a link and its two ends on a clock and transports in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import TestCase

from sksd.errors import CannotListen, EngineEnded, InternalError, LinkCut
from sksd.link import frames, limits
from sksd.link.hello import Hello, new_hello, read_goodbye
from sksd.link.link import Link
from sksd.link.local import Channels, LocalEnd
from sksd.link.protocol import LinkConnection


class Wire(StringTransport):
    """A transport that keeps what was written, and can be aborted."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Pair:
    """An opening link on a real `Link`, and the frames of a proxy's one."""

    def __init__(self, clock: Any, on_hello: Any) -> None:
        self.near, self.far = Link.opening(clock, new_hello("t")), Link.accepting(clock, on_hello)
        self.wires = [Wire(), Wire()]
        self.ends = [LinkConnection(self.near), LinkConnection(self.far)]
        for end, wire in zip(self.ends, self.wires, strict=True):
            end.makeConnection(wire)
        self.settle()

    def settle(self) -> None:
        while any(wire.value() for wire in self.wires):
            for end, wire in zip(self.ends, reversed(self.wires), strict=True):
                data = wire.value()
                wire.clear()
                if data:
                    end.dataReceived(data)


class LinkTests(TestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()

    def pair(self) -> Pair:
        return Pair(self.clock, lambda link, hello: None)

    def test_lives(self) -> None:
        """Pings pass, and nothing is left on the clock in the end."""
        pair = self.pair()
        self.successResultOf(pair.near.when_welcomed())
        for _ in range(60):
            self.clock.advance(limits.TICK)
            pair.settle()
        self.assertFalse(pair.near.ended or pair.far.ended)
        pair.near.end()
        pair.settle()
        self.assertIsNone(self.successResultOf(pair.far.when_ended()))
        # The end that was told closes; the one that said it waits for that.
        self.assertTrue(pair.wires[1].disconnecting)
        self.assertFalse(pair.wires[0].disconnecting)
        for end in pair.ends:
            end.connectionLost()
        self.successResultOf(pair.near.when_closed())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aborted(self) -> None:
        """Another end that does not close is not waited for without end."""
        pair = self.pair()
        pair.near.end()
        self.assertNoResult(pair.near.when_closed())
        self.clock.advance(limits.GOODBYE_LIMIT)
        self.assertTrue(pair.wires[0].aborted)

    def test_silence(self) -> None:
        """Nothing heard for so long cuts the link, which waits for another connection."""
        pair, told = self.pair(), []
        for link in (pair.near, pair.far):
            link.on_cut = told.append
        for _ in range(int(limits.DEAD_AFTER / limits.TICK)):
            self.clock.advance(limits.TICK)
        self.assertEqual([problem[:17] for problem in told], ["nothing was heard"] * 2)
        self.assertEqual((pair.near.ended, pair.near.cut_since), (False, self.clock.seconds()))
        self.assertTrue(pair.wires[0].aborted and pair.wires[1].aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lost(self) -> None:
        """A lost connection ends the link, also before it is welcomed."""
        link = Link.opening(self.clock, new_hello("t"))
        connection = LinkConnection(link)
        connection.makeConnection(Wire())
        welcomed = link.when_welcomed()
        connection.connectionLost()
        self.failureResultOf(welcomed, LinkCut)
        self.failureResultOf(link.when_welcomed(), LinkCut)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_broken_greeting(self) -> None:
        """A mistake in `on_hello` is logged, and told as an internal error without details."""

        def on_hello(link: Link, hello: Hello) -> None:
            raise ZeroDivisionError("secret")

        pair = Pair(self.clock, on_hello)
        error = self.successResultOf(pair.near.when_ended())
        self.assertIsInstance(error, InternalError)
        self.assertNotIn("secret", str(error))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_full_transport(self) -> None:
        """Nothing is written to a transport that has enough; GOODBYE is."""
        pair = self.pair()
        pair.ends[0].pauseProducing()
        pair.near.open_tap("shell")
        self.assertEqual(pair.wires[0].value(), b"")
        pair.near.end(EngineEnded(engine="e", how="stopped"))
        (goodbye,) = frames.Decoder().feed(pair.wires[0].value())
        self.assertIsInstance(read_goodbye(goodbye.body), EngineEnded)


class LocalTests(TestCase):
    def test_cannot_listen(self) -> None:
        """A folder that is not there is told in words, and nothing listens."""
        from twisted.internet import reactor

        link = Link.opening(reactor, new_hello("t"))
        folder = Path(tempfile.gettempdir()) / "not-there" / "at-all"
        end = LocalEnd(reactor, link, Channels("k", folder=folder))
        self.assertRaises(CannotListen, end.start)
        too_long = Path("/tmp") / ("x" * 120)
        end = LocalEnd(reactor, link, Channels("k", folder=too_long))
        self.assertRaises(CannotListen, end.start)
