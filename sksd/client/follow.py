"""Reads what an engine has said and says, without a front end: an end of the link that speaks ZMTP itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import defer

from sksd import __version__
from sksd.client.relay import Carrier, Status
from sksd.client.session import CONNECT_TIMEOUT, Route
from sksd.errors import LinkCut, SksdError, ZmtpProtocol
from sksd.link import zmtp
from sksd.link.hello import Replay, new_hello
from sksd.link.limits import FINISH_LIMIT, GOODBYE_LIMIT
from sksd.link.link import Link
from sksd.wire import jupyter
from sksd.wire.messages import Ticket

#: Bytes of messages that wait to be taken; beyond them the host is not given room for more.
_WAITING: Final = 1024 * 1024


class _Subscriber:
    """An End (sksd.link.link) of an iopub stream: whole messages wait in it until they are taken."""

    def __init__(self, link: Link, moved: Callable[[], None]) -> None:
        self.closed = False
        self._link = link
        self._moved = moved
        self._peer = zmtp.Peer("SUB")
        self._waiting: deque[bytes] = deque()
        self._part: list[bytes] = []
        #: Bytes of whole messages in `_waiting`, and of the stream for which the host gets no room again yet.
        self._size = self._withheld = 0
        stream = link.core.open("iopub")
        if stream is None:
            raise LinkCut(problem="it ended")
        self._stream = stream
        link.taps[stream] = self
        link.local_data(stream, self._peer.greeting())

    def next(self) -> bytes | None:
        """The next message, None while there is none."""
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        self._size -= len(message)
        self._settle()
        return message

    def deliver(self, data: bytes) -> None:
        """Called by the link."""
        self._withheld += len(data)
        try:
            events = self._peer.feed(data)
        except ZmtpProtocol as error:
            self._link.end(error)
            return
        for event in events:
            match event:
                case zmtp.Send(reply):
                    self._link.local_data(self._stream, reply)
                case zmtp.Ready():
                    self._link.local_data(self._stream, zmtp.subscribe(b""))
                case zmtp.Piece(piece, boundary, _):
                    self._piece(bytes(piece), boundary)
        self._settle()
        if self._waiting:
            self._moved()

    def _piece(self, data: bytes, boundary: int) -> None:
        if boundary:
            whole, self._part = b"".join([*self._part, data[:boundary]]), []
            start = 0
            for end in zmtp.boundaries(whole):
                self._waiting.append(whole[start:end])
                start = end
            self._size += len(whole)
        if boundary < len(data):
            self._part.append(data[boundary:])

    def _settle(self) -> None:
        """A message that is not whole must come to its end, whatever waits before it."""
        if self._withheld and (self._size < _WAITING or self._part):
            size, self._withheld = self._withheld, 0
            self._link.local_drained(self._stream, size)

    def read(self, reading: bool) -> None:
        """Called by the link: what is said here is little."""

    def taken(self, size: int) -> None:
        """Called by the link."""

    def handed(self, total: int) -> None:
        """Called by the link of one whose relay was killed: never here."""

    def finish(self) -> None:
        """The host has said all."""
        self.closed = True
        self._link.local_closed(self._stream)
        self._moved()


class Follower:
    """Made by `follow`. What the engine says comes from `next`, as fast as that is called."""

    def __init__(
        self, reactor: Any, route: Route, ticket: Ticket, replay: Replay, told: Callable[[Status], None]
    ) -> None:
        hello = new_hello(ticket.ticket, f"sksd {__version__}", replay, watch=True)
        self._reactor = reactor
        self._route = route
        self._engine = ticket.engine
        self._key = ticket.key.encode()
        self._carrier = Carrier(reactor, route, hello, told)
        self._link = self._carrier.link
        self._iopub: _Subscriber | None = None
        self._waiting: list[defer.Deferred[None]] = []
        #: How many messages of the past are still to come.
        self.left = 0

    async def _open(self, timeout: float) -> None:
        try:
            await self._carrier.open(timeout)
        except SksdError as error:
            raise self._named(error) from None
        self.left = self._link.past
        if not self._link.ended:
            self._iopub = _Subscriber(self._link, self._moved)
        self._link.when_ended().addCallback(lambda _: self._moved())

    async def next(self) -> jupyter.Message | None:
        """The next message, None when the engine has ended and all was said: `why` says how, then.

        With `left` at 0 all is said that was there when this began. Raises what else has ended the link, as
        LinkForgotten. One caller at a time.
        """
        while True:
            raw = self._iopub.next() if self._iopub is not None else None
            if raw is not None:
                message = jupyter.read(self._key, zmtp.split(raw))
                if message is not None:
                    self.left = message.left or 0
                    return message
            elif self._link.ended:
                return None
            else:
                more: defer.Deferred[None] = defer.Deferred()
                self._waiting.append(more)
                await more

    def when_ended(self) -> defer.Deferred[SksdError | None]:
        """Fires when the link is over: with EngineEnded or whatever else has ended it, None after `stop`."""
        return self._link.when_ended().addCallback(lambda error: self._named(error) if error is not None else None)

    async def stop(self) -> None:
        """End the link; the engine goes on. Returns after FINISH_LIMIT and GOODBYE_LIMIT seconds at the latest."""
        self._link.end()
        if not self._link.when_closed().called:
            try:
                await self._link.when_closed().addTimeout(FINISH_LIMIT + GOODBYE_LIMIT, self._reactor)
            except defer.TimeoutError:
                return

    def _named(self, error: SksdError) -> SksdError:
        return type(error)(**{"engine": self._engine, **error.fields, "host": self._route.name})

    def _moved(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:
                each.callback(None)


def _silent(_: Status) -> None:
    pass


async def follow(
    reactor: Any,
    route: Route,
    ticket: Ticket,
    *,
    replay: Replay = "start",
    timeout: float = CONNECT_TIMEOUT,
    told: Callable[[Status], None] = _silent,
) -> Follower:
    """Open a link that only looks on: what the engine said before (`replay`, as in sksd.link.hello), then what it
    says. Works for one that has ended and is still listed, while what it said is kept.

    `told` is called when the link is cut and when it is back. Raises what `connect` raises, and TicketRefused,
    NoSuchEngine and EngineEnded (nothing is kept).
    """
    follower = Follower(reactor, route, ticket, replay, told)
    try:
        await follower._open(timeout)
    except BaseException:
        await follower.stop()
        raise
    return follower
