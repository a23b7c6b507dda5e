"""The host's end of each stream of a link: speaks ZMTP with the front end, and gives it whole messages in order.

A stream's bytes towards the front end are this end's greeting, then raw messages of a source: the journal for iopub,
a session's replies for the other channels. So the front end's place in the source follows from how many bytes of the
stream have left the relay, and where a stream breaks off, another goes on at the last whole message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from twisted.logger import Logger

from sksd import amounts
from sksd.errors import SksdError, ZmtpProtocol
from sksd.keeper.journal import Journal
from sksd.link import zmtp
from sksd.link.limits import PAYLOAD
from sksd.link.link import Link
from sksd.wire import jupyter

log = Logger()

#: Bytes read from a source at once.
_READ: Final = 2 * PAYLOAD


class Source(Protocol):
    """Raw messages one after the other; `end` bytes have ever been."""

    end: int

    def read(self, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes from `offset`; empty at the end."""


class FrontEnd:
    """One stream of `link` (an End of sksd.link.link). `moved()` is called when more has left the relay,
    `gone(end)` when the stream is over, and again if its relay turns out to have been killed before."""

    def __init__(
        self,
        link: Link,
        stream: int,
        socket_type: str,
        moved: Callable[[], None],
        gone: Callable[[Any], None],
    ) -> None:
        self.link = link
        self.stream = stream
        self._moved = moved
        self._gone = gone
        self._peer = zmtp.Peer(socket_type)
        self._source: Source | None = None
        #: Where the next byte for the front end is in the source.
        self._cursor = 0
        #: (bytes of the stream, offset in the source) where raw messages begin.
        self._origin = (0, 0)
        self._sent = self._taken = 0
        self._last = False
        self._over = False
        #: What comes next cannot be read.
        self.unreadable = False
        #: The relay was killed: another stream may go on for the front end.
        self.broken = False
        self._say(self._peer.greeting())

    # -- what the link says ------------------------------------------------------------------------

    def deliver(self, data: bytes) -> None:
        """The front end says something."""
        try:
            events = self._peer.feed(data)
        except ZmtpProtocol as error:
            log.info("a front end speaks no ZMTP: {error}", error=str(error))
            self.finish()
            return
        for event in events:
            self.event(event)
        self.drained(len(data))

    def event(self, event: zmtp.Event) -> None:
        """What the front end's bytes have brought."""
        raise NotImplementedError

    def drained(self, size: int) -> None:
        """`size` bytes of the front end need no more room here."""
        self.link.local_drained(self.stream, size)

    def read(self, reading: bool) -> None:
        """The stream can take bytes, or has enough for now."""
        if reading:
            self.pump()

    def taken(self, size: int) -> None:
        """`size` bytes more have left the relay."""
        self._taken += size
        self._moved()

    def handed(self, total: int) -> None:
        """The relay was killed, and the front end has had `total` bytes."""
        self.broken = True
        self._taken = min(total, self._sent)
        self._moved()
        if self._over:
            # What was said last has not come through.
            self._gone(self)

    def finish(self) -> None:
        """The stream is over."""
        if not self._over:
            self._over = True
            self.link.local_closed(self.stream)
            self._gone(self)

    # -- towards the front end ---------------------------------------------------------------------

    def begin(self, source: Source, offset: int) -> None:
        """Give the front end what is in `source` from `offset` on, as it comes."""
        self._source = source
        self._cursor = offset
        self._origin = (self._sent, offset)
        self.pump()

    @property
    def delivered(self) -> int:
        """What of the source has left the relay, as an offset: anywhere in a message."""
        stream, source = self._origin
        return source + max(0, self._taken - stream)

    @property
    def begun(self) -> bool:
        """It has a source."""
        return self._source is not None

    def pump(self) -> None:
        """Give the stream what it can take; called when the source has more."""
        if self._source is None or self._over:
            return
        while not self._over and self.link.wants(self.stream):
            try:
                data = self._next()
            except (SksdError, ValueError) as error:
                log.warn("a stream breaks off: {error}", error=str(error))
                # ValueError: what nobody keeps for this one is gone.
                self.unreadable = isinstance(error, SksdError)
                self.finish()
                return
            if not data:
                break
            self._say(data)
        if self._last and self.complete:
            self.finish()

    @property
    def complete(self) -> bool:
        """All that its source has is on its way."""
        return self._source is not None and self._cursor >= self._source.end

    def ending(self) -> None:
        """It is known from the beginning that its source, when it gets one, is complete."""
        self._last = True

    def last(self) -> None:
        """The source gets no more: close the stream once the front end has everything."""
        self._last = True
        if self._source is None:
            self.finish()
        self.pump()

    def _next(self) -> bytes:
        assert self._source is not None
        data = self._source.read(self._cursor, _READ)
        self._cursor += len(data)
        return data

    def _say(self, data: bytes) -> None:
        self._sent += len(data)
        self.link.local_data(self.stream, data)


class IopubEnd(FrontEnd):
    """iopub: everything from the journal, from the first subscription on. (A SUB socket itself drops what it has not
    subscribed to.) Messages before `now` are marked as the past; where some are no longer kept, a message says so.

    `begins(end)` answers where it begins, and `now`. For one that `watches` the journal keeps nothing, so that it may
    miss a part; and when the engine has ended it gets to subscribe before its stream is closed.
    """

    def __init__(
        self, link: Link, stream: int, journal: Journal, key: bytes, watches: bool,
        begins: Callable[[IopubEnd], tuple[int, int]], moved: Callable[[], None], gone: Callable[[Any], None],
    ) -> None:  # fmt: skip
        super().__init__(link, stream, "PUB", moved, gone)
        self._journal = journal
        self._key = key
        self._watches = watches
        self._begins = begins
        self._now = 0
        self._messages: Iterator[tuple[int, bytes]] | None = None
        #: How many messages of the past there are from the cursor on.
        self._left = 0
        #: (bytes of the stream, offset in the journal) at the end of each message of the past that is on its way.
        self._marks: deque[tuple[int, int]] = deque()
        self._done = 0

    def event(self, event: zmtp.Event) -> None:
        """Subscriptions."""
        if isinstance(event, zmtp.Subscribe) and not self.begun:
            self._done, self._now = self._begins(self)
            self._left = self._journal.count_between(self._done, self._now)
            self.begin(self._journal, self._done)

    def last(self) -> None:
        """As in FrontEnd, but for who watches and has not subscribed yet."""
        if self._watches and not self.begun:
            self._last = True
        else:
            super().last()

    @property
    def delivered(self) -> int:
        """As in FrontEnd, with the past's messages longer here than in the journal."""
        while self._marks and self._marks[0][0] <= self._taken:
            self._done = self._marks.popleft()[1]
        if self._marks or self._cursor < self._now:
            return self._done
        return max(self._done, super().delivered)

    def _next(self) -> bytes:
        if self._cursor >= self._now and not self._watches:
            self._messages = None
            return super()._next()
        if self._messages is None:
            self._messages = self._journal.messages(self._cursor)
        found = next(self._messages, None)
        if found is None:
            self._messages = None
            return b""
        start, said = found
        gap, self._cursor = start - self._cursor, start + len(said)
        if start < self._now:
            # Counted anew where some are missing.
            self._left = self._left - 1 if not gap else self._journal.count_between(self._cursor, self._now)
            said = zmtp.join(jupyter.as_past(self._key, zmtp.split(said), self._left))
        if gap:
            said = self._missing(gap, start < self._now) + said
        self._origin = (self._sent + len(said), self._cursor)
        self._marks.append(self._origin)
        return said

    def _missing(self, count: int, past: bool) -> bytes:
        text = f"sksd: {amounts.size(count)} that were said here are no longer kept.\n"
        frames = [b"stream", *jupyter.new(self._key, "stream", {"name": "stderr", "text": text})]
        return zmtp.join(jupyter.as_past(self._key, frames, self._left + 1) if past else frames)


class TalkEnd(FrontEnd):
    """shell, control or stdin: whole requests go to `asked(end, messages)`, replies come from the source that
    `greeted` gives it once the front end's identity is known. `asked` answers whether there is room for more."""

    def __init__(
        self, link: Link, stream: int, greeted: Callable[[TalkEnd, bytes], None],
        asked: Callable[[TalkEnd, bytes], bool], moved: Callable[[], None], gone: Callable[[Any], None],
    ) -> None:  # fmt: skip
        super().__init__(link, stream, "ROUTER", moved, gone)
        self._greeted = greeted
        self._asked = asked
        #: A request that is not whole yet, in the pieces that came.
        self._part: list[bytes] = []
        #: Bytes for which the front end gets no room again yet.
        self._withheld = 0
        self._has_room = True

    def event(self, event: zmtp.Event) -> None:
        """Who it is, and what it asks."""
        match event:
            case zmtp.Ready(_, identity):
                self._greeted(self, identity)
            case zmtp.Piece(data, boundary, _):
                if boundary:
                    whole = b"".join([*self._part, data[:boundary]])
                    self._part = []
                    self._has_room = self._asked(self, whole)
                if boundary < len(data):
                    self._part.append(bytes(data[boundary:]))

    def drained(self, size: int) -> None:
        """Only while there is room for more."""
        self._withheld += size
        if self._has_room:
            self.room()

    def room(self) -> None:
        """The kernel has taken what waited."""
        self._has_room = True
        if self._withheld:
            size, self._withheld = self._withheld, 0
            super().drained(size)
