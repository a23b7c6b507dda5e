"""The state of a link: two cores joined by a pipe, and one core against a peer that breaks the rules."""

from __future__ import annotations

from collections import defaultdict
from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from sksd.errors import EngineEnded, LinkForgotten, LinkProtocol, ProtocolMismatch, SksdError, TicketRefused
from sksd.link import frames, limits
from sksd.link.core import (
    CHANNELS,
    Action,
    Closed,
    Core,
    Cut,
    Data,
    Ended,
    Greeted,
    Opened,
    Pause,
    Resume,
    Resumed,
    Taken,
    Welcomed,
)
from sksd.link.hello import FirstFrame, Welcome, hello_frame, new_hello, welcome_frame

SMALL = limits.Limits(payload=50, window=400, queue=120, streams=6)


class End:
    """One core with what its edge would know: local sockets that are read and drained."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.wire = bytearray()
        self.said: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.got: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.undrained: defaultdict[int, int] = defaultdict(int)
        self.open: set[int] = set()
        self.closing: set[int] = set()
        self.closed_here: set[int] = set()
        self.paused: set[int] = set()
        self.ended: list[SksdError | None] = []
        self.welcomed = False
        self.cuts = 0
        self.resumed = 0
        self.taken: defaultdict[int, int] = defaultdict(int)

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self.ended, action
            match action:
                case Greeted():
                    self.do(self.core.welcome())
                case Welcomed():
                    self.welcomed = True
                case Opened(stream, channel):
                    assert stream not in self.open and channel in CHANNELS
                    self.open.add(stream)
                case Data(stream, data):
                    assert stream in self.open and stream not in self.closing
                    self.got[stream] += data
                    self.undrained[stream] += len(data)
                case Closed(stream):
                    assert stream in self.open
                    self.closing.add(stream)
                case Pause(stream):
                    assert stream not in self.paused
                    self.paused.add(stream)
                case Resume(stream):
                    assert stream in self.paused
                    self.paused.remove(stream)
                case Taken(stream, size):
                    self.taken[stream] += size
                case Cut():
                    self.cuts += 1
                    self.wire.clear()
                case Resumed():
                    self.resumed += 1
                case Ended(error):
                    self.ended.append(error)

    def pull(self, limit: int) -> bool:
        pieces, actions = self.core.pull(limit)
        for piece in pieces:
            self.wire += piece
        self.do(actions)
        return bool(pieces)

    def say(self, stream: int, data: bytes) -> None:
        if stream not in self.paused:
            if stream not in self.closing:
                self.said[stream] += data
            self.do(self.core.data(stream, data))

    def drain(self, stream: int, count: int) -> None:
        count = min(count, self.undrained[stream])
        self.undrained[stream] -= count
        self.do(self.core.drained(stream, count))
        if stream in self.closing and not self.undrained[stream]:
            self.close(stream)

    def close(self, stream: int) -> None:
        if stream in self.open:
            self.open.remove(stream)
            if stream not in self.closing:
                self.closed_here.add(stream)
            self.paused.discard(stream)
            self.do(self.core.closed(stream))


def joined(sizes: limits.Limits = SMALL) -> tuple[End, End]:
    """Opening and accepting end, greeted."""
    near, far = End(Core(0.0, new_hello("t"), sizes)), End(Core(0.0, None, sizes))
    settle(near, far)
    assert near.welcomed
    return near, far


def settle(near: End, far: End) -> None:
    """Carry everything over until nothing moves."""
    moved = True
    while moved:
        moved = False
        for one, other in ((near, far), (far, near)):
            while one.pull(1000):
                pass
            if one.wire:
                data = bytes(one.wire)
                one.wire.clear()
                if not other.ended:
                    other.do(other.core.bytes_received(data))
                moved = True


class JoinedTests(TestCase):
    @settings(max_examples=400, deadline=None)
    @given(st.integers(0, 2**32), st.integers(10, 300), st.booleans())
    def test_every_byte_once_in_order(self, seed: int, steps: int, closing: bool) -> None:
        """Random opens, data, closes, slow readers and cuts between bytes: the memory bound holds at every
        step; all that was said on a stream which the other did not close before arrives once, in order."""
        random = Random(seed)
        near, far = joined()
        for _ in range(steps):
            one, other = random.sample((near, far), 2)
            stream = random.choice(sorted(one.open)) if one.open else 0
            match random.choice("ooddddddrrrrppppwwwwc" if closing else "oddddddrrrrppppwwww"):
                case "o":
                    opened = near.core.open("iopub")
                    if opened is None:
                        assert len(near.core.streams) == SMALL.streams
                    else:
                        near.open.add(opened)
                case "d" if stream:
                    one.say(stream, random.randbytes(random.randint(1, 200)))
                case "r" if stream:
                    one.drain(stream, random.randint(1, 300))
                case "p":
                    one.pull(random.randint(1, 300))
                case "w":
                    count = random.randint(0, len(one.wire))
                    data = bytes(one.wire[:count])
                    del one.wire[:count]
                    other.do(other.core.bytes_received(data))
                case "c" if stream:
                    one.close(stream)
                case "d" | "r" | "c":
                    pass
            for end in (near, far):
                self.assertEqual(end.ended, [])
                self.assertLessEqual(len(end.core.streams), SMALL.streams)
                most = SMALL.streams * (SMALL.queue + 200 + SMALL.window) + limits.MAX_BODY + 8
                self.assertLessEqual(end.core.held, most)
                for count in end.undrained.values():
                    self.assertLessEqual(count, SMALL.window)
        for _ in range(200):
            settle(near, far)
            for end in (near, far):
                for stream in sorted(end.open):
                    end.drain(stream, 10**6)
        settle(near, far)
        for one, other in ((near, far), (far, near)):
            for stream, said in one.said.items():
                got = other.got[stream]
                self.assertEqual(said[: len(got)], got)
                if stream not in other.closed_here:
                    self.assertEqual(len(got), len(said))
            self.assertEqual(one.core.sent, other.core.received)
        # Whoever closed, both have forgotten the stream; the rest is open at both.
        self.assertEqual(near.open, far.open)
        self.assertEqual(set(near.core.streams), near.open)
        self.assertEqual(set(far.core.streams), far.open)

    def test_data_before_close(self) -> None:
        """All that was said before a close is delivered before it, even to a slow reader."""
        near, far = joined()
        stream = near.core.open("iopub")
        assert stream
        near.open.add(stream)
        said = bytes(range(256)) * 8
        near.said[stream] += said
        near.do(near.core.data(stream, said))
        near.close(stream)
        settle(near, far)
        self.assertEqual(len(far.got[stream]), SMALL.window)
        self.assertNotIn(stream, far.closing)
        while stream in far.open:
            far.drain(stream, 150)
            settle(near, far)
        self.assertEqual(far.got[stream], said)
        self.assertEqual((near.core.streams, far.core.streams), ([], []))

    def test_small_passes_bulk(self) -> None:
        """A small message waits for at most one frame of each busy stream, not for what is queued there."""
        sizes = limits.Limits()
        near, _ = joined(sizes)
        bulk, small = near.core.open("shell"), near.core.open("control")
        assert bulk and small
        near.do(near.core.data(bulk, b"b" * 10**6))
        pieces, _ = near.core.pull(1)
        near.do(near.core.data(small, b"interrupt"))
        decoder, seen = frames.Decoder(), []
        for _ in range(3):
            pieces, _ = near.core.pull(1)
            seen += decoder.feed(b"".join(pieces))
        self.assertIn((frames.DATA, small, b"interrupt"), seen)
        self.assertLessEqual(sum(len(frame.body) for frame in seen), 3 * sizes.payload)

    def test_stalled_reader_stops_only_its_stream(self) -> None:
        """A reader that takes nothing stops its own stream at the window; another goes on."""
        near, far = joined()
        stalled, lively = near.core.open("iopub"), near.core.open("iopub")
        assert stalled and lively
        near.open |= {stalled, lively}
        for _ in range(100):
            near.say(stalled, b"s" * 50)
            near.say(lively, b"l" * 50)
            settle(near, far)
            far.drain(lively, 50)
        self.assertEqual(len(far.got[stalled]), SMALL.window)
        self.assertIn(stalled, near.paused)
        self.assertEqual(len(far.got[lively]), 5000)

    def test_finish(self) -> None:
        """An end that finishes sends what its streams have and their closes, then the reason."""
        near, far = joined()
        stream = near.core.open("iopub")
        assert stream
        near.open.add(stream)
        settle(near, far)
        far.say(stream, b"last words" * 50)
        far.do(far.core.finish(EngineEnded(engine="e", how="killed by SIGKILL")))
        settle(near, far)
        self.assertEqual(near.ended, [])
        far.close(stream)
        while not near.ended:
            near.drain(stream, 100)
            settle(near, far)
        self.assertEqual(near.got[stream], b"last words" * 50)
        self.assertIsInstance(near.ended[0], EngineEnded)
        self.assertIsInstance(far.ended[0], EngineEnded)

    def test_acknowledged(self) -> None:
        """Sequenced bytes are acknowledged: after a while, and at once when there are many."""
        near, far = joined(limits.Limits())
        stream = near.core.open("iopub")
        assert stream
        near.open.add(stream)
        near.say(stream, b"x" * 100)
        settle(near, far)
        self.assertEqual(near.core.acknowledged, 0)
        far.do(far.core.tick(1.0))
        settle(near, far)
        self.assertEqual(near.core.acknowledged, near.core.sent)
        near.say(stream, b"x" * limits.ACK_EVERY)
        settle(near, far)
        self.assertGreater(near.core.acknowledged, limits.ACK_EVERY)

    def test_no_new_stream_beyond_the_limit(self) -> None:
        """A stream counts until both ends have closed it; numbers are not used again."""
        near, far = joined()
        numbers = [near.core.open("shell") for _ in range(SMALL.streams)]
        self.assertIsNone(near.core.open("shell"))
        first = numbers[0]
        assert first
        near.do(near.core.closed(first))
        far.do(far.core.bytes_received(b""))
        self.assertIsNone(near.core.open("shell"))
        for piece in near.core.pull(10**6)[0]:
            for action in far.core.bytes_received(bytes(piece)):
                if isinstance(action, Closed):
                    far.do(far.core.closed(action.stream))
        settle(near, far)
        self.assertEqual(near.core.open("shell"), SMALL.streams + 1)
        self.assertRaises(ValueError, near.core.open, "hb")
        self.assertRaises(ValueError, far.core.open, "shell")

    def test_too_much_drained(self) -> None:
        """An edge that drains what it was not given is a mistake of ours, told at once."""
        near, _ = joined()
        stream = near.core.open("shell")
        assert stream
        self.assertRaises(ValueError, near.core.drained, stream, 1)


class Network:
    """What lies between two ends: bytes on their way, on a connection whose loss one end or both may see."""

    def __init__(self, near: End, far: End) -> None:
        self.near, self.far = near, far
        #: Bytes of the present connection that have left an end and not arrived.
        self.up = bytearray()
        self.down = bytearray()
        self.connected = True
        self._greeting: FirstFrame | None = None

    def load(self, limit: int) -> None:
        for end, way in ((self.near, self.up), (self.far, self.down)):
            end.pull(limit)
            if self.connected and (end is self.near or self._greeting is None):
                way += end.wire
            end.wire.clear()

    def arrive(self, up: int, down: int) -> None:
        data = bytes(self.up[:up])
        del self.up[:up]
        if data and self._greeting is not None:
            found = self._greeting.feed(data)
            if found is None:
                return
            hello, data = found
            self._greeting = None
            self.far.wire.clear()
            self.far.do(self.far.core.resume(hello, 0.0))
        if data:
            self.far.do(self.far.core.bytes_received(data))
        data = bytes(self.down[:down])
        del self.down[:down]
        if data:
            self.near.do(self.near.core.bytes_received(data))

    def cut(self, far_sees_it: bool) -> None:
        """The near end sees it always, or it would not connect anew."""
        self.connected = False
        self.up.clear()
        self.down.clear()
        self.near.do(self.near.core.cut("test"))
        if far_sees_it:
            self.far.do(self.far.core.cut("test"))

    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            self._greeting = FirstFrame()
            self.near.do(self.near.core.reconnect(0.0))


class ClosingTests(TestCase):
    def test_the_other_end_learns_of_all_that_was_taken_and_of_nothing_else(self) -> None:
        near, far = joined()
        stream = near.core.open("iopub")
        assert stream is not None
        near.open.add(stream)
        settle(near, far)
        far.say(stream, bytes(300))
        settle(near, far)
        near.drain(stream, 70)
        near.close(stream)
        settle(near, far)
        self.assertEqual(far.taken[stream], 70)


class ResumingTests(TestCase):
    @settings(max_examples=400, deadline=None)
    @given(st.integers(0, 2**32), st.integers(10, 400))
    def test_every_byte_once_in_order_over_any_cuts(self, seed: int, steps: int) -> None:
        """Cuts at any byte, in the middle of greetings too, seen by one end or by both: whatever was said
        arrives once, in order, and neither end keeps more than its windows."""
        random = Random(seed)
        near, far = joined()
        network = Network(near, far)
        for _ in range(steps):
            one = random.choice((near, far))
            stream = random.choice(sorted(one.open)) if one.open else 0
            match random.choice("odddddrrrrllllaaaaaaxccck"):
                case "o":
                    opened = near.core.open("iopub")
                    if opened is not None:
                        near.open.add(opened)
                case "d" if stream:
                    one.say(stream, random.randbytes(random.randint(1, 200)))
                case "r" if stream:
                    one.drain(stream, random.randint(1, 300))
                case "l":
                    network.load(random.randint(1, 300))
                case "a":
                    network.arrive(random.randint(0, 300), random.randint(0, 300))
                case "x" if stream:
                    one.close(stream)
                case "k":
                    network.cut(random.random() < 0.5)
                case "c":
                    network.connect()
                case _:
                    pass
            for end in (near, far):
                self.assertEqual(end.ended, [])
                self.assertLessEqual(end.core.unacknowledged, 40 * steps + 12 * SMALL.streams * SMALL.window)
        network.connect()
        for _ in range(300):
            network.load(1000)
            network.arrive(10**6, 10**6)
            for end in (near, far):
                for stream in sorted(end.open):
                    end.drain(stream, 10**6)
        for one, other in ((near, far), (far, near)):
            for stream, said in one.said.items():
                got = other.got[stream]
                self.assertEqual(said[: len(got)], got)
                if stream not in other.closed_here:
                    self.assertEqual(len(got), len(said))
            self.assertEqual(one.core.sent, other.core.received)
        self.assertEqual(near.open, far.open)

    def test_forgotten(self) -> None:
        """A host that does not know the link any more says so."""
        near, _ = joined()
        near.do(near.core.cut("test"))
        near.do(near.core.reconnect(1.0))
        near.pull(100)
        near.do(near.core.bytes_received(welcome_frame(Welcome())))
        self.assertIsInstance(near.ended[0], LinkForgotten)

    def test_a_place_that_never_was(self) -> None:
        """Nobody can ask for bytes that are gone, or that never were."""
        for received in (10**6, 5):
            near, far = joined()
            stream = near.core.open("iopub")
            assert stream
            near.open.add(stream)
            settle(near, far)
            far.say(stream, b"x" * 100)
            settle(near, far)
            hello = msgspec.structs.replace(new_hello("t"), resume=True, received=received)
            far.do(far.core.resume(hello, 1.0))
            self.assertIsInstance(far.ended[0], LinkProtocol)

    def test_ends_after_a_cut(self) -> None:
        """An engine that died meanwhile: what it had said, then why."""
        near, far = joined()
        network = Network(near, far)
        stream = near.core.open("iopub")
        assert stream
        near.open.add(stream)
        settle(near, far)
        network.cut(True)
        far.say(stream, b"last words" * 30)
        far.do(far.core.finish(EngineEnded(engine="e", how="killed by SIGKILL")))
        far.close(stream)
        network.connect()
        for _ in range(20):
            network.load(1000)
            network.arrive(10**6, 10**6)
            near.drain(stream, 10**6)
        self.assertEqual(near.got[stream], b"last words" * 30)
        self.assertIsInstance(near.ended[0], EngineEnded)


class ClockTests(TestCase):
    def test_pings_keep_alive(self) -> None:
        """An idle link lives for as long as both ends tick."""
        near, far = joined()
        for second in range(1, 100):
            for end in (near, far):
                end.do(end.core.tick(float(second)))
            settle(near, far)
        self.assertEqual((near.ended, far.ended), ([], []))

    def test_silence(self) -> None:
        """An end that hears nothing ends, not before its time."""
        near, _ = joined()
        for second in range(1, 14):
            near.do(near.core.tick(float(second)))
        self.assertEqual(near.cuts, 0)
        near.do(near.core.tick(14.0))
        self.assertEqual((near.cuts, near.ended), (1, []))
        self.assertEqual(near.core.pull(100), ([], []))

    def test_probe(self) -> None:
        """A network that changed is asked about: an answer keeps the connection, silence cuts it soon."""
        near, far = joined()
        near.do(near.core.probe(0.5))
        settle(near, far)
        for second in range(1, 6):
            near.do(near.core.tick(float(second)))
        self.assertEqual(near.cuts, 0)
        near.do(near.core.probe(6.0))
        near.do(near.core.tick(8.0))
        self.assertEqual(near.cuts, 0)
        near.do(near.core.tick(9.0))
        self.assertEqual(near.cuts, 1)

    def test_asleep(self) -> None:
        """A machine that slept gives the other end its time anew."""
        near, _ = joined()
        near.do(near.core.tick(1.0))
        near.do(near.core.tick(1000.0))
        self.assertEqual(near.ended, [])

    def test_no_greeting(self) -> None:
        """A trickle of bytes without a HELLO is no life."""
        core = Core(0.0)
        ended: list[Action] = []
        for second, byte in enumerate(hello_frame(new_hello("t"))[:20]):
            ended += core.bytes_received(bytes([byte]))
            ended += core.tick(float(second))
        self.assertEqual([type(action) for action in ended], [Ended])

    def test_pong_flood(self) -> None:
        """Many pings while nothing can be sent are one pong."""
        _, far = joined()
        far.do(far.core.bytes_received(frames.encode(frames.PING, 0, b"12345678") * 1000))
        pieces, _ = far.core.pull(10**6)
        self.assertEqual(b"".join(pieces), frames.encode(frames.PONG, 0, b"12345678"))


class ViolationTests(TestCase):
    def refused(self, end: End, data: bytes) -> None:
        end.do(end.core.bytes_received(data))
        self.assertIsInstance(end.ended[0], (LinkProtocol, ProtocolMismatch))
        pieces, _ = end.core.pull(10**6)
        (goodbye,) = frames.Decoder().feed(b"".join(pieces))
        self.assertEqual(goodbye.kind, frames.GOODBYE)
        # Nothing happens any more.
        self.assertEqual(end.core.bytes_received(data), [])
        self.assertEqual(end.core.tick(1000.0), [])
        self.assertEqual(end.core.held, 0)

    def test_at_the_accepting_end(self) -> None:
        """What no client may send."""
        opened = frames.encode(frames.OPEN, 3, b"iopub")
        data = frames.encode(frames.DATA, 3, b"x" * 50)
        closed = frames.encode(frames.CLOSE, 3)
        for bad in (
            opened + opened,
            opened + frames.encode(frames.OPEN, 2, b"iopub"),
            frames.encode(frames.OPEN, 1, b"hb"),
            data,
            closed,
            opened + data * 9,
            opened + closed + data,
            opened + closed + closed,
            opened + frames.encode(frames.WINDOW, 3, b"\0\0\0\0"),
            opened + frames.encode(frames.WINDOW, 3, b"\x7f\xff\xff\xff"),
            b"".join(frames.encode(frames.OPEN, n, b"shell") for n in range(1, 8)),
            frames.encode(frames.ACK, 0, frames.U64.pack(1)),
            hello_frame(new_hello("t")),
            welcome_frame(Welcome()),
            frames.encode(frames.GOODBYE, 0, b"{}"),
        ):
            _, far = joined()
            self.refused(far, bad)

    def test_at_the_opening_end(self) -> None:
        """What no proxy may send."""
        for bad in (
            frames.encode(frames.OPEN, 1, b"iopub"),
            frames.encode(frames.DATA, 1, b"x"),
            welcome_frame(Welcome()),
        ):
            near, _ = joined()
            self.refused(near, bad)

    def test_greeting(self) -> None:
        """What may not come first."""
        said = hello_frame(new_hello("t"))
        for bad in (
            frames.encode(frames.PING, 0, b"12345678"),
            frames.encode(frames.OPEN, 1, b"iopub"),
            welcome_frame(Welcome()),
            said.replace(b'"version":1', b'"version":9'),
        ):
            self.refused(End(Core(0.0)), bad)
        self.refused(End(Core(0.0)), said + said)
        for bad in (said, welcome_frame(Welcome(resumed=True)), welcome_frame(Welcome(version=2))):
            end = End(Core(0.0, new_hello("t")))
            end.core.pull(1000)
            self.refused(end, bad)

    def test_refusal(self) -> None:
        """A link that is not taken ends with the reason, and says nothing before it is welcomed."""
        near, far = Core(0.0, new_hello("t")), Core(0.0)
        self.assertEqual(near.open("shell"), 1)
        near.data(1, b"early")
        pieces, _ = near.pull(10**6)
        (greeted,) = far.bytes_received(b"".join(pieces))
        self.assertIsInstance(greeted, Greeted)
        far.end(TicketRefused())
        (ended,) = near.bytes_received(b"".join(far.pull(10**6)[0]))
        assert isinstance(ended, Ended)
        self.assertIsInstance(ended.error, TicketRefused)

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=30),
                st.builds(
                    frames.encode,
                    st.sampled_from(sorted(frames.BODIES)),
                    st.integers(0, 3),
                    st.sampled_from([b"", b"x", b"iopub", b"\0\0\1\0", b"\0" * 8, b"{}", b"x" * 300]),
                ),
            ),
            max_size=20,
        )
    )
    def test_any_bytes(self, pieces: list[bytes]) -> None:
        """No bytes raise anything, or make an end hold more than its bound."""
        _, far = joined()
        for piece in pieces:
            far.core.bytes_received(piece)
            self.assertLessEqual(far.core.held, 3 * SMALL.window + limits.MAX_BODY + 8)
