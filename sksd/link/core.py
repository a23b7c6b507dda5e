"""The state of one end of a link: events in, actions out, no I/O and no clock of its own (docs/link.md).

The edge (sksd.link.link) calls one method for each thing that happens and carries out the actions that it
answers, in order. Bytes for the other end are not an action: the edge pulls them when the transport can
take some, so that what waits is still in the streams' own queues, where a small message passes a large one.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import msgspec

from sksd.errors import LinkCut, LinkForgotten, LinkProtocol, ProtocolMismatch, SksdError
from sksd.link import frames
from sksd.link.chunks import Chunks, Piece
from sksd.link.hello import (
    Hello,
    Welcome,
    goodbye_frame,
    hello_frame,
    read_body,
    read_goodbye,
    read_hello,
    welcome_frame,
)
from sksd.link.limits import (
    ACK_EVERY,
    DEAD_AFTER,
    MAX_CREDIT,
    MAX_STREAM_ID,
    PING_INTERVAL,
    PROBE_LIMIT,
    REJOIN_LIMIT,
    VERSION,
    Limits,
)
from sksd.link.restart import Before, rests, say
from sksd.link.retained import Retained

CHANNELS: Final = ("shell", "iopub", "stdin", "control")
_CHANNEL_OF: Final = {name.encode(): name for name in CHANNELS}
_IOPUB: Final = "iopub"


class Greeted(NamedTuple):
    """Accepting end: the client's HELLO is here. Answer with `Core.welcome` or `Core.end`."""

    hello: Hello


class Welcomed(NamedTuple):
    """Opening end: the other end takes the link."""

    welcome: Welcome


class Opened(NamedTuple):
    """The other end has opened `stream`: connect it to `channel`, then report `drained` and `closed`. `after`: the
    stream for whose front end it goes on, 0 when that is not known."""

    stream: int
    channel: str
    after: int = 0


class Data(NamedTuple):
    """Bytes for the local end of `stream`. Report `drained` once they have left this process."""

    stream: int
    data: bytes


class Taken(NamedTuple):
    """`size` more bytes of `stream` have left the other end's process."""

    stream: int
    size: int


class Handed(NamedTuple):
    """The client's program was killed, and its front end had been given `total` bytes of `stream`: say no more there.
    What it had read of the front end still comes, then `Closed`."""

    stream: int
    total: int


class Over(NamedTuple):
    """`stream` is closed at both ends."""

    stream: int


class Closed(NamedTuple):
    """The other end has closed `stream`: write what is left, close the local end, then report `closed`."""

    stream: int


class Pause(NamedTuple):
    """Read no more of the local end of `stream`."""

    stream: int


class Resume(NamedTuple):
    """Read the local end of `stream` again."""

    stream: int


class Cut(NamedTuple):
    """The connection is of no more use, or gone: close it. The link goes on: the opening end connects anew and calls
    `Core.reconnect`, the accepting one waits for `Core.resume`."""

    problem: str


class Resumed(NamedTuple):
    """The link goes on over its new connection."""


class Ended(NamedTuple):
    """The link is over, always the last action: pull what is left (a GOODBYE), then close the connection;
    after a GOODBYE of ours leave that to the other end, for a while.

    `error` is None when either end was simply done.
    """

    error: SksdError | None


Action = (
    Greeted | Welcomed | Opened | Data | Taken | Handed | Closed | Over | Pause | Resume | Cut | Resumed | Ended
)


class _Stream:
    """`credit`: bytes we may send. `allow`: bytes the other end may send. `unread`: bytes given to the edge
    that it has not reported as drained. `owed`: drained bytes for which no WINDOW was sent yet. `had`: bytes that
    came. `opening`: the OPEN that is still to be sent. `mute`: nobody is there any more to whom anything could be
    said."""

    __slots__ = (
        "allow",
        "close_sent",
        "closing",
        "credit",
        "had",
        "mute",
        "number",
        "opening",
        "out",
        "owed",
        "paused",
        "peer_closed",
        "queued",
        "unread",
    )

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.out = Chunks()
        self.credit = window
        self.allow = window
        self.unread = 0
        self.owed = 0
        self.had = 0
        self.opening: bytes | None = None
        self.mute = False
        self.queued = False
        self.paused = False
        self.closing = False
        self.close_sent = False
        self.peer_closed = False

    @property
    def heard(self) -> bool:
        """What is said on it reaches somebody."""
        return not (self.closing or self.peer_closed or self.mute)


_GREETING: Final = "greeting"
_OPEN: Final = "open"
_CUT: Final = "cut"
_ENDED: Final = "ended"


class Core:
    """One end of a link. With a `hello` it is the end that opens streams (the relay's), without the keeper's. With
    `before` it goes on with the link of a program that was killed: it is cut, and `reconnect` is next.

    `now` is in seconds of any clock that never goes back; every later `tick` uses the same. Once ended, every
    method does nothing and answers no action. Methods name streams by number; one that is over is ignored,
    because the local socket and the other end may close at once.
    """

    def __init__(
        self, now: float, hello: Hello | None = None, limits: Limits | None = None, before: Before | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._opens = hello is not None
        self._state = _GREETING if before is None else _CUT
        self._decoder = frames.Decoder()
        self._streams: dict[int, _Stream] = {}
        self._last_opened = 0 if before is None else before.last
        #: The program before, until the other end has welcomed this one.
        self._before = before
        #: Its streams that are not closed yet: later ones wait, so that a front end's words keep their order.
        self._old = set() if before is None else {past.stream for past in before.streams}
        self._aside: list[_Stream] = []
        #: Streams that have something to send, in turn.
        self._ring: deque[_Stream] = deque()
        #: Sequenced frames that need not wait for their stream's turn.
        self._urgent: deque[bytes] = deque()
        self._retained = Retained()
        self._hello = hello
        #: HELLO or WELCOME, the first frame on each connection.
        self._first: bytes | None = None if hello is None else hello_frame(hello)
        self._welcomed = before is not None
        self._goodbye: bytes | None = None
        #: This end has said GOODBYE: the other one closes the connection.
        self.said_goodbye = False
        self._finishing = False
        self._finish_error: SksdError | None = None
        #: Until when front ends have time to come back to a link that is to end.
        self._rejoin = float("-inf")
        self._ack_due = False
        self._ping: bytes | None = None
        self._pong: bytes | None = None
        #: Sequenced bytes: produced, received as whole frames, what we have acknowledged, what they have.
        self.sent = 0
        self.received = 0
        self._told = 0
        self.acknowledged = 0
        #: Where the last CLOSE ended.
        self._last_close = 0
        self._ticked = self._heard = self._pinged = now
        self._heard_since = False
        #: Until when an answer to `probe` must be here.
        self._probed: float | None = None

    # -- what the edge may ask ---------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Nothing will happen any more."""
        return self._state == _ENDED

    @property
    def streams(self) -> list[int]:
        """The streams that are not over on both sides."""
        return list(self._streams)

    def wants(self, number: int) -> bool:
        """Whether less waits on a stream than its local end may bring at once. When not, `Resume` comes later."""
        stream = self._streams.get(number)
        return stream is not None and stream.heard and not stream.paused

    @property
    def is_cut(self) -> bool:
        """There is no connection, and the link waits for one."""
        return self._state == _CUT

    @property
    def unacknowledged(self) -> int:
        """Bytes kept to be sent again after a cut: at most about a window for each stream."""
        return self._retained.size

    @property
    def held(self) -> int:
        """Bytes that this end holds in memory: queues, an unfinished frame, and what the edge has not
        drained.

        Never more than a stream's `queue` plus one read plus `window`, for each stream, and one frame.
        """
        streams = self._streams.values()
        return self._decoder.held + sum(stream.out.size + stream.unread for stream in streams)

    # -- events on this side -----------------------------------------------------------------------

    def open(self, channel: str, after: int = 0) -> int | None:
        """A front end has connected to `channel`: the number of its stream, None when there are too many or
        the link is over (drop the connection). Before WELCOME, what streams have to say waits.

        `after`: the iopub stream that the same front end had before this program was started again, if known.
        """
        if not self._opens or channel not in CHANNELS:
            raise ValueError(channel)
        streams = len(self._streams) + (len(self._before.streams) if self._before is not None else 0)
        if self._state == _ENDED or streams >= self._limits.streams or self._last_opened >= MAX_STREAM_ID:
            return None
        self._last_opened += 1
        number = self._last_opened
        stream = self._streams[number] = _Stream(number, self._limits.window)
        stream.opening = _open(number, channel, after)
        self._enqueue(stream)
        return number

    def data(self, number: int, data: bytes) -> list[Action]:
        """Bytes were read from the local end of a stream."""
        stream = self._streams.get(number)
        if stream is None or not stream.heard:
            return []
        stream.out.append(data)
        if stream.credit > 0:
            self._enqueue(stream)
        if stream.out.size >= self._limits.queue and not stream.paused:
            stream.paused = True
            return [Pause(number)]
        return []

    def closed(self, number: int) -> list[Action]:
        """The local end of a stream is closed; bytes reported before still go out, then CLOSE."""
        stream = self._streams.get(number)
        if stream is None or stream.closing:
            return []
        stream.closing = True
        stream.paused = False
        # The other end is told before CLOSE what was taken; the rest, and what still comes, is taken by nobody.
        if stream.owed and not stream.peer_closed:
            self._give(stream)
        self._untaken(stream, stream.unread)
        stream.unread = 0
        if not stream.out.size:
            self._enqueue(stream)
        return []

    def drained(self, number: int, count: int) -> list[Action]:
        """`count` bytes of earlier `Data` have left this process."""
        stream = self._streams.get(number)
        if stream is None or stream.closing:
            return []
        if count > stream.unread:
            raise ValueError(f"{count} bytes drained of {stream.unread}")
        stream.unread -= count
        self._owe(stream, count)
        return []

    def welcome(self, past: int = 0) -> list[Action]:
        """Accepting end, after `Greeted`: take the link; `past` as in Welcome."""
        if self._state == _GREETING and not self._opens:
            self._state = _OPEN
            self._first = welcome_frame(Welcome(past=past))
        return []

    def end(self, error: SksdError | None) -> list[Action]:
        """End the link at once; the other end is told `error` (None: done). What is queued is dropped."""
        if self._state == _ENDED:
            return []
        self._state = _ENDED
        self._forget()
        self._goodbye = goodbye_frame(error)
        self.said_goodbye = True
        return [Ended(error)]

    def finish(self, error: SksdError | None) -> list[Action]:
        """End the link like `end`, but once the other end has had all that every stream has, and its CLOSE.

        `pull` answers `Ended` then. The edge sets a limit after which it calls `end`.
        """
        if self._state == _GREETING:
            return self.end(error)
        if self._state in (_OPEN, _CUT) and not self._finishing:
            self._finishing = True
            self._finish_error = error
        return []

    def cut(self, problem: str) -> list[Action]:
        """The connection is gone. A link that was never welcomed is over."""
        if self._state == _OPEN or (self._state == _GREETING and self._welcomed):
            self._state = _CUT
            self._disconnect()
            return [Cut(problem)]
        if self._state == _GREETING:
            return self._over(LinkCut(problem=problem))
        return []

    def reconnect(self, now: float) -> list[Action]:
        """Opening end: there is a new connection. HELLO asks to go on; `Resumed` or `Ended` follows."""
        if self._state == _CUT and self._hello is not None:
            self._state = _GREETING
            self._ticked = self._heard = now
            again = msgspec.structs.replace(self._hello, resume=True, received=self.received)
            self._first = hello_frame(again if self._before is None else say(self._hello, self._before))
        return []

    def resume(self, hello: Hello, now: float) -> list[Action]:
        """Accepting end: the client is back on a new connection, maybe before the loss of the old one was seen."""
        if self._state == _OPEN:
            self._disconnect()
        if self._state not in (_OPEN, _CUT):
            return []
        self._state = _OPEN
        self._ticked = self._heard = self._pinged = now
        if hello.restarted:
            return [*self._begin_again(hello, now), Resumed()]
        self._first = welcome_frame(Welcome(resumed=True, received=self.received))
        if not self._rewind(hello.received):
            return self.end(LinkProtocol(problem=f"it has received {hello.received} of {self.sent} bytes"))
        return [Resumed()]

    def probe(self, now: float) -> list[Action]:
        """The network may have changed: is the other end still there? Without an answer in PROBE_LIMIT seconds `tick`
        cuts the connection."""
        if self._state == _OPEN and self._probed is None:
            self._probed = now + PROBE_LIMIT
            self._heard_since = False
            self._ping = _ping(now)
        return []

    def tick(self, now: float) -> list[Action]:
        """Called every `limits.TICK` seconds: pings, late ACKs, and whether the other end is still there."""
        if self._state == _ENDED:
            return []
        asleep = now - self._ticked > PING_INTERVAL
        self._ticked = now
        # A machine that slept, or a busy event loop, has not listened either: give the other end time again.
        if self._heard_since or asleep:
            self._heard_since = False
            self._heard = now
            if self._probed is not None and not asleep:
                self._probed = None
        if self._state == _CUT:
            return []
        if now - self._heard >= DEAD_AFTER or (self._probed is not None and now >= self._probed):
            return self.cut(f"nothing was heard for {DEAD_AFTER if self._probed is None else PROBE_LIMIT:.0f} s")
        if self._state == _OPEN:
            if now - self._pinged >= PING_INTERVAL:
                self._pinged = now
                self._ping = _ping(now)
            if self.received > self._told:
                self._ack_due = True
            for stream in self._streams.values():
                if stream.owed and not (stream.close_sent or stream.peer_closed):
                    self._give(stream)
        return []

    # -- bytes -------------------------------------------------------------------------------------

    def pull(self, limit: int) -> tuple[list[Piece], list[Action]]:
        """Bytes for the transport: whole frames, `limit` bytes or a frame more; empty: nothing now.

        Called when the transport can take more, after every other event and again until it answers nothing.
        """
        pieces: list[Piece] = []
        actions: list[Action] = []
        size = self._pull_unsequenced(pieces)
        if self._state != _OPEN:
            return pieces, actions
        size += self._retained.replay(limit - size, pieces)
        if self._retained.replaying:
            return pieces, actions
        while self._urgent:
            frame = self._urgent.popleft()
            self._send(len(frame), [frame], pieces)
            size += len(frame)
        ring = self._ring
        while ring and size < limit:
            size += self._pull_stream(ring.popleft(), pieces, actions)
        if self._finishing and not ring and self._all_said() and self._ticked >= self._rejoin:
            actions += self.end(self._finish_error)
            self._pull_unsequenced(pieces)
        return pieces, actions

    def _pull_unsequenced(self, pieces: list[Piece]) -> int:
        """The greeting, ACK, PING, PONG and GOODBYE; while greeting nothing else may leave."""
        if self._goodbye is not None:
            waiting = [self._goodbye]
            self._goodbye = None
        else:
            waiting = [frame for frame in (self._first, self._ping, self._pong) if frame is not None]
            self._first = self._ping = self._pong = None
            if self._ack_due:
                self._ack_due = False
                self._told = self.received
                waiting.append(frames.encode(frames.ACK, 0, frames.U64.pack(self.received)))
        pieces += waiting
        return sum(map(len, waiting))

    def _send(self, size: int, frame: list[Piece], pieces: list[Piece]) -> None:
        """A sequenced frame leaves for the first time."""
        pieces += frame
        self._retained.append(size, frame)
        self.sent += size

    def _pull_stream(self, stream: _Stream, pieces: list[Piece], actions: list[Action]) -> int:
        """One frame of `stream`, and its place at the end of the ring if there is more."""
        stream.queued = False
        out = stream.out
        size = 0
        if stream.opening is not None:
            size = len(stream.opening)
            self._send(size, [stream.opening], pieces)
            stream.opening = None
        elif out.size:
            count = min(self._limits.payload, stream.credit, out.size)
            if count > 0:
                frame: list[Piece] = [frames.header(frames.DATA, stream.number, count)]
                out.take(count, frame)
                stream.credit -= count
                size = frames.HEADER.size + count
                self._send(size, frame, pieces)
                if stream.paused and out.size <= self._limits.queue // 2:
                    stream.paused = False
                    actions.append(Resume(stream.number))
        elif stream.closing and not stream.close_sent:
            size = frames.HEADER.size
            self._send(size, [frames.encode(frames.CLOSE, stream.number)], pieces)
            stream.close_sent = True
            self._last_close = self.sent
            if stream.peer_closed:
                self._drop(stream, actions)
            self._old_closed(stream.number)
        if stream.credit > 0 if out.size else stream.closing and not stream.close_sent:
            self._enqueue(stream)
        return size

    def _enqueue(self, stream: _Stream) -> None:
        """It has something to send."""
        if not stream.queued:
            stream.queued = True
            waits = self._old and stream.number not in self._old
            (self._aside if waits else self._ring).append(stream)

    def _drop(self, stream: _Stream, actions: list[Action]) -> None:
        del self._streams[stream.number]
        actions.append(Over(stream.number))

    def _all_said(self) -> bool:
        said = all(stream.close_sent for stream in self._streams.values())
        # Until then a cut could still lose it.
        return said and self.acknowledged >= self._last_close

    def bytes_received(self, data: bytes) -> list[Action]:
        """The connection brought `data`, cut anywhere."""
        if self._state in (_ENDED, _CUT):
            return []
        # While greeting, a trickle of bytes is no sign of life.
        self._heard_since = self._state == _OPEN
        actions: list[Action] = []
        try:
            for frame in self._decoder.feed(data):
                if frame.kind >= frames.SEQUENCED:
                    self._sequenced(frame, actions)
                elif self._state == _GREETING:
                    self._greeting(frame, actions)
                else:
                    self._unsequenced(frame, actions)
                if self._state in (_ENDED, _CUT):
                    break
        except (LinkProtocol, ProtocolMismatch) as error:
            actions += self.end(error)
        return actions

    def _greeting(self, frame: frames.Frame, actions: list[Action]) -> None:
        if frame.kind == frames.GOODBYE:
            self._other_ended(frame, actions)
        elif self._opens and frame.kind == frames.WELCOME:
            welcome = read_body(Welcome, frame.body)
            if welcome.version != VERSION:
                raise ProtocolMismatch(theirs=welcome.version, ours=VERSION)
            if self._welcomed:
                self._other_resumes(welcome, actions)
                return
            if welcome.resumed:
                raise LinkProtocol(problem="it resumes a link that is new")
            self._state = _OPEN
            self._welcomed = True
            actions.append(Welcomed(welcome))
        elif not self._opens and frame.kind == frames.HELLO and not self._last_opened:
            hello = read_hello(frame.body)
            # So that a second HELLO before our answer is refused.
            self._last_opened = -1
            actions.append(Greeted(hello))
        else:
            raise LinkProtocol(problem=f"a frame of kind {frame.kind} instead of a greeting")

    def _other_resumes(self, welcome: Welcome, actions: list[Action]) -> None:
        if not welcome.resumed:
            actions += self._over(LinkForgotten())
            return
        if self._before is not None:
            self._go_on_from(self._before, welcome, actions)
            self._before = None
        elif not self._rewind(welcome.received):
            raise LinkProtocol(problem=f"it has received {welcome.received} of {self.sent} bytes")
        self._state = _OPEN
        actions.append(Resumed())

    def _rewind(self, received: int) -> bool:
        """The other end has had `received` of what we sent; the rest is sent again."""
        if not self.acknowledged <= received <= self.sent:
            return False
        self.acknowledged = received
        self._told = self.received
        return self._retained.rewind(received)

    # -- a client that was killed and started again ------------------------------------------------

    def _begin_again(self, hello: Hello, now: float) -> list[Action]:
        """Accepting end: both ends count from 0 again, and the old streams are there for what the client has still to
        say on them."""
        actions: list[Action] = []
        self.sent = self.received = self._told = self.acknowledged = 0
        self._retained.clear()
        self._urgent.clear()
        self._ring.clear()
        self._rejoin = now + REJOIN_LIMIT
        for stream in list(self._streams.values()):
            handed = hello.handed.get(stream.number)
            # The client has forgotten it: this end had closed it, and the answer was lost.
            if stream.peer_closed or handed is None:
                if not (stream.closing or stream.peer_closed):
                    actions.append(Closed(stream.number))
                self._drop(stream, actions)
                continue
            actions.append(Handed(stream.number, handed))
            stream.mute = True
            stream.out.clear()
            stream.queued = stream.paused = stream.close_sent = False
            # What the client had read beyond its credit is taken as well, so that later streams need not wait.
            stream.allow = max(0, self._limits.window + self._limits.beyond - stream.unread)
            stream.owed = 0
            if stream.closing:
                self._enqueue(stream)
        goes_on = {stream.number: (stream.had, stream.allow) for stream in self._streams.values()}
        self._first = welcome_frame(Welcome(resumed=True, last=max(0, self._last_opened), streams=goes_on))
        return actions

    def _go_on_from(self, before: Before, welcome: Welcome, actions: list[Action]) -> None:
        """Opening end: the old streams say what they have still to say, and close."""
        going_on = rests(before, welcome)
        for past, credit, data in going_on:
            stream = _Stream(past.stream, self._limits.window)
            if credit is None:
                stream.opening = _open(past.stream, past.channel, past.after)
            else:
                stream.credit = credit
            stream.out.append(data)
            stream.closing = True
            self._streams[past.stream] = stream
            self._enqueue(stream)
        for number in self._old - {rest.past.stream for rest in going_on}:
            actions.append(Over(number))
            self._old_closed(number)

    def _old_closed(self, number: int) -> None:
        if number in self._old:
            self._old.remove(number)
            if not self._old:
                self._ring += self._aside
                self._aside.clear()

    def _unsequenced(self, frame: frames.Frame, actions: list[Action]) -> None:
        if frame.kind == frames.ACK:
            (count,) = frames.U64.unpack(frame.body)
            if not self.acknowledged <= count <= self.sent:
                raise LinkProtocol(problem=f"ACK of {count} bytes, {self.sent} were sent")
            self.acknowledged = count
            self._retained.release(count)
        elif frame.kind == frames.PING:
            # One PONG for many PINGs: the other end cannot make us queue.
            self._pong = frames.encode(frames.PONG, 0, frame.body)
        elif frame.kind == frames.GOODBYE:
            self._other_ended(frame, actions)
        elif frame.kind != frames.PONG:
            raise LinkProtocol(problem=f"a second greeting, of kind {frame.kind}")

    def _other_ended(self, frame: frames.Frame, actions: list[Action]) -> None:
        actions += self._over(read_goodbye(frame.body))

    def _over(self, error: SksdError | None) -> list[Action]:
        self._state = _ENDED
        self._forget()
        return [Ended(error)]

    def _sequenced(self, frame: frames.Frame, actions: list[Action]) -> None:
        if self._state != _OPEN:
            raise LinkProtocol(problem="a stream's frame before the greeting")
        kind, number, body = frame
        self.received += frames.HEADER.size + len(body)
        if self.received - self._told >= ACK_EVERY:
            self._ack_due = True
        if kind == frames.OPEN:
            self._other_opened(number, body, actions)
            return
        stream = self._streams.get(number)
        if stream is None or stream.peer_closed:
            raise LinkProtocol(problem=f"a frame of kind {kind} for stream {number}, which is not open")
        if kind == frames.DATA:
            stream.allow -= len(body)
            if stream.allow < 0:
                raise LinkProtocol(problem=f"{-stream.allow} bytes beyond the window of stream {number}")
            stream.had += len(body)
            if stream.closing:
                self._untaken(stream, len(body))
            else:
                stream.unread += len(body)
                actions.append(Data(number, body))
        elif kind == frames.WINDOW:
            (count,) = frames.U32.unpack(body)
            stream.credit += count
            if count == 0 or stream.credit > MAX_CREDIT:
                raise LinkProtocol(problem=f"a window of {count} bytes for stream {number}")
            if stream.out.size:
                self._enqueue(stream)
            if not stream.mute:
                actions.append(Taken(number, count))
        else:
            self._other_closed(stream, actions)

    def _other_opened(self, number: int, body: bytes, actions: list[Action]) -> None:
        name, _, after = body.partition(b" ")
        channel = _CHANNEL_OF.get(name)
        if self._opens or channel is None or (after and (channel != _IOPUB or not after.isdigit())):
            raise LinkProtocol(problem=f"OPEN of {body!r}")
        if number <= self._last_opened:
            raise LinkProtocol(problem=f"OPEN of stream {number} after {self._last_opened}")
        if len(self._streams) >= self._limits.streams:
            raise LinkProtocol(problem=f"more than {self._limits.streams} streams")
        self._last_opened = number
        self._streams[number] = _Stream(number, self._limits.window)
        actions.append(Opened(number, channel, int(after or 0)))

    def _other_closed(self, stream: _Stream, actions: list[Action]) -> None:
        stream.peer_closed = True
        stream.out.clear()
        # The other end may wait for that to say GOODBYE.
        self._ack_due = True
        if stream.close_sent:
            self._drop(stream, actions)
        elif not stream.closing:
            # A local end that is not read would not be seen to close.
            if stream.paused:
                stream.paused = False
                actions.append(Resume(stream.number))
            actions.append(Closed(stream.number))
        else:
            self._enqueue(stream)

    def _owe(self, stream: _Stream, count: int) -> None:
        """Give the other end `count` bytes of credit, in batches: a WINDOW for each half of the window."""
        if stream.close_sent or stream.peer_closed:
            return
        stream.owed += count
        if stream.owed * 2 >= self._limits.window:
            self._give(stream)

    def _untaken(self, stream: _Stream, count: int) -> None:
        """Nobody takes `count` bytes. Where both ends close with something to say still, both need credit for it."""
        if stream.out.size:
            self._owe(stream, count)

    def _give(self, stream: _Stream) -> None:
        stream.allow += stream.owed
        self._urgent.append(frames.encode(frames.WINDOW, stream.number, frames.U32.pack(stream.owed)))
        stream.owed = 0

    def _disconnect(self) -> None:
        """Drop what belongs to the connection alone: half a frame, and what is said anew on the next one."""
        self._decoder = frames.Decoder()
        self._first = self._ping = self._pong = self._probed = None
        self._ack_due = self._heard_since = False

    def _forget(self) -> None:
        self._disconnect()
        self._streams.clear()
        self._ring.clear()
        self._old.clear()
        self._aside.clear()
        self._urgent.clear()
        self._retained.clear()


def _open(number: int, channel: str, after: int) -> bytes:
    name = f"{channel} {after}" if after and channel == _IOPUB else channel
    return frames.encode(frames.OPEN, number, name.encode())


def _ping(now: float) -> bytes:
    return frames.encode(frames.PING, 0, frames.U64.pack(int(now * 1000) % 2**64))
