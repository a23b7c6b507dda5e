"""The channels of one engine, and the links that carry them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from twisted.internet import defer
from twisted.logger import Logger

from sksd.errors import CannotRead, EngineEnded, SksdError
from sksd.keeper.ends import FrontEnd, IopubEnd, TalkEnd
from sksd.keeper.journal import Journal
from sksd.keeper.sessions import Session
from sksd.keeper.sockets import KernelSocket
from sksd.keeper.spool import Spool
from sksd.link import zmtp
from sksd.link.hello import MISSED, NOW, START
from sksd.link.limits import REJOIN_LIMIT
from sksd.link.link import Link
from sksd.wire import jupyter

log = Logger()

IOPUB: Final = "iopub"
#: Seconds until a full disk is tried again.
_AGAIN: Final = 1.0
#: Seconds that a dead kernel's sockets have to give what they still hold.
_DRAIN: Final = 2.0
#: Seconds that a front end has to come back to iopub when its relay was started again and others are there.
_COMES_BACK: Final = 60.0
#: Bytes at the end of the journal that tell whether the kernel is busy.
_TAIL: Final = 1024 * 1024
_SPOOL_MEMORY: Final = 4 * 1024 * 1024
_BUFFER: Final = "its output fills the buffer for a front end that does not take it"


class Attachment:
    """One link at one engine. `watches`: it only looks on: it is no front end, and nobody has missed less for it."""

    def __init__(self, link: Link, start: int, now: int, watches: bool) -> None:
        self.link = link
        self.now = now
        self.watches = watches
        #: A front end has been sent everything that a dead kernel had said.
        self.complete = False
        self.iopub: set[IopubEnd] = set()
        #: One has been, and is no more.
        self.had = False
        #: Where others go on for streams that are over, by their numbers; 0: where the first one of all begins.
        self.parked: dict[int, int] = {0: start}
        self.forgets: Any = None


class Channels:
    """`seen`: the file that says where begins what nobody has had; `spools`: a folder for what waits.

    `stalled(reason)` is called when the kernel must be stopped, because what it says can be kept nowhere, and with
    None when it may go on. `buffer`: how many bytes a front end may be behind before that. `expects()`: whether the
    kernel lives, or will again, `stoppable()` whether it may be stopped: not one that starts, or is to end.
    """

    def __init__(
        self,
        reactor: Any,
        connection: Mapping[str, str | int],
        seen: Path,
        spools: Path,
        journal: Journal,
        buffer: int,
        expects: Callable[[], bool],
        stoppable: Callable[[], bool],
        stalled: Callable[[str | None], None],
    ) -> None:
        self.journal = journal
        self.buffer = buffer
        #: Where begins what nobody has had.
        self.seen = _read_seen(seen, journal)
        self._reactor = reactor
        self._connection = connection
        self._key = str(connection["key"]).encode()
        self._seen_file = seen
        self._spools = spools
        self._expects = expects
        self._stoppable = stoppable
        self._stalled = stalled
        self._stall: str | None = None
        #: What the journal could not take.
        self._held: list[zmtp.Piece] = []
        #: Why the kernel is to be stopped, if it must.
        self._why = _BUFFER
        self._again: Any = None
        self._links: dict[Link, Attachment] = {}
        self._sessions: dict[tuple[str, bytes], Session] = {}
        self._iopub: KernelSocket | None = None
        self._saving: Any = None
        self.subscribed = False
        #: Where the journal ended when the kernel was last there anew.
        self._before = journal.end
        #: Where what this process of the kernel's has said begins; what one before it did is over.
        self._anew = 0
        self._over = self._closed = False
        self._epitaph: SksdError | None = None
        #: The kernel has just started and says no more than that: its last "idle" may come late.
        self._greeting = False

    @property
    def hears(self) -> bool:
        """What the kernel publishes arrives here."""
        return self.subscribed and self.journal.end > self._before

    @property
    def missed(self) -> int:
        """How many bytes it has said that nobody has had, and that are kept."""
        return self.journal.end - max(self.seen, self.journal.start)

    @property
    def links(self) -> list[Link]:
        """Those that carry it."""
        return list(self._links)

    @property
    def unheard(self) -> bool:
        """It has said what no front end has had, and more than whether it is busy."""
        try:
            said = self.journal.messages(self._whole(max(self.seen, self.journal.start)))
            return any(not jupyter.is_status(zmtp.split(message)) for _, message in said)
        except CannotRead:
            return True

    @property
    def busy(self) -> bool:
        """By the last that it has said it works on something; where that cannot be told, too."""
        journal, open_requests, told = self.journal, set(), False
        start = self._whole(max(journal.end - _TAIL, self._anew))
        try:
            for _, message in journal.messages(start):
                said = jupyter.status(zmtp.split(message))
                if said is None:
                    continue
                told = True
                if said[1] == "busy":
                    open_requests.add(said[0])
                else:
                    open_requests.discard(said[0])
        except CannotRead:
            return True
        return bool(open_requests) or (not told and start > max(journal.start, self._anew))

    def listen(self) -> None:
        """Subscribe to what the kernel publishes, as soon as it is there."""
        self._iopub = KernelSocket(
            self._reactor, self._connection, IOPUB, "SUB", self._expects, self._published,
            ready=self._subscribe, lost=self._lost,
        )  # fmt: skip

    # -- links -------------------------------------------------------------------------------------

    def attach(self, link: Link, replay: str, watches: bool) -> None:
        """Carry the channels over `link`; `replay`: MISSED, NOW or START (sksd.link.hello)."""
        journal = self.journal
        self._greeting = False
        # What is no longer kept is told of by the stream.
        start = {NOW: journal.end, START: 0, MISSED: self._whole(self.seen)}[replay]
        here = self._links[link] = Attachment(link, start, journal.end, watches)
        if not watches:
            journal.pin(here, max(start, journal.start))
        link.past = journal.count_between(start, journal.end)
        link.on_opened = lambda *opened: self._opened(here, *opened)

        def over(error: SksdError | None) -> None:
            # Only then has the relay had everything.
            if here.complete and not watches and isinstance(error, EngineEnded):
                self._has_seen(journal.end)
            del self._links[link]
            if here.forgets is not None and here.forgets.active():
                here.forgets.cancel()
            journal.unpin(here)
            self._relieve()

        link.when_ended().addCallback(over)

    def _opened(self, here: Attachment, stream: int, channel: str, after: int) -> None:
        def moved() -> None:
            self.taken(here.link)

        end: FrontEnd
        if channel == IOPUB:
            end = IopubEnd(here.link, stream, self.journal, self._key, here.watches,
                           lambda end: self._begins(here, end, after), moved,
                           lambda end: self._gone(here, end))  # fmt: skip
        else:
            end = TalkEnd(here.link, stream, lambda end, identity: self._greeted(channel, end, identity),
                          self._asked, moved, self._left)  # fmt: skip
        here.link.taps[stream] = end
        if self._over:
            if here.link.restarted:
                # It comes back for the rest. ZeroMQ subscribes again only when its program looks.
                end.ending()
                self._reactor.callLater(REJOIN_LIMIT, end.last)
            else:
                end.last()

    def _begins(self, here: Attachment, end: IopubEnd, after: int) -> tuple[int, int]:
        """Where its front end, which is that of stream `after` if that is known, is in the journal."""
        parked = here.parked
        known = after if after in parked else min(parked, key=parked.__getitem__, default=None)
        start = self.journal.end if known is None else parked.pop(known)
        here.iopub.add(end)
        return start, here.now

    def _gone(self, here: Attachment, end: IopubEnd) -> None:
        if end.begun:
            self.taken(here.link)
            here.iopub.discard(end)
            here.had = True
            complete = self._over and end.complete and not end.broken
            if not here.iopub:
                here.complete = complete
            if not complete and (end.broken or not here.iopub):
                here.parked[end.stream] = self.journal.end if end.unreadable else self._whole(end.delivered)
            if end.broken and (here.forgets is None or not here.forgets.active()):
                here.forgets = self._reactor.callLater(_COMES_BACK, self._forget_parked, here)
            self._part(here)
        self._relieve()

    def _whole(self, place: int) -> int:
        """Where the message begins that is at `place`, which may be gone; the end of the journal, where that cannot
        be told."""
        if place < self.journal.start:
            return place
        try:
            return self.journal.boundary_at_or_before(place)
        except CannotRead as error:
            log.warn("what was said is skipped: {error}", error=str(error))
            return self.journal.end

    def _forget_parked(self, here: Attachment) -> None:
        """Who has not come back while others have is gone, and must not stop the kernel some day."""
        if here.iopub:
            here.parked.clear()
            self.taken(here.link)

    def taken(self, link: Link) -> None:
        """Called when the other end of `link` has passed on more: pins move, and what was seen."""
        here = self._links.get(link)
        if here is None:
            return
        places = [end.delivered for end in here.iopub]
        if places and not here.watches:
            self.journal.pin(here, max(min([*places, *here.parked.values()]), self.journal.start))
            self._has_seen(max(places))
        for session in self._sessions.values():
            if session.end is not None and session.end.link is link:
                session.taken()
        self._relieve()

    def skip(self) -> None:
        """What was said so far is of no interest to anybody: the kernel has just started."""
        self.seen = self.journal.end
        self._greeting = True
        self._save_seen()

    def _has_seen(self, place: int) -> None:
        if place > self.seen:
            self.seen = place
            if self._saving is None or not self._saving.active():
                self._saving = self._reactor.callLater(0.2, self._save_seen)

    def _save_seen(self) -> None:
        with contextlib.suppress(OSError):
            self._seen_file.write_text(str(self.seen))

    # -- shell, control and stdin ------------------------------------------------------------------

    def _greeted(self, channel: str, end: TalkEnd, identity: bytes) -> None:
        # Who has no name is a stranger each time.
        key = (channel, identity or os.urandom(16))
        session = self._sessions.get(key)
        if self._over and (session is None or session.complete):
            end.finish()
            return
        if session is None:
            replies = Spool(self._spools, memory=_SPOOL_MEMORY, disk=self.buffer)
            session = self._sessions[key] = Session(
                self._reactor, self._connection, channel, identity, self._expects, replies,
                lambda _: self._forget(key),
            )  # fmt: skip
        session.attach(end)

    def _forget(self, key: tuple[str, bytes]) -> None:
        self._sessions.pop(key, None)

    def _session(self, end: TalkEnd) -> Session | None:
        return next((each for each in self._sessions.values() if each.end is end), None)

    def _asked(self, end: TalkEnd, messages: bytes) -> bool:
        session = self._session(end)
        return session is None or session.ask(messages)

    def _left(self, end: TalkEnd) -> None:
        for session in self._sessions.values():
            session.detach(end)

    # -- iopub -------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        assert self._iopub is not None
        self._iopub.write(zmtp.subscribe(b""))
        self.subscribed = True

    def _published(self, piece: zmtp.Piece) -> None:
        if not self._held:
            try:
                self.journal.append(*piece)
                self._why = _BUFFER
            except SksdError as error:
                self._why = str(error)
                self._later()
        if self._why != _BUFFER:
            self._held.append(piece)
        elif piece.boundary:
            if self._greeting:
                self._greeting = not self.unheard
            if self._greeting:
                self._has_seen(self.journal.end)
            for here in list(self._links.values()):
                for end in list(here.iopub):
                    end.pump()
        if self._stall is None and (self._held or self.journal.lag > self.buffer) and self._stoppable():
            self._set_stall(self._why)

    def let_go(self) -> None:
        """The kernel is to end, maybe to start anew: it must run for that, and what it says is taken."""
        self._set_stall(None)

    def _lost(self) -> None:
        """The kernel has closed its socket: half a message is none."""
        self.subscribed = False
        while self._held and not self._held[-1].boundary:
            self._held.pop()
        if self._held:
            data, boundary, count = self._held[-1]
            self._held[-1] = zmtp.Piece(data[:boundary], boundary, count)
        else:
            self.journal.drop_partial()
        self._before = self._anew = self.journal.end

    def _later(self) -> None:
        if self._again is None or not self._again.active():
            self._again = self._reactor.callLater(_AGAIN, self._relieve)

    def _relieve(self) -> None:
        """Whatever kept the kernel stopped may be over."""
        if self._stall is None and not self._held:
            return
        held, self._held = self._held, []
        for piece in held:
            self._published(piece)
        if not self._held and self.journal.lag <= self.buffer // 2:
            self._set_stall(None)
        elif self._held:
            self._later()

    def _set_stall(self, reason: str | None) -> None:
        if (self._stall is None) == (reason is None):
            return
        self._stall = reason
        if self._iopub is not None:
            self._iopub.read(reason is None)
        self._stalled(reason)

    # -- the end -----------------------------------------------------------------------------------

    async def last(self) -> None:
        """The kernel is dead: returns when what it had said is in the journal; streams then close by themselves."""
        silent = [session.when_silent() for session in self._sessions.values()]
        if self._iopub is not None:
            # What its socket still holds is little, and has room.
            self._iopub.read(True)
            silent.append(self._iopub.when_silent())
        with contextlib.suppress(defer.TimeoutError):
            await defer.DeferredList(silent).addTimeout(_DRAIN, self._reactor)
        self._over = True
        if self._iopub is not None:
            self._iopub.close()
        for here in self._links.values():
            for end in list(here.link.taps.values()):
                end.last()  # type: ignore[attr-defined]
        for session in list(self._sessions.values()):
            session.last()

    def part(self, epitaph: SksdError) -> None:
        """After `last`: each link ends with `epitaph` as soon as its front ends have everything."""
        self._over, self._epitaph = True, epitaph
        for here in list(self._links.values()):
            self._part(here)

    def _part(self, here: Attachment) -> None:
        # Who watches has come for what was said, and may be about to ask for it.
        if self._epitaph is not None and (not here.watches or (here.had and not here.iopub)):
            here.link.finish(self._epitaph, None)

    def close(self) -> None:
        """For good; the journal stays. Harmless when done before."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._again, self._saving):
            if timer is not None and timer.active():
                timer.cancel()
        self._save_seen()
        if self._iopub is not None:
            self._iopub.close()
        for session in list(self._sessions.values()):
            session.close()
        self.journal.close()


def _read_seen(file: Path, journal: Journal) -> int:
    try:
        return min(int(file.read_text()), journal.end)
    except (OSError, ValueError):
        return journal.end
