"""Frames of the link (docs/link.md): a header of 8 bytes, then a body.

The header is two big-endian u32: the kind in the upper 8 bits of the first and the body's length in the lower
24, then the stream (0 for kinds that are not sequenced). Nothing here does I/O.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from sksd.errors import LinkProtocol
from sksd.link.limits import MAX_BODY, MAX_HELLO

HEADER: Final = Struct(">II")
U32: Final = Struct(">I")
U64: Final = Struct(">Q")

HELLO: Final = 1
WELCOME: Final = 2
ACK: Final = 3
PING: Final = 4
PONG: Final = 5
GOODBYE: Final = 6
OPEN: Final = 16
DATA: Final = 17
WINDOW: Final = 18
CLOSE: Final = 19

#: Kinds from here on are sequenced: their bytes are counted, header included.
SEQUENCED: Final = 16

#: Shortest and longest body of each kind.
BODIES: Final = {
    HELLO: (2, MAX_HELLO),
    WELCOME: (2, MAX_HELLO),
    ACK: (8, 8),
    PING: (8, 8),
    PONG: (8, 8),
    GOODBYE: (2, MAX_BODY),
    OPEN: (1, 16),
    DATA: (1, MAX_BODY),
    WINDOW: (4, 4),
    CLOSE: (0, 0),
}


class Frame(NamedTuple):
    """One frame; `kind` is one of the numbers above."""

    kind: int
    stream: int
    body: bytes


def header(kind: int, stream: int, length: int) -> bytes:
    """The header of a frame whose body has `length` bytes; the caller keeps to `BODIES`."""
    return HEADER.pack(kind << 24 | length, stream)


def encode(kind: int, stream: int = 0, body: bytes = b"") -> bytes:
    """A whole frame; the caller keeps to `BODIES`."""
    return HEADER.pack(kind << 24 | len(body), stream) + body


def check(kind: int, stream: int, length: int) -> None:
    """Raise LinkProtocol unless a frame with this header may exist. Called before the body has arrived."""
    bounds = BODIES.get(kind)
    if bounds is None:
        raise LinkProtocol(problem=f"a frame of kind {kind}")
    if not bounds[0] <= length <= bounds[1]:
        raise LinkProtocol(problem=f"a frame of kind {kind} with {length} bytes")
    if (kind >= SEQUENCED) != (stream > 0):
        raise LinkProtocol(problem=f"a frame of kind {kind} on stream {stream}")


class Decoder:
    """Makes frames of bytes that arrive in any pieces; holds at most one frame that is not whole yet."""

    def __init__(self) -> None:
        self._part = bytearray()

    @property
    def held(self) -> int:
        """Bytes of the unfinished frame."""
        return len(self._part)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order. Raises LinkProtocol: the decoder is of no more use
        then."""
        frames: list[Frame] = []
        at, end = 0, len(data)
        part = self._part
        if part:
            at = self._fill(data, frames)
            if part:
                return frames
        while end - at >= 8:
            first, stream = HEADER.unpack_from(data, at)
            kind, length = first >> 24, first & 0xFFFFFF
            check(kind, stream, length)
            following = at + 8 + length
            if following > end:
                break
            frames.append(Frame(kind, stream, data[at + 8 : following]))
            at = following
        if at < end:
            part += memoryview(data)[at:]
        return frames

    def _fill(self, data: bytes, frames: list[Frame]) -> int:
        """Go on with the unfinished frame; answers how many bytes of `data` it took."""
        part = self._part
        view = memoryview(data)
        at = 0
        if len(part) < 8:
            at = min(8 - len(part), len(data))
            part += view[:at]
            if len(part) < 8:
                return at
        first, stream = HEADER.unpack_from(part)
        kind, length = first >> 24, int(first & 0xFFFFFF)
        check(kind, stream, length)
        more = min(8 + length - len(part), len(data) - at)
        part += view[at : at + more]
        if len(part) == 8 + length:
            with memoryview(part) as whole:
                frames.append(Frame(kind, stream, bytes(whole[8:])))
            part.clear()
        return at + more
