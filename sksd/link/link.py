"""The edge of a link: carries out what a `Core` decides, on one transport and many local sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from sksd.errors import InternalError, LinkCut, SksdError
from sksd.link.core import (
    Action,
    Closed,
    Core,
    Cut,
    Data,
    Ended,
    Greeted,
    Handed,
    Opened,
    Over,
    Pause,
    Resume,
    Resumed,
    Taken,
    Welcomed,
)
from sksd.link.hello import Hello
from sksd.link.limits import FINISH_LIMIT, GOODBYE_LIMIT, TICK, WRITE, Limits
from sksd.link.restart import Before
from sksd.link.tap import Tap

T = TypeVar("T")


class End(Protocol):
    """The local end of a stream (sksd.link.tap at the relay)."""

    def deliver(self, data: bytes) -> None:
        """Bytes for the local end; it calls `Link.local_drained` once they have left."""

    def read(self, reading: bool) -> None:
        """Go on giving the link bytes, or give it none for now."""

    def taken(self, size: int) -> None:
        """`size` bytes more have left the other end's process."""

    def handed(self, total: int) -> None:
        """The other end's program was killed. `total` bytes of the stream have ever left it; nothing more will."""

    def finish(self) -> None:
        """The other end has closed the stream: write what is left, then call `Link.local_closed`."""


class Keep(Protocol):
    """What is told of each stream while this program lives, so that another can go on when it was killed
    (sksd.client.state)."""

    def heir(self, channel: str, who: int) -> int:
        """The stream that process `who` had at the program before this one, which no other stream goes on for; 0."""

    def opened(self, stream: int, channel: str, who: int, after: int) -> None:
        """A front end, process `who` (0: not known), is there."""

    def took(self, stream: int, data: bytes) -> None:
        """It has said something. Called before anything is done about it."""

    def handed(self, stream: int, size: int) -> None:
        """The system has taken `size` bytes for it. Called at once."""

    def passed(self, stream: int, size: int) -> None:
        """The other end needs `size` bytes more of what was taken no longer."""

    def over(self, stream: int) -> None:
        """The stream is closed at both ends."""


class Link:
    """One end of a link. Make it with `opening` (relay) or `accepting` (proxy), then connect it with a
    `sksd.link.protocol.LinkConnection`.

    `on_opened(stream, channel, after)` is called at the accepting end for each stream (`core.Opened`); whoever sets
    it makes an `End` and puts it into `taps`. `on_cut(problem)` and `on_resumed()` are called when the connection is
    lost, and when the link goes on over another. All methods must be called in the reactor's thread.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, core: Core) -> None:
        self._clock = clock
        self.core = core
        self.taps: dict[int, End] = {}
        #: Those that have closed their end, and the other has not.
        self._closing: dict[int, End] = {}
        #: Its client was killed and started again.
        self.restarted = False
        self.on_opened: Callable[[int, str, int], None] | None = None
        #: The relay's, when it can be killed and started again.
        self.keep: Keep | None = None
        self.on_cut: Callable[[str], None] | None = None
        self.on_resumed: Callable[[], None] | None = None
        #: How many messages from before the link come first on iopub: known once it is welcomed, at the accepting end
        #: set by `on_hello`.
        self.past = 0
        #: Since when (the clock's seconds) there is no connection.
        self.cut_since: float | None = None
        self._on_hello: Callable[[Link, Hello], None] | None = None
        self._transport: Any = None
        self._full = False
        self._todo: deque[Action] = deque()
        self._busy = False
        self._welcomed: list[Deferred[None]] = []
        self._is_welcomed = False
        self._ended: list[Deferred[SksdError | None]] = []
        self._is_ended = False
        self._closed: list[Deferred[None]] = []
        self._error: SksdError | None = None
        self._abort: IDelayedCall | None = None
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = clock

    @classmethod
    def opening(
        cls, clock: IReactorTime, hello: Hello, limits: Limits | None = None, before: Before | None = None
    ) -> Link:
        """The relay's end: says `hello` (`sksd.link.hello.new_hello`) as soon as it has a connection. With `before`
        it is a link that was welcomed, and whose relay was killed."""
        link = cls(clock, Core(clock.seconds(), hello, limits, before))
        link._is_welcomed = before is not None
        return link

    @classmethod
    def accepting(
        cls, clock: IReactorTime, on_hello: Callable[[Link, Hello], None], limits: Limits | None = None
    ) -> Link:
        """The engine's end. `on_hello(link, hello)` is called once: it looks up `hello.engine` and sets `on_opened`,
        or raises a SksdError, which the other end is told."""
        link = cls(clock, Core(clock.seconds(), None, limits))
        link._on_hello = on_hello
        return link

    # -- what callers wait for ---------------------------------------------------------------------

    def when_welcomed(self) -> Deferred[None]:
        """Fires when the proxy has taken the link; fails with the SksdError that ended it before."""
        waiting: Deferred[None] = Deferred()
        if self._is_ended:
            waiting.errback(self._error or LinkCut(problem="it ended"))
        elif self._is_welcomed:
            waiting.callback(None)
        else:
            self._welcomed.append(waiting)
        return waiting

    def when_ended(self) -> Deferred[SksdError | None]:
        """Fires when the link is over, with the error that ended it, None when an end was simply done."""
        waiting: Deferred[SksdError | None] = Deferred()
        if self._is_ended:
            waiting.callback(self._error)
        else:
            self._ended.append(waiting)
        return waiting

    def when_closed(self) -> Deferred[None]:
        """Fires when the link is over and its connection closed, so that nothing more is to be sent."""
        waiting: Deferred[None] = Deferred()
        if self._is_ended and self._transport is None:
            waiting.callback(None)
        else:
            self._closed.append(waiting)
        return waiting

    @property
    def ended(self) -> bool:
        """The link is over."""
        return self._is_ended

    def finish(self, error: SksdError | None = None, limit: float | None = FINISH_LIMIT) -> None:
        """End the link once all streams are closed and sent, after a cut too; at the latest after `limit` seconds."""
        self._do(self.core.finish(error))
        if not self._is_ended and limit is not None:
            late = self._clock.callLater(limit, self.end, error)
            self.when_ended().addCallback(lambda _: late.cancel() if late.active() else None)

    def end(self, error: SksdError | None = None) -> None:
        """End the link now: GOODBYE with `error`."""
        self._do(self.core.end(error))

    # -- the connection (sksd.link.protocol) -------------------------------------------------------

    def connected(self, transport: Any) -> None:
        """A connection is there: the first one, or at the opening end one after a cut."""
        self._begin(transport)
        self._do(self.core.reconnect(self._clock.seconds()))

    def resumed(self, transport: Any, hello: Hello) -> None:
        """Accepting end: the client is back with `hello`; an older connection, if there is one, is of no more use."""
        self._drop()
        self._begin(transport)
        self.restarted |= hello.restarted
        self._do(self.core.resume(hello, self._clock.seconds()))

    def received(self, transport: Any, data: bytes) -> None:
        """The connection brought bytes."""
        if transport is self._transport:
            self._do(self.core.bytes_received(data))

    def room(self, transport: Any, has_room: bool) -> None:
        """The transport can take bytes, or has enough of them."""
        if transport is self._transport:
            self._full = not has_room
            if has_room:
                self._pump()

    def disconnected(self, transport: Any, problem: str) -> None:
        """The connection is lost."""
        if transport is self._transport:
            self._release()
            self._do(self.core.cut(problem))
            self._tell_closed()

    def probe(self) -> None:
        """The network may have changed: find out soon whether the connection still works."""
        self._do(self.core.probe(self._clock.seconds()))

    def _begin(self, transport: Any) -> None:
        self._transport = transport
        self._full = False
        self._ticking.start(TICK, now=False)

    def _drop(self) -> None:
        """Close the connection at once, without a word."""
        transport = self._transport
        if transport is not None:
            self._release()
            transport.abortConnection()

    def _release(self) -> None:
        self._transport = None
        if self._ticking.running:
            self._ticking.stop()
        if self._abort is not None and self._abort.active():
            self._abort.cancel()

    def open_tap(self, channel: str) -> Tap | None:
        """Opening end: a stream for a front end that has just connected to `channel`, None when none is to be
        had."""
        stream = self.core.open(channel)
        if stream is None:
            return None
        tap = self.taps[stream] = Tap(self, stream)
        self._pump()
        return tap

    def open_kept(self, tap: Tap, channel: str, who: int) -> int | None:
        """The same for a `tap` of process `who` (0: not known) that has to be kept: its stream, or None."""
        assert self.keep is not None
        after = self.keep.heir(channel, who)
        stream = self.core.open(channel, after)
        if stream is not None:
            self.keep.opened(stream, channel, who, after)
            self.taps[stream] = tap
        return stream

    # -- local sockets (sksd.link.tap) -------------------------------------------------------------

    def local_data(self, stream: int, data: bytes) -> None:
        """A local socket brought bytes."""
        self._do(self.core.data(stream, data))

    def wants(self, stream: int) -> bool:
        """Whether `local_data` for `stream` would not only pile up here; `read(True)` tells when it may again."""
        return self.core.wants(stream)

    def local_drained(self, stream: int, count: int) -> None:
        """A local socket has taken bytes."""
        self._do(self.core.drained(stream, count))

    def local_closed(self, stream: int) -> None:
        """A local socket is closed."""
        end = self.taps.pop(stream, None)
        if end is not None and stream in self.core.streams:
            self._closing[stream] = end
        self._do(self.core.closed(stream))

    # ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._do(self.core.tick(self._clock.seconds()))

    def _do(self, actions: list[Action]) -> None:
        """Carry out `actions` and whatever they lead to, then write."""
        self._todo += actions
        if self._busy:
            return
        self._busy = True
        try:
            while True:
                while self._todo:
                    self._one(self._todo.popleft())
                if not self._write():
                    break
        finally:
            self._busy = False

    def _pump(self) -> None:
        self._do([])

    def _write(self) -> bool:
        """Pull and write until the transport is full; whether there are actions to do again."""
        while not self._full and self._transport is not None:
            pieces, actions = self.core.pull(WRITE)
            self._todo += actions
            if pieces:
                self._transport.write(b"".join(pieces))
            if self._todo:
                return True
            if not pieces:
                break
        return bool(self._todo)

    def _one(self, action: Action) -> None:
        match action:
            case Data(stream, data):
                tap = self.taps.get(stream)
                if tap is not None:
                    tap.deliver(data)
            case Pause(stream) | Resume(stream):
                tap = self.taps.get(stream)
                if tap is not None:
                    tap.read(isinstance(action, Resume))
            case Taken(stream, size):
                if self.keep is not None:
                    self.keep.passed(stream, size)
                tap = self.taps.get(stream)
                if tap is not None:
                    tap.taken(size)
            case Handed(stream, total):
                tap = self.taps.get(stream) or self._closing.get(stream)
                if tap is not None:
                    tap.handed(total)
            case Over(stream):
                self._closing.pop(stream, None)
                if self.keep is not None:
                    self.keep.over(stream)
            case Opened(stream, channel, after):
                if self.on_opened is None:
                    self._todo += self.core.closed(stream)
                else:
                    self.on_opened(stream, channel, after)
            case Closed(stream):
                tap = self.taps.get(stream)
                if tap is not None:
                    tap.finish()
                else:
                    self._todo += self.core.closed(stream)
            case Greeted(hello):
                self._todo += self._greet(hello)
            case Welcomed(welcome):
                self._is_welcomed = True
                self.past = welcome.past
                for waiting in _all_of(self._welcomed):
                    waiting.callback(None)
            case Cut(problem):
                self._drop()
                self.cut_since = self._clock.seconds()
                if self.on_cut is not None:
                    self.on_cut(problem)
            case Resumed():
                self.cut_since = None
                if self.on_resumed is not None:
                    self.on_resumed()
            case Ended(error):
                self._over(error)

    def _greet(self, hello: Hello) -> list[Action]:
        try:
            if self._on_hello is not None:
                self._on_hello(self, hello)
        except SksdError as error:
            return self.core.end(error)
        except Exception:
            # The person gets a sentence, the log the traceback.
            self._log.failure("A link was not taken")
            return self.core.end(InternalError(log_id=f"link {hello.link}"))
        return self.core.welcome(self.past)

    def _over(self, error: SksdError | None) -> None:
        self._is_ended = True
        self._error = error
        if self._ticking.running:
            self._ticking.stop()
        for tap in list(self.taps.values()):
            tap.finish()
        transport = self._transport
        if transport is not None:
            # GOODBYE goes out even when the transport says that it is full.
            pieces, _ = self.core.pull(WRITE)
            transport.write(b"".join(pieces))
            transport.unregisterProducer()
            # Closing with bytes unread resets the connection, and GOODBYE might be lost on the other side.
            if not self.core.said_goodbye:
                transport.loseConnection()
            self._abort = self._clock.callLater(GOODBYE_LIMIT, transport.abortConnection)
        for waiting in _all_of(self._welcomed):
            waiting.errback(error or LinkCut(problem="it ended"))
        for waiting_for_end in _all_of(self._ended):
            waiting_for_end.callback(error)
        self._tell_closed()

    def _tell_closed(self) -> None:
        if self._is_ended and self._transport is None:
            for waiting in _all_of(self._closed):
                waiting.callback(None)


def _all_of(waiting: list[T]) -> list[T]:
    """Take everything out of `waiting`, so that whoever is told may wait again."""
    taken = waiting[:]
    waiting.clear()
    return taken
