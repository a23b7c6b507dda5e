"""The codec of the link and its first frame."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from sksd.errors import EngineEnded, KernelDied, LinkProtocol, ProtocolMismatch, TicketRefused, UnknownError
from sksd.link import frames, hello
from sksd.link.chunks import Chunks, Piece
from sksd.link.limits import MAX_BODY, MAX_HELLO


def _frame() -> st.SearchStrategy[frames.Frame]:
    def of(kind: int) -> st.SearchStrategy[frames.Frame]:
        low, high = frames.BODIES[kind]
        stream = st.integers(1, 2**32 - 1) if kind >= frames.SEQUENCED else st.just(0)
        body = st.one_of(
            st.binary(min_size=low, max_size=min(high, low + 40)),
            st.integers(low, high).map(lambda n: b"x" * n),
        )
        return st.builds(frames.Frame, st.just(kind), stream, body)

    return st.sampled_from(sorted(frames.BODIES)).flatmap(of)


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


class CodecTests(TestCase):
    @settings(max_examples=300, deadline=None)
    @given(st.lists(_frame(), max_size=8), st.lists(st.integers(0, 10**6), max_size=30))
    def test_round_trip(self, sent: list[frames.Frame], places: list[int]) -> None:
        """What was encoded is decoded, wherever the bytes are cut."""
        data = b"".join(frames.encode(*frame) for frame in sent)
        decoder, got = frames.Decoder(), []
        for piece in _cut(data, places):
            got += decoder.feed(piece)
            self.assertLessEqual(decoder.held, MAX_BODY + 8)
        self.assertEqual(got, sent)
        self.assertEqual(decoder.held, 0)

    def test_byte_by_byte(self) -> None:
        """One byte at a time."""
        data = frames.encode(frames.PING, 0, b"12345678") + frames.encode(frames.CLOSE, 7)
        decoder = frames.Decoder()
        got = [frame for byte in data for frame in decoder.feed(bytes([byte]))]
        self.assertEqual(got, [(frames.PING, 0, b"12345678"), (frames.CLOSE, 7, b"")])

    @settings(max_examples=500, deadline=None)
    @given(st.lists(st.binary(max_size=200), max_size=10))
    def test_garbage(self, pieces: list[bytes]) -> None:
        """Garbage is refused with LinkProtocol or waits for more, and never holds more than a frame."""
        decoder = frames.Decoder()
        try:
            for piece in pieces:
                decoder.feed(piece)
                self.assertLessEqual(decoder.held, MAX_BODY + 8)
        except LinkProtocol:
            pass

    def test_refused_by_the_header(self) -> None:
        """A frame that may not exist is refused before its body is here."""
        for kind, stream, length in [
            (0, 0, 2),
            (99, 0, 2),
            (frames.DATA, 1, MAX_BODY + 1),
            (frames.DATA, 1, 0),
            (frames.DATA, 0, 1),
            (frames.PING, 1, 8),
            (frames.PING, 0, 9),
            (frames.HELLO, 0, MAX_HELLO + 1),
        ]:
            self.assertRaises(LinkProtocol, frames.Decoder().feed, frames.header(kind, stream, length))


class ChunksTests(TestCase):
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.one_of(st.binary(max_size=5000), st.integers(1, 6000)), max_size=40))
    def test_order(self, steps: list[bytes | int]) -> None:
        """Whatever is put in and taken out: the same bytes in the same order, and `size` is right."""
        chunks, put, got = Chunks(), b"", b""
        for step in steps:
            if isinstance(step, bytes):
                chunks.append(step)
                put += step
            else:
                pieces: list[Piece] = []
                count = chunks.take(step, pieces)
                taken = b"".join(pieces)
                self.assertEqual(len(taken), count)
                got += taken
            self.assertEqual(chunks.size, len(put) - len(got))
        rest: list[Piece] = []
        chunks.take(chunks.size, rest)
        self.assertEqual(got + b"".join(rest), put)


class HelloTests(TestCase):
    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=50), st.lists(st.integers(0, 10**6), max_size=10))
    def test_first_frame(self, rest: bytes, places: list[int]) -> None:
        """HELLO is read wherever it is cut, and the bytes after it come out whole."""
        said = hello.new_hello("secret", "sksd 1")
        first, answer, later = hello.FirstFrame(), None, b""
        for piece in _cut(hello.hello_frame(said) + rest, places):
            if answer is None:
                answer = first.feed(piece)
            else:
                later += piece
        assert answer is not None
        self.assertEqual(answer[0], said)
        self.assertEqual(answer[1] + later, rest)

    def test_garbage(self) -> None:
        """Anything else is refused, at the first byte where that tells."""
        feed = hello.FirstFrame().feed
        self.assertRaises(LinkProtocol, feed, b"GET / HTTP/1.1\r\n")
        long = frames.header(frames.HELLO, 0, MAX_HELLO + 1)
        self.assertRaises(LinkProtocol, hello.FirstFrame().feed, long)
        for body in (b"{}", b"[1]", b"\xff\xfe", b"[" * 8000, b'{"version":1,"link":"zz"}', b'"\\ud800"'):
            frame = frames.encode(frames.HELLO, 0, body)
            self.assertRaises(LinkProtocol, hello.FirstFrame().feed, frame)

    @settings(max_examples=300, deadline=None)
    @given(st.binary(min_size=2, max_size=200))
    def test_any_body(self, body: bytes) -> None:
        """No body raises anything but LinkProtocol or ProtocolMismatch."""
        for read in (hello.read_hello, hello.read_goodbye):
            with contextlib.suppress(LinkProtocol, ProtocolMismatch):
                read(body)

    def test_other_version(self) -> None:
        """A HELLO of another version is told apart from garbage, and new fields are let be."""
        body = {"version": 2, "link": "0" * 32, "colour": "blue"}
        self.assertRaises(ProtocolMismatch, hello.read_hello, json.dumps(body).encode())
        self.assertEqual(hello.read_hello(json.dumps(body | {"version": 1}).encode()).link, "0" * 32)

    def test_to_proxy(self) -> None:
        """The daemon takes the ticket out and puts the engine in."""
        said = hello.new_hello("secret", "me")
        frame = hello.hello_to_proxy(said, "abc1")
        self.assertNotIn(b"secret", frame)
        answer = hello.FirstFrame().feed(frame)
        assert answer is not None
        self.assertEqual((answer[0].engine, answer[0].link, answer[0].client), ("abc1", said.link, "me"))

    def test_goodbye(self) -> None:
        """An error arrives as the same error, an unknown one with its sentence, none as none."""

        def through(frame: bytes) -> object:
            (got,) = frames.Decoder().feed(frame)
            return hello.read_goodbye(got.body)

        ended = through(hello.goodbye_frame(EngineEnded(engine="a", how="killed by SIGKILL")))
        self.assertIsInstance(ended, EngineEnded)
        self.assertIn("killed by SIGKILL", str(ended))
        self.assertIsInstance(through(hello.goodbye_frame(TicketRefused())), TicketRefused)
        self.assertIsNone(through(hello.goodbye_frame(None)))
        odd = b'{"code":"new-one","message":"Sentence.","fields":{"self":1}}'
        unknown = through(frames.encode(frames.GOODBYE, 0, odd))
        self.assertIsInstance(unknown, UnknownError)
        self.assertEqual(str(unknown), "Sentence.")
        odd = b'{"code":"link-cut","message":"","fields":{"self":1,"problem":"p"}}'
        self.assertIn("p", str(through(frames.encode(frames.GOODBYE, 0, odd))))

    def test_long_goodbye(self) -> None:
        """A kernel's long last words are cut to what a frame holds."""
        for log in ("x" * 10**6, "\x01" * 10**6, "é" * 10**6):
            (got,) = frames.Decoder().feed(hello.goodbye_frame(KernelDied(how="exit code 1", log=log)))
            error = hello.read_goodbye(got.body)
            self.assertIsInstance(error, KernelDied)
            self.assertIn(log[:500], str(error))
