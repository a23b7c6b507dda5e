"""ZMTP 3.0 with the NULL mechanism (RFC 23/ZMTP), as one end of a connection: bytes in, events out, no I/O.

Messages are not decoded. What a peer sends is handed on as the bytes that came, with a note of where the last whole
message in them ends, so that relaying costs a look at each frame's header and no copy. Raw bytes of messages mean the
same on every connection: what one peer has sent may be written to another as it is, from one message's end to
another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple

from sksd.errors import ZmtpProtocol

Bytes = bytes | bytearray | memoryview

_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_U64: Final = Struct(">Q")
_U32: Final = Struct(">I")

_GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
#: Commands and subscriptions are gathered, so they are bounded; what libzmq sends has less than 600 bytes.
MAX_COMMAND: Final = 8192
MAX_FRAME: Final = 2**40
#: Which sockets may be at the other end.
_PEERS: Final = {
    "SUB": ("PUB", "XPUB"),
    "PUB": ("SUB", "XSUB"),
    "DEALER": ("ROUTER",),
    "ROUTER": ("DEALER", "REQ", "ROUTER"),
}


class Send(NamedTuple):
    """Write `data` to this peer, between two messages of those that are written to it."""

    data: bytes


class Ready(NamedTuple):
    """The handshake is over: messages may be written from now on. `identity` is empty unless the peer has set one."""

    socket_type: str
    identity: bytes


class Piece(NamedTuple):
    """Raw bytes of messages: any part of one, or many.

    `boundary`: how many bytes of `data` there are up to the end of the last message that ends in it (0: none does);
    `messages`: how many messages end in it. `data` is what was given to `feed`, or a view of it.
    """

    data: Bytes
    boundary: int
    messages: int


class Subscribe(NamedTuple):
    """The peer wants messages whose first frame begins with `topic`. A SUB socket says each topic once."""

    topic: bytes


class Unsubscribe(NamedTuple):
    """The peer takes a `Subscribe` back."""

    topic: bytes


Event = Send | Ready | Piece | Subscribe | Unsubscribe


class Scanner:
    """Finds where messages end in raw bytes that come in any pieces."""

    __slots__ = ("_header", "_left", "_limit", "_more")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        #: A header that has begun, bytes of a body that are still to come, and whether another frame follows.
        self._header = b""
        self._left = 0
        self._more = 0

    def feed(self, data: Bytes, start: int = 0) -> tuple[int, int, int]:
        """(stop, boundary, messages): `data` was read from `start` to `stop`, the last of `messages` message ends in
        it is at `boundary` (`start`: none is).

        `stop` is the end of `data`, or where a command begins: go on behind it. Raises ZmtpProtocol.
        """
        size = len(data)
        at, more, boundary, messages = start + self._left, self._more, start, 0
        if self._header:
            header = self._header
            taken = min((9 if header[0] & _LONG else 2) - len(header), size - start)
            self._header = header = header + bytes(data[start : start + taken])
            if len(header) < (9 if header[0] & _LONG else 2):
                return size, start, 0
            self._header = b""
            more = header[0] & _MORE
            at += taken + (self._long(header, 0) if header[0] & _LONG else header[1])
            messages = int(not more and at <= size)
            boundary = at if messages else start
        elif self._left and not more and at <= size:
            boundary, messages = at, 1
        while at < size:
            flags = data[at]
            if flags < _LONG:
                if at + 1 == size:
                    break
                at += 2 + data[at + 1]
            elif flags < _COMMAND:
                if at + 9 > size:
                    break
                at += 9 + self._long(data, at)
            elif flags & ~_LONG == _COMMAND:
                self._left, self._more = 0, more
                return at, boundary, messages
            else:
                raise ZmtpProtocol(problem=f"a frame with flags {flags:#04x}")
            more = flags & _MORE
            if not more and at <= size:
                boundary = at
                messages += 1
        self._more = more
        if at < size:
            self._header, self._left = bytes(data[at:]), 0
        else:
            self._left = at - size
        return size, boundary, messages

    def _long(self, data: Bytes, at: int) -> int:
        length = int(_U64.unpack_from(data, at + 1)[0])
        if length > self._limit:
            raise ZmtpProtocol(problem=f"a frame of {length} bytes")
        return length


class Peer:
    """This end of one connection, as a `socket_type` socket ("SUB", "DEALER", "PUB", "ROUTER").

    Write `greeting()` when the connection is made, give everything that is read to `feed`, and carry out what it
    answers, in order. `identity`: what a ROUTER at the other end is to call this one (at most 255 bytes).
    `limit`: the longest frame. A peer whose bytes have raised ZmtpProtocol is of no more use: close the connection.

    A PUB's peer sends subscriptions only: they come as events, and nothing comes as Piece.
    """

    def __init__(self, socket_type: str, *, identity: bytes = b"", limit: int = MAX_FRAME) -> None:
        if socket_type not in _PEERS or len(identity) > 255:
            raise ValueError(socket_type)
        self.socket_type = socket_type
        self._identity = identity
        #: What the other end is, once it is `ready`.
        self.ready = False
        self.peer_type = ""
        self.peer_identity = b""
        self._publishes = socket_type == "PUB"
        self._scanner = Scanner(limit)
        self._greeted = False
        #: A greeting, a command or a subscription that is not whole yet.
        self._part = bytearray()
        self._within = 0

    def greeting(self) -> bytes:
        """The first bytes for the other end: greeting and READY at once, which saves a round trip."""
        properties = [("Socket-Type", self.socket_type.encode())]
        if not self.socket_type.endswith("UB"):
            properties.append(("Identity", self._identity))
        parts = [bytes([len(k)]) + k.encode() + _U32.pack(len(v)) + v for k, v in properties]
        return _GREETING + _command(b"READY", b"".join(parts))

    def feed(self, data: Bytes) -> list[Event]:
        """What `data`, read from the connection, brings. Raises ZmtpProtocol, and then nothing of `data` counts."""
        events: list[Event] = []
        at, size = 0, len(data)
        while at < size:
            if self.ready and not self._publishes and not self._part:
                stop, boundary, messages = self._scanner.feed(data, at)
                if stop > at:
                    piece = data if stop - at == size else memoryview(data)[at:stop]
                    events.append(Piece(piece, boundary - at, messages))
                at = stop
                if at == size:
                    break
            missing = self._missing()
            while missing and at < size:
                self._part += data[at : at + missing]
                at = min(at + missing, size)
                missing = self._missing()
            if not missing:
                part, self._part = bytes(self._part), bytearray()
                if self._greeted:
                    self._frame(part[0], part[9 if part[0] & _LONG else 2 :], events)
                self._greeted = True
        return events

    def _missing(self) -> int:
        """How many bytes the unfinished thing needs before it can be looked at again; 0: it is whole."""
        part = self._part
        have = len(part)
        if not self._greeted:
            return _missing_greeting(part)
        if not have:
            return 1
        flags = part[0]
        if flags & ~(_MORE | _LONG | _COMMAND) or flags & (_MORE | _COMMAND) == (_MORE | _COMMAND):
            raise ZmtpProtocol(problem=f"a frame with flags {flags:#04x}")
        if not flags & _COMMAND and not self.ready:
            raise ZmtpProtocol(problem="a message before READY")
        header = 9 if flags & _LONG else 2
        if have < header:
            return header - have
        length = int(_U64.unpack_from(part, 1)[0]) if flags & _LONG else part[1]
        if length > MAX_COMMAND:
            raise ZmtpProtocol(problem=f"a command or subscription of {length} bytes")
        return header + length - have

    def _frame(self, flags: int, body: bytes, events: list[Event]) -> None:
        """A whole command, or a frame of a subscriber."""
        if not flags & _COMMAND:
            first, self._within = not self._within, flags & _MORE
            # Anything else is an XSUB's own message to its publisher, and not for us.
            if first and body[:1] in (b"\0", b"\1"):
                events.append(Subscribe(body[1:]) if body[0] else Unsubscribe(body[1:]))
            return
        if not body or not 0 < body[0] < len(body):
            raise ZmtpProtocol(problem="a command without a name")
        name, rest = body[1 : 1 + body[0]], body[1 + body[0] :]
        if not self.ready:
            self._handshake(name, rest)
            events.append(Ready(self.peer_type, self.peer_identity))
        elif name == b"PING":
            # Two bytes say how long the peer waits, at most 16 are to be sent back.
            events.append(Send(_command(b"PONG", rest[2:18])))
        elif self._publishes and name == b"SUBSCRIBE":
            events.append(Subscribe(rest))
        elif self._publishes and name == b"CANCEL":
            events.append(Unsubscribe(rest))

    def _handshake(self, name: bytes, rest: bytes) -> None:
        if name == b"ERROR":
            raise ZmtpProtocol(problem=f"it refuses this end: {rest[1:].decode('ascii', 'replace')}")
        if name != b"READY":
            raise ZmtpProtocol(problem=f"a command {name.decode('ascii', 'replace')} instead of READY")
        properties = _properties(rest)
        self.peer_type = properties.get(b"socket-type", b"").decode("ascii", "replace")
        self.peer_identity = properties.get(b"identity", b"")
        if self.peer_type not in _PEERS[self.socket_type]:
            raise ZmtpProtocol(problem=f"a {self.peer_type or '?'} socket at a {self.socket_type} socket")
        if len(self.peer_identity) > 255:
            raise ZmtpProtocol(problem=f"an identity of {len(self.peer_identity)} bytes")
        self.ready = True


def subscribe(topic: bytes) -> bytes:
    """What a SUB writes to get messages that begin with `topic`, once the peer is ready."""
    return join([b"\1" + topic])


def unsubscribe(topic: bytes) -> bytes:
    """What a SUB writes to take that back."""
    return join([b"\0" + topic])


def join(frames: Iterable[bytes]) -> bytes:
    """One message on the wire; `frames` are at least one."""
    parts: list[bytes] = []
    frames = list(frames)
    for number, frame in enumerate(frames, 1):
        more = int(number < len(frames))
        long = len(frame) > 255
        parts.append(bytes([more | _LONG]) + _U64.pack(len(frame)) if long else bytes([more, len(frame)]))
        parts.append(frame)
    return b"".join(parts)


def split(message: Bytes) -> list[bytes]:
    """The frames of exactly one whole message as it is on the wire. Raises ZmtpProtocol when it is not that."""
    frames: list[bytes] = []
    at, more = 0, 1
    while more:
        more, begin, at = _frame_at(message, at)
        if at > len(message):
            break
        frames.append(bytes(message[begin:at]))
    if at != len(message):
        raise ZmtpProtocol(problem="not exactly one whole message")
    return frames


def boundaries(data: Bytes, start: int = 0) -> Iterator[int]:
    """Where each whole message ends in raw bytes; a message begins at `start`. Raises ZmtpProtocol."""
    at, size = start, len(data)
    while at < size:
        more, _, at = _frame_at(data, at)
        if at > size:
            return
        if not more:
            yield at


def _frame_at(data: Bytes, at: int) -> tuple[int, int, int]:
    """(whether another follows, where the body begins, where it ends) of the frame at `at`; it ends beyond `data`
    when it, or its header, is not whole."""
    size = len(data)
    if at >= size:
        return 0, size, size + 1
    flags = data[at]
    if flags & ~(_MORE | _LONG):
        raise ZmtpProtocol(problem=f"a frame with flags {flags:#04x} among messages")
    begin = at + (9 if flags & _LONG else 2)
    if begin > size:
        return 0, size, size + 1
    return flags & _MORE, begin, begin + (_U64.unpack_from(data, at + 1)[0] if flags & _LONG else data[at + 1])


def _command(name: bytes, data: bytes) -> bytes:
    body = bytes([len(name)]) + name + data
    if len(body) > 255:
        return bytes([_COMMAND | _LONG]) + _U64.pack(len(body)) + body
    return bytes([_COMMAND, len(body)]) + body


def _missing_greeting(part: bytearray) -> int:
    """As `Peer._missing`. Looks as soon as it can: what is no ZMTP may never send 64 bytes."""
    have = len(part)
    if (have and part[0] != 0xFF) or (have > 9 and part[9] != 0x7F):
        raise ZmtpProtocol(problem="it does not speak ZMTP 3")
    if have > 10 and part[10] < 3:
        raise ZmtpProtocol(problem=f"it speaks ZMTP {part[10]}, not 3")
    if have > 31 and part[12:32] != _GREETING[12:32]:
        name = bytes(part[12:32]).rstrip(b"\0").decode("ascii", "replace")
        raise ZmtpProtocol(problem=f"its mechanism is {name!r}, not NULL")
    return next((stage - have for stage in (1, 10, 11, 32, 64) if stage > have), 0)


def _properties(data: bytes) -> dict[bytes, bytes]:
    """READY's metadata; names do not differ by case."""
    found = {}
    at, size = 0, len(data)
    while at < size:
        name_end = at + 1 + data[at]
        if name_end + 4 > size:
            raise ZmtpProtocol(problem="a broken READY")
        end = name_end + 4 + _U32.unpack_from(data, name_end)[0]
        if end > size:
            raise ZmtpProtocol(problem="a broken READY")
        found[data[at + 1 : name_end].lower()] = data[name_end + 4 : end]
        at = end
    return found
