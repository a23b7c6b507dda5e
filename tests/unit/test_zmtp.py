"""ZMTP: whole messages found in raw bytes, and what a peer may not say."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from sksd.errors import ZmtpProtocol
from sksd.link import zmtp
from sksd.link.zmtp import Event, Peer, Piece, Ready, Send, Subscribe, Unsubscribe

FRAME = st.one_of(st.binary(max_size=12), st.integers(250, 300).map(bytes), st.just(bytes(70_000)))
MESSAGE = st.lists(FRAME, min_size=1, max_size=5)
PLACES = st.lists(st.integers(0, 2**20), max_size=25)
PING = b"\x04\x09\x04PING\x00\x0aab"
PONG = b"\x04\x07\x04PONGab"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


def joined(events: list[Event]) -> list[Event | bytes]:
    """Pieces that follow one another as one run of bytes."""
    found: list[Event | bytes] = []
    for event in events:
        if not isinstance(event, Piece):
            found.append(event)
        elif found and isinstance(found[-1], bytes):
            found[-1] += bytes(event.data)
        else:
            found.append(bytes(event.data))
    return found


def ready(ours: str = "SUB", theirs: str = "PUB", identity: bytes = b"") -> Peer:
    peer = Peer(ours)
    assert peer.feed(greeting() + hello(theirs, identity)) == [Ready(theirs, identity)]
    return peer


def hello(socket_type: str, identity: bytes) -> bytes:
    """READY, with odd capitals and a property that nobody knows."""
    body = b"\x05READY"
    for name, value in (b"socket-TYPE", socket_type.encode()), (b"Identity", identity), (b"X-Odd", b"1"):
        body += bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
    return bytes([4, len(body)]) + body


def greeting(**changes: bytes) -> bytes:
    parts = {"signature": b"\xff" + bytes(8) + b"\x7f", "version": b"\3\1", "mechanism": b"NULL".ljust(20, b"\0")}
    return b"".join((parts | changes).values()) + bytes(32)


class Frames(TestCase):
    @given(MESSAGE)
    def test_round_trip(self, frames: list[bytes]) -> None:
        """What was joined is split again."""
        self.assertEqual(zmtp.split(zmtp.join(frames)), frames)

    def test_not_one_message(self) -> None:
        """split wants one whole message, and no command."""
        one = zmtp.join([b"a", b"b"])
        for wrong in (b"", one[:-1], one[:3], one + b"\0", one + one, b"\x04\x01a", b"\xff", b"\2\0\0"):
            self.assertRaises(ZmtpProtocol, zmtp.split, wrong)

    @given(st.lists(MESSAGE, max_size=6), st.integers(0, 2**20))
    def test_boundaries(self, messages: list[list[bytes]], place: int) -> None:
        """Each whole message's end, and none of the one that is not whole."""
        raw = [zmtp.join(frames) for frames in messages]
        ends, data = list(accumulate(map(len, raw))), b"".join(raw)
        self.assertEqual(list(zmtp.boundaries(data)), ends)
        part = data[: place % (len(data) + 1)]
        self.assertEqual(list(zmtp.boundaries(part)), [end for end in ends if end <= len(part)])
        self.assertEqual(list(zmtp.boundaries(b"??" + data, 2)), [end + 2 for end in ends])


class Traffic(TestCase):
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.one_of(MESSAGE, st.none()), max_size=8), PLACES)
    def test_any_pieces(self, messages: list[list[bytes] | None], places: list[int]) -> None:
        """Wherever the bytes are cut: the same bytes, with true boundaries and counts, and PINGs are answered."""
        raw = [PING if frames is None else zmtp.join(frames) for frames in messages]
        peer, events, seen, counted = Peer("SUB"), [], 0, 0
        ends = set(accumulate(len(part) for part in raw if part != PING))
        for data in cut(Peer("PUB").greeting() + b"".join(raw), places):
            for event in peer.feed(data):
                events.append(event)
                if isinstance(event, Piece):
                    within = [end - seen for end in ends if seen < end <= seen + len(event.data)]
                    self.assertEqual(event[1:], (max(within, default=0), len(within)))
                    seen += len(event.data)
                    counted += event.messages
        self.assertEqual(counted, len([part for part in raw if part != PING]))
        wanted: list[Event] = [Ready("PUB", b"")]
        wanted += [Send(PONG) if part == PING else Piece(part, 0, 0) for part in raw]
        self.assertEqual(joined(events), joined(wanted))

    def test_no_copy(self) -> None:
        """What is messages only is handed on as it came."""
        peer, data = ready(), zmtp.join([bytes(1000)]) * 3
        ((piece, boundary, messages),) = peer.feed(data)
        self.assertIs(piece, data)
        self.assertEqual((boundary, messages), (len(data), 3))

    def test_command_within_a_message(self) -> None:
        """libzmq may send its PING between two frames of a message."""
        message = zmtp.join([b"one", b"two"])
        got = ready().feed(message[:5] + PING + message[5:])
        self.assertEqual(got, [Piece(message[:5], 0, 0), Send(PONG), Piece(message[5:], 5, 1)])

    def test_other_commands_are_dropped(self) -> None:
        """In the traffic."""
        self.assertEqual(ready().feed(b"\x04\x04\x03FOO" + PONG + b"\x06" + bytes(7) + b"\x04\x03FOO"), [])

    @given(st.lists(st.tuples(st.booleans(), st.booleans(), st.binary(max_size=300)), max_size=6), PLACES)
    def test_subscriptions(self, sent: list[tuple[bool, bool, bytes]], places: list[int]) -> None:
        """As messages and as commands."""
        data, wanted = b"", []
        for wants, as_command, topic in sent:
            wanted.append(Subscribe(topic) if wants else Unsubscribe(topic))
            if as_command:
                body = (b"\x09SUBSCRIBE" if wants else b"\x06CANCEL") + topic
                data += b"\x06" + len(body).to_bytes(8, "big") + body
            else:
                data += zmtp.subscribe(topic) if wants else zmtp.unsubscribe(topic)
        peer = ready("PUB", "SUB")
        self.assertEqual([event for part in cut(data, places) for event in peer.feed(part)], wanted)

    def test_an_xsubs_own_messages(self) -> None:
        """Only the first frame of a message is a subscription, and one that is none is dropped."""
        data = zmtp.join([b"hello"]) + zmtp.join([b"", b"\1no"]) + zmtp.subscribe(b"yes")
        self.assertEqual(ready("PUB", "XSUB").feed(data), [Subscribe(b"yes")])


class Violations(TestCase):
    def test_pairs(self) -> None:
        """Who may talk to whom."""
        for ours, theirs in [("SUB", "XPUB"), ("DEALER", "ROUTER"), ("ROUTER", "REQ"), ("ROUTER", "ROUTER")]:
            self.assertTrue(ready(ours, theirs).ready)
        for ours, theirs in [("SUB", "SUB"), ("DEALER", "PUB"), ("PUB", "DEALER"), ("ROUTER", "SUB"), ("SUB", "?")]:
            self.assertRaises(ZmtpProtocol, ready, ours, theirs)
        self.assertRaises(ValueError, Peer, "PAIR")

    def test_identity(self) -> None:
        """It is told by READY."""
        self.assertEqual(ready("ROUTER", "DEALER", b"me").peer_identity, b"me")

    def test_greetings(self) -> None:
        """Told apart with as few bytes as can be, and a newer minor or major version is fine."""
        for wrong in (
            b"GET / HTTP/1.1",
            b"\xff" + b"x" * 9,
            greeting(version=b"\2")[:11],
            greeting(mechanism=b"CURVE".ljust(20, b"\0"))[:32],
            greeting(mechanism=b"NULL".ljust(20, b"x"))[:32],
        ):
            self.assertRaises(ZmtpProtocol, Peer("SUB").feed, wrong)
        self.assertEqual(Peer("SUB").feed(greeting(version=b"\4\0")), [])
        # libzmq's begins with a length, as ZMTP 1 did.
        self.assertEqual(Peer("SUB").feed(greeting(signature=b"\xff" + bytes(7) + b"\1\x7f")), [])

    def test_handshakes(self) -> None:
        """READY, whole and true, comes first."""
        hello = Peer("PUB").greeting()
        for wrong in (
            b"\x00\x01a",
            b"\x04\x00",
            b"\x04\x02\x05R",
            b"\x04\x05\x04PING",
            b"\x04\x08\x05ERROR\x01n",
            b"\x04\x06\x05READY",
            b"\x04\x08\x05READY\x0bS",
            b"\x06" + (8193).to_bytes(8, "big"),
            b"\x05",
            b"\x08",
            hello[64:].replace(b"\0\0\0\3PUB", b"\0\0\1\3PUB"),
        ):
            self.assertRaises(ZmtpProtocol, Peer("SUB").feed, hello[:64] + wrong)

    def test_traffic(self) -> None:
        """Flags that are reserved, commands that are too long, frames beyond the limit."""
        for wrong in (b"\x08", b"\x80", b"\x05\0", b"\x07", b"\x06" + bytes(6) + b"\xff\xff", b"\x04\x00"):
            self.assertRaises(ZmtpProtocol, ready().feed, wrong)
            self.assertRaises(ZmtpProtocol, ready("PUB", "SUB").feed, wrong)
        self.assertRaises(ZmtpProtocol, ready().feed, b"\x02" + (2**40 + 1).to_bytes(8, "big"))
        self.assertRaises(ZmtpProtocol, ready("PUB", "SUB").feed, zmtp.subscribe(bytes(9000)))
        few = Peer("DEALER", limit=1000)
        few.feed(Peer("ROUTER").greeting())
        self.assertEqual(few.feed(zmtp.join([bytes(1000)]))[0][1], 1009)
        for part in cut(zmtp.join([bytes(1001)])[:8], [3, 5]):
            few.feed(part)
        self.assertRaises(ZmtpProtocol, few.feed, b"\xe9")

    @settings(max_examples=300)
    @given(st.sampled_from(["SUB", "PUB", "ROUTER", "DEALER"]), st.integers(0, 3), st.binary(max_size=200), PLACES)
    def test_garbage(self, ours: str, stage: int, garbage: bytes, places: list[int]) -> None:
        """Whatever comes, at whatever stage: waiting, or ZmtpProtocol."""
        theirs = {"SUB": "PUB", "PUB": "SUB", "ROUTER": "DEALER", "DEALER": "ROUTER"}[ours]
        hello = Peer(theirs).greeting()
        data = [b"", hello[:64], hello[:66], hello][stage] + garbage
        peer = Peer(ours)
        try:
            for part in cut(data, places):
                peer.feed(part)
        except ZmtpProtocol:
            pass
