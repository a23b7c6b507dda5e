"""A client that is killed and started again: its core beside the one of the other end, which knew the one before."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from sksd.errors import EngineEnded, LinkForgotten, LinkProtocol
from sksd.link import frames
from sksd.link.core import Action, Core, Ended, Handed, Opened, Over
from sksd.link.hello import Hello, Welcome, hello_frame, new_hello, welcome_frame
from sksd.link.limits import MAX_HELLO, REJOIN_LIMIT
from sksd.link.restart import Before, Past, rests, say
from tests.unit.test_link_core import SMALL, End, Network


class Killable(End):
    """The client's end, with what its program leaves when it is killed."""

    def __init__(self, core: Core, hello: Hello) -> None:
        super().__init__(core)
        self.hello = hello
        self.last = 0
        #: Streams that are not over: how much of each is no longer kept, and how much the front end was given.
        self.base: dict[int, int] = {}
        self.handed: dict[int, int] = {}

    def open_stream(self) -> int:
        stream = self.core.open("iopub")
        if stream is None:
            return 0
        self.open.add(stream)
        self.last = stream
        self.base[stream] = self.handed[stream] = 0
        return stream

    def do(self, actions: list[Action]) -> None:
        super().do(actions)
        for action in actions:
            if isinstance(action, Over):
                del self.base[action.stream], self.handed[action.stream]

    def drain(self, stream: int, count: int) -> None:
        if stream in self.handed:
            self.handed[stream] += min(count, self.undrained[stream])
        super().drain(stream, count)

    def again(self, random: Random) -> Killable:
        """The next one. It has forgotten some of what the other end must have."""
        for stream, base in self.base.items():
            self.base[stream] = max(base, random.randint(0, self.taken[stream]))
        before = Before(
            tuple(
                Past(stream, "iopub", base, bytes(self.said[stream][base:]), self.handed[stream])
                for stream, base in self.base.items()
            ),
            self.last,
        )
        following = Killable(Core(0.0, self.hello, SMALL, before), self.hello)
        following.last, following.base, following.handed = self.last, self.base, self.handed
        following.said, following.taken = self.said, self.taken
        return following


class Told(End):
    """The accepting end."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.handed: dict[int, int] = {}
        self.over: set[int] = set()

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Handed):
                self.handed[action.stream] = action.total
                self.paused.discard(action.stream)
            elif isinstance(action, Over):
                self.over.add(action.stream)
        super().do(actions)

    def say(self, stream: int, data: bytes) -> None:
        if stream not in self.handed:
            super().say(stream, data)


def pair() -> tuple[Network, Killable, Told]:
    hello = new_hello("t")
    near, far = Killable(Core(0.0, hello, SMALL), hello), Told(Core(0.0, None, SMALL))
    network = Network(near, far)
    carry(network)
    return network, near, far


def carry(network: Network, times: int = 4) -> None:
    for _ in range(times):
        network.load(10**4)
        network.arrive(10**6, 10**6)


def restart(network: Network, random: Random) -> Killable:
    """The network's near end dies, and another connects in its place."""
    network.cut(random.random() < 0.5)
    assert isinstance(network.near, Killable)
    near = network.near = network.near.again(random)
    return near


class RestartTests(TestCase):
    @settings(max_examples=400, deadline=None)
    @given(st.integers(0, 2**32), st.integers(10, 400))
    def test_every_byte_once_in_order_over_any_restarts(self, seed: int, steps: int) -> None:
        """Kills and cuts at any byte: what the client had taken arrives once and in order, and the other end learns
        of each stream how much of it the front end was given."""
        random = Random(seed)
        network, near, far = pair()
        #: What the front ends of streams had been given when their relay was killed.
        given_to: dict[int, int] = {}
        for _ in range(steps):
            one: End = random.choice((near, far))
            stream = random.choice(sorted(one.open)) if one.open else 0
            match random.choice("ooddddddrrrrllllaaaaaaxcccckK"):
                case "o":
                    near.open_stream()
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
                case "K":
                    given_to |= {number: near.handed[number] for number in near.open}
                    near = restart(network, random)
                case "c":
                    network.connect()
                case _:
                    pass
            for end in (near, far):
                self.assertEqual(end.ended, [])
                self.assertLessEqual(end.core.held, 20 * SMALL.streams * (SMALL.window + SMALL.beyond))
        network.connect()
        for _ in range(300):
            network.load(1000)
            network.arrive(10**6, 10**6)
            for end in (near, far):
                for stream in sorted(end.open):
                    end.drain(stream, 10**6)
        for stream, said in near.said.items():
            got = far.got[stream]
            self.assertEqual(said[: len(got)], got)
            if stream not in far.closed_here:
                self.assertEqual(len(got), len(said))
        for stream in near.open & far.open:
            self.assertEqual(near.got[stream], far.said[stream])
        for stream, total in far.handed.items():
            self.assertEqual(total, given_to.get(stream, total))
        self.assertEqual(near.core.sent, far.core.received)
        self.assertEqual(far.core.sent, near.core.received)
        self.assertEqual(near.open, far.open)
        self.assertEqual(set(near.core.streams), set(far.core.streams))
        self.assertEqual(set(near.base), near.open)

    def test_the_old_before_the_new(self) -> None:
        """What the relay before had read comes before anything of the front end's next connection, and what it had
        read beyond its credit too."""
        random = Random(1)
        network, near, far = pair()
        stream = near.open_stream()
        carry(network)
        for _ in range(20):
            near.say(stream, b"old" * 20)
            network.load(1000)
        near = restart(network, random)
        again = near.open_stream()
        self.assertGreater(again, stream)
        near.say(again, b"new")
        network.connect()
        carry(network)
        self.assertEqual(far.got[stream], near.said[stream])
        self.assertIn(stream, far.closing)
        self.assertEqual(far.got[again], b"new")

    def test_an_open_that_never_arrived(self) -> None:
        """A front end that connected while the link was cut."""
        network, near, far = pair()
        network.cut(True)
        stream = near.open_stream()
        near.say(stream, b"asked")
        near = restart(network, Random(1))
        network.connect()
        carry(network)
        self.assertEqual(far.got[stream], b"asked")
        self.assertIn(stream, far.closing)

    def test_closed_by_the_engine_meanwhile(self) -> None:
        """Streams that the other end had closed are over for both, and count for no limit."""
        network, near, far = pair()
        streams = [near.open_stream() for _ in range(3)]
        carry(network)
        far.close(streams[0])
        network.load(1000)
        near = restart(network, Random(1))
        far.close(streams[1])
        network.connect()
        carry(network)
        self.assertEqual((near.core.streams, far.core.streams), ([streams[2]], [streams[2]]))
        far.close(streams[2])
        carry(network)
        self.assertEqual((far.core.streams, near.base), ([], {}))

    def test_time_to_come_back(self) -> None:
        """A link whose engine has ended waits for the front ends of a relay that was started again."""
        network, near, far = pair()
        near.open_stream()
        carry(network)
        near = restart(network, Random(1))
        far.do(far.core.finish(EngineEnded(engine="e", how="exit code 1")))
        network.connect()
        carry(network)
        self.assertEqual((near.ended, far.open, far.closing), ([], {1}, {1}))
        far.close(1)
        again = near.open_stream()
        carry(network)
        far.say(again, b"last words")
        far.close(again)
        carry(network)
        self.assertEqual(near.got[again], b"last words")
        for second in range(1, int(REJOIN_LIMIT) + 1):
            self.assertEqual(near.ended, [])
            far.do(far.core.tick(float(second)))
            near.drain(again, 100)
            carry(network)
        self.assertIsInstance(near.ended[0], EngineEnded)

    def test_which_iopub(self) -> None:
        """A stream names the one that it goes on for."""
        _, near, far = pair()
        near.core.open("iopub")
        second = near.core.open("iopub", 1)
        pieces, _ = near.core.pull(1000)
        opened = far.core.bytes_received(b"".join(map(bytes, pieces)))
        self.assertEqual(opened, [Opened(1, "iopub", 0), Opened(2, "iopub", 1)])
        self.assertEqual(second, 2)
        for bad in (b"shell 1", b"iopub x", b"iopub -1", b"iopub 1 2"):
            _, _, far = pair()
            (ended,) = far.core.bytes_received(frames.encode(frames.OPEN, 1, bad))
            assert isinstance(ended, Ended)
            self.assertIsInstance(ended.error, LinkProtocol)

    def test_forgotten(self) -> None:
        """A host that does not know the link any more says so."""
        network, near, _ = pair()
        near.open_stream()
        near = restart(network, Random(1))
        near.do(near.core.reconnect(0.0))
        near.pull(1000)
        near.do(near.core.bytes_received(welcome_frame(Welcome())))
        self.assertIsInstance(near.ended[0], LinkForgotten)

    def test_what_cannot_be(self) -> None:
        """The other end cannot have had more than there was, or less than it had said."""
        before = Before((Past(2, "shell", 10, b"taken", 0),), 3)
        for welcome in (
            Welcome(last=4),
            Welcome(last=3, streams={2: (9, 100)}),
            Welcome(last=3, streams={2: (16, 100)}),
            Welcome(last=1),
        ):
            self.assertRaises(LinkProtocol, rests, before, welcome)
        (rest,) = rests(before, Welcome(last=3, streams={2: (12, 100)}))
        self.assertEqual((rest.credit, rest.data), (100, b"ken"))
        self.assertEqual(rests(before, Welcome(last=2)), [])

    def test_the_first_frames_fit(self) -> None:
        """With as many streams as there may be, and the longest numbers."""
        streams = tuple(Past(2**32 - 1 - n, "control", 0, b"", 2**53) for n in range(128))
        hello = say(new_hello("t" * 2048, "c" * 200), Before(streams, 2**32 - 1))
        self.assertLessEqual(len(hello_frame(hello)), MAX_HELLO)
        welcome = Welcome(last=2**32 - 1, streams={past.stream: (2**53, 2**31) for past in streams})
        self.assertLessEqual(len(welcome_frame(welcome)), MAX_HELLO)
        self.assertEqual(msgspec.json.decode(hello_frame(hello)[8:], type=Hello), hello)


