"""A front end's place at a kernel, on one of the channels on which both talk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet import defer
from twisted.logger import Logger

from sksd.errors import SksdError
from sksd.keeper.ends import TalkEnd
from sksd.keeper.sockets import KernelSocket
from sksd.keeper.spool import Spool
from sksd.link import zmtp

log = Logger()

#: Bytes of requests that may wait for a kernel that does not read.
_WAITING: Final = 8 * 1024 * 1024
#: Seconds for which a front end that closed its socket may come back to what was still to be said to it.
_PARKED: Final = 60.0


class Session:
    """`identity` on `channel`, as the kernel's ROUTER knows it: one connection to the kernel, whichever streams the
    front end comes by, one after the other. So a reply reaches a front end whose relay was killed and started again.

    `over(session)` is called once when nobody came back.
    """

    def __init__(
        self,
        reactor: Any,
        connection: Mapping[str, str | int],
        channel: str,
        identity: bytes,
        expects: Callable[[], bool],
        replies: Spool,
        over: Callable[[Session], None],
    ) -> None:
        self.channel = channel
        self.identity = identity
        self.end: TalkEnd | None = None
        #: The one that is attached, or was the last.
        self._latest: TalkEnd | None = None
        self._reactor = reactor
        self._over = over
        self._requests: deque[bytes] = deque()
        self._waiting = 0
        self._replies = replies
        #: Ends of the messages in `_replies` that are not known to have been delivered.
        self._ends: deque[int] = deque()
        self._begin = 0
        #: A reply that is not whole yet, in the pieces that came.
        self._part: list[bytes] = []
        #: Whole replies for which there was no room.
        self._unkept: deque[bytes] = deque()
        self._parked: Any = None
        self._socket = KernelSocket(
            reactor, connection, channel, "DEALER", expects, self._replied,
            identity=identity, ready=self._room, room=self._room, lost=self._lost,
        )  # fmt: skip

    def attach(self, end: TalkEnd) -> None:
        """The front end is there, or back: it gets what was not delivered."""
        before, self.end, self._latest = self.end, end, end
        if before is not None:
            self._settle(before)
            before.finish()
        self._unpark()
        end.begin(self._replies, self._begin)

    def detach(self, end: TalkEnd) -> None:
        """Its stream is over. Harmless for one that is another's."""
        if end is self._latest:
            self._settle(end)
        if end is self.end:
            self.end = None
            self._parked = self._reactor.callLater(_PARKED, self.close)

    def taken(self) -> None:
        """The relay has passed on more: what was delivered is forgotten."""
        if self.end is not None:
            self._settle(self.end)

    def ask(self, messages: bytes) -> bool:
        """Whole requests for the kernel; whether there is room for more."""
        self._requests.append(messages)
        self._waiting += len(messages)
        self._room()
        return self._waiting < _WAITING

    @property
    def complete(self) -> bool:
        """Its front end was given everything that will ever be said."""
        return self._latest is not None and self._latest.complete

    def when_silent(self) -> defer.Deferred[None]:
        """Fires once the kernel, which is dead, has said all."""
        return self._socket.when_silent()

    def last(self) -> None:
        """The kernel will say nothing more: the front end gets what is left."""
        self._socket.close()
        if self.end is not None:
            self.end.last()

    def close(self) -> None:
        """For good."""
        self._unpark()
        self._socket.close()
        self._replies.close()
        self._over(self)

    def _unpark(self) -> None:
        if self._parked is not None and self._parked.active():
            self._parked.cancel()
        self._parked = None

    def _settle(self, end: TalkEnd) -> None:
        while self._ends and self._ends[0] <= end.delivered:
            self._begin = self._ends.popleft()
        self._replies.release(self._begin)
        if self._unkept:
            self._keep()

    def _room(self) -> None:
        while self._requests and self._socket.has_room:
            messages = self._requests.popleft()
            self._waiting -= len(messages)
            self._socket.write(messages)
        if self.end is not None and self._waiting < _WAITING:
            self.end.room()

    def _lost(self) -> None:
        """The kernel has closed its socket, because it restarts or has died: half a reply is none."""
        self._part = []

    def _replied(self, piece: zmtp.Piece) -> None:
        data, boundary, _ = piece
        if not boundary:
            self._part.append(bytes(data))
            return
        self._unkept.append(b"".join((*self._part, data[:boundary])))
        self._part = [bytes(data[boundary:])]
        self._keep()

    def _keep(self) -> None:
        """Put replies where they wait; without room there the kernel is not read."""
        full = False
        while self._unkept and not full:
            start = self._replies.end
            try:
                full = not self._replies.append(self._unkept[0])
            except SksdError as error:
                log.warn("a reply waits: {error}", error=str(error))
                full = True
            if not full:
                self._ends.extend(start + end for end in zmtp.boundaries(self._unkept.popleft()))
        self._socket.read(not full)
        if self.end is not None:
            self.end.pump()
