"""The edge of a link and its two ends on a clock and transports in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sksd.link.remote import RemoteEnd
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
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


def info() -> dict[str, str | int]:
    found: dict[str, str | int] = {"transport": "ipc", "ip": "/nowhere/e"}
    return found | {f"{n}_port": i for i, n in enumerate(("shell", "iopub", "stdin", "control"), 1)}


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
        """Nothing heard for 15 s ends the link."""
        pair = self.pair()
        for _ in range(int(limits.DEAD_AFTER / limits.TICK)):
            self.clock.advance(limits.TICK)
        self.assertIsInstance(self.successResultOf(pair.near.when_ended()), LinkCut)

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


class RemoteTests(TestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.alive = True
        self.pair = Pair(self.clock, self.greet)

    def greet(self, link: Link, hello: Hello) -> None:
        self.remote = RemoteEnd(self.clock, link, info(), lambda: self.alive)

    def refuse(self) -> None:
        """The last attempt fails."""
        factory = self.clock.unixClients[-1][1]
        factory.clientConnectionFailed(None, Failure(Refused()))

    def test_tries_again(self) -> None:
        """A channel that does not answer is tried again, its front end's words wait, and come in order."""
        tap = self.pair.near.open_tap("iopub")
        assert tap
        tap.makeConnection(Wire())
        self.pair.settle()
        for attempt in range(1, 5):
            self.assertEqual(len(self.clock.unixClients), attempt)
            tap.dataReceived(b"%d" % attempt)
            self.pair.settle()
            self.refuse()
            self.clock.advance(limits.CONNECT_RETRY)
        self.assertEqual(self.clock.unixClients[-1][0], "/nowhere/e-2")
        engine = Wire()
        self.clock.unixClients[-1][1].buildProtocol(None).makeConnection(engine)
        self.assertEqual(engine.value(), b"1234")

    def test_gives_up(self) -> None:
        """Not for ever."""
        tap = self.pair.near.open_tap("shell")
        assert tap
        front = Wire()
        tap.makeConnection(front)
        self.pair.settle()
        until = self.clock.seconds() + limits.CONNECT_LIMIT
        while self.clock.seconds() < until:
            self.refuse()
            self.clock.advance(limits.CONNECT_RETRY)
            self.pair.settle()
        self.refuse()
        self.pair.settle()
        self.assertTrue(front.disconnecting)

    def test_dies_while_trying(self) -> None:
        """An engine that has ended is not tried again, and the reason follows the close."""
        tap = self.pair.near.open_tap("shell")
        assert tap
        front = Wire()
        tap.makeConnection(front)
        self.pair.settle()
        self.alive = False
        self.refuse()
        self.remote.end(EngineEnded(engine="e", how="exit code 1"))
        self.pair.settle()
        self.assertTrue(front.disconnecting)
        self.assertIsInstance(self.successResultOf(self.pair.near.when_ended()), EngineEnded)

    def test_last_words(self) -> None:
        """What the engine said before its end comes before the reason; a socket that stays open is not waited
        for longer than FINISH_LIMIT."""
        tap = self.pair.near.open_tap("iopub")
        assert tap
        front = Wire()
        tap.makeConnection(front)
        self.pair.settle()
        engine = self.clock.unixClients[-1][1].buildProtocol(None)
        engine.makeConnection(Wire())
        self.remote.end(EngineEnded(engine="e", how="exit code 1"))
        self.pair.settle()
        far_tap = next(iter(self.pair.far.taps.values()))
        far_tap.dataReceived(b"last words")
        self.pair.settle()
        self.assertEqual(front.value(), b"last words")
        self.assertFalse(self.pair.near.ended)
        self.clock.advance(limits.FINISH_LIMIT)
        self.pair.settle()
        self.assertIsInstance(self.successResultOf(self.pair.near.when_ended()), EngineEnded)


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
