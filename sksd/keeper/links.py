"""The links of all engines: which connection belongs to which (docs/link.md, "Greeting")."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from sksd.errors import LinkCut, SksdError
from sksd.keeper.engines import Engines
from sksd.link.hello import FirstFrame, Hello, Welcome, goodbye_frame, welcome_frame
from sksd.link.link import Link
from sksd.link.protocol import LinkConnection
from sksd.wire.names import DEAD
from sksd.wire.resident import Entrance

log = Logger()

#: Seconds for which a link that is cut is kept: while its engine lives, and when that is dead.
KEPT: Final = 7 * 24 * 3600.0
KEPT_DEAD: Final = 24 * 3600.0
_LOOK: Final = 600.0
#: Seconds for the first frame.
_GREETING: Final = 15.0


class Links:
    """`rest` is called when a link has ended."""

    def __init__(self, reactor: Any, engines: Engines, rest: Callable[[], None]) -> None:
        self._reactor = reactor
        self._engines = engines
        self._rest = rest
        #: By engine and the link's id.
        self._links: dict[tuple[str, str], Link] = {}
        #: Those that have something to say, or to hear, still.
        self._open: set[Link] = set()
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._looking.start(_LOOK, now=False)

    def waiting(self) -> bool:
        """Whether somebody may still come back for something, or is being told something."""
        return bool(self._open)

    def door(self) -> Door:
        """For a new connection."""
        return Door(self._reactor, self._greeted)

    def handover(self, entrance: Entrance) -> Protocol:
        """For a proxy that hands over a connection."""
        return _Handover(self._reactor, entrance.take_descriptor(), self.door)

    def _greeted(self, hello: Hello) -> LinkConnection | bytes:
        """What speaks on a connection that began with `hello`, or the frame with which it is refused."""
        known = self._links.get((hello.engine, hello.link))
        if known is not None and hello.resume:
            return LinkConnection(known, hello)
        try:
            self._engines.get(hello.engine).must_speak(hello.watch)
        except SksdError as error:
            return goodbye_frame(error)
        if hello.resume:
            return welcome_frame(Welcome())
        return LinkConnection(Link.accepting(self._reactor, self._taken))

    def _taken(self, link: Link, hello: Hello) -> None:
        name = (hello.engine, hello.link)
        if name in self._links:
            # Nobody can come back to that one any more.
            self._links[name].end()
        self._engines.get(hello.engine).attach(link, hello)
        self._links[name] = link
        self._open.add(link)
        link.when_ended().addCallback(lambda _: self._links.pop(name))

        def closed(_: None) -> None:
            self._open.remove(link)
            self._rest()

        link.when_closed().addCallback(closed)

    def _look(self) -> None:
        now = self._reactor.seconds()
        for (name, _), link in list(self._links.items()):
            dead = all(engine.record.id != name or engine.state == DEAD for engine in self._engines.all())
            if link.cut_since is not None and now - link.cut_since > (KEPT_DEAD if dead else KEPT):
                log.info("a link to engine {id} is given up: nobody came back", id=name)
                link.end(LinkCut(problem="nobody came back"))


class Door(Protocol):
    """A connection until its first frame is here."""

    transport: Any

    def __init__(self, reactor: Any, greeted: Callable[[Hello], LinkConnection | bytes]) -> None:
        self._greeted = greeted
        self._first = FirstFrame()
        self._said = b""
        self._inner: LinkConnection | None = None
        self._late = reactor.callLater(_GREETING, self._give_up)

    def dataReceived(self, data: bytes) -> None:
        """Reads the first frame, then hands on."""
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._said += data
        try:
            found = self._first.feed(data)
        except SksdError as error:
            self._refuse(goodbye_frame(error))
            return
        if found is None:
            return
        hello, rest = found
        answer = self._greeted(hello)
        if isinstance(answer, bytes):
            self._refuse(answer)
            return
        self._late.cancel()
        self._inner = answer
        answer.makeConnection(self.transport)
        # A link that goes on has its HELLO already.
        answer.dataReceived(rest if hello.resume else self._said)

    def _refuse(self, frame: bytes) -> None:
        self.transport.write(frame)
        self.transport.loseConnection()

    def _give_up(self) -> None:
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        if self._late.active():
            self._late.cancel()
        if self._inner is not None:
            self._inner.connectionLost(reason)


class _Handover(Protocol):
    """Takes what was already read of a connection that was accepted elsewhere, then the connection itself."""

    def __init__(self, reactor: Any, descriptor: int, door: Callable[[], Door]) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._door = door
        self._read = b""

    def dataReceived(self, data: bytes) -> None:
        """What was read already."""
        self._read += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """That was all."""
        try:
            handed = socket.socket(fileno=self._descriptor)
        except (OSError, ValueError) as error:
            log.warn("nothing was handed over: {error}", error=error)
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            return
        # Twisted makes a descriptor of its own.
        with handed as connection:
            door = self._door()
            factory = Factory.forProtocol(lambda: door)
            factory.noisy = False
            self._reactor.adoptStreamConnection(connection.fileno(), connection.family, factory)
        if self._read:
            door.dataReceived(self._read)
