"""Channels, links, a kernel and front ends in memory: ZMTP at both ends, the link's own bytes in between."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from sksd.errors import EngineEnded, NoSuchEngine, SksdError
from sksd.keeper.channels import Channels
from sksd.keeper.journal import Journal
from sksd.keeper.links import Links
from sksd.link import zmtp
from sksd.link.core import CHANNELS
from sksd.link.hello import Hello, new_hello
from sksd.link.link import Link
from sksd.link.protocol import LinkConnection
from sksd.wire import jupyter
from sksd.wire.names import DEAD, RUNNING

KEY = b"0123456789abcdef"
CONNECTION: dict[str, str | int] = {"transport": "ipc", "ip": "/nowhere/e", "key": KEY.decode()}
CONNECTION |= {f"{name}_port": number for number, name in enumerate(CHANNELS)}
MIB = 1024 * 1024
WORDS = [f"word {number}".encode() for number in range(400)]


class Wire(StringTransport):
    """One end of a connection that keeps what was written; what is paused is given nothing."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.inner, self.gone = protocol, False
        self._held = b""
        protocol.makeConnection(self)

    def take(self) -> bytes:
        """What was written since the last time."""
        data = self.value()
        self.clear()
        return data

    def give(self, data: bytes) -> bool:
        """Bytes from the other side; whether any were read."""
        self._held += data
        if self.gone or not self._held or self.producerState != "producing":
            return False
        data, self._held = self._held, b""
        self.inner.dataReceived(data)
        return True

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.lose()

    def lose(self) -> None:
        """The connection is gone."""
        if not self.gone:
            self.gone = True
            self.inner.connectionLost(Failure(ConnectionDone()))


class Socket:
    """One connection of the kernel's: `said` is what it has heard, whole messages as frames."""

    def __init__(self, channel: str, wire: Wire) -> None:
        self.channel, self.wire = channel, wire
        self.peer = zmtp.Peer("PUB" if channel == "iopub" else "ROUTER")
        self.raw = b""
        self.said: list[list[bytes]] = []
        self.topics: list[bytes] = []
        wire.give(self.peer.greeting())

    def turn(self) -> bool:
        """Take what was written to it."""
        data = self.wire.take()
        moved = self.wire.give(b"")
        for event in self.peer.feed(data) if data else ():
            if isinstance(event, zmtp.Subscribe):
                self.topics.append(event.topic)
            elif isinstance(event, zmtp.Piece):
                self.raw += bytes(event.data)
        *_, end = 0, *zmtp.boundaries(self.raw)
        starts = [0, *zmtp.boundaries(self.raw)]
        self.said += [zmtp.split(self.raw[a:b]) for a, b in itertools.pairwise(starts)]
        self.raw = self.raw[end:]
        return bool(data) or moved


class Front:
    """A front end's socket on `channel` of `pair`."""

    def __init__(self, world: World, relay: Relay, channel: str, identity: bytes = b"") -> None:
        self.world = world
        tap = relay.link.open_tap(channel)
        assert tap is not None
        self.tap, self.channel = tap, channel
        self.wire = Wire(tap)
        self.raw = b""
        self.bytes = 0
        self.peer = zmtp.Peer("SUB" if channel == "iopub" else "DEALER", identity=identity)
        world.fronts.append(self)
        tap.dataReceived(self.peer.greeting())
        if channel == "iopub":
            tap.dataReceived(zmtp.subscribe(b""))
        world.settle()

    def slow(self) -> None:
        """Take nothing more."""
        self.tap.pauseProducing()

    def quick(self) -> None:
        """Take what there is."""
        self.tap.resumeProducing()
        self.world.settle()

    def say(self, *frames: bytes) -> None:
        """A message."""
        self.tap.dataReceived(zmtp.join(frames))
        self.world.settle()

    def close(self) -> None:
        """It goes."""
        self.wire.lose()
        self.world.settle()

    def turn(self) -> bool:
        """Take what was written to it."""
        data = self.wire.take()
        if self.wire.disconnecting:
            self.wire.lose()
        self.bytes += len(data)
        for event in self.peer.feed(data) if data else ():
            if isinstance(event, zmtp.Piece):
                self.raw += bytes(event.data)
        return bool(data)

    @property
    def heard(self) -> list[list[bytes]]:
        """Whole messages, as frames."""
        starts = [0, *zmtp.boundaries(self.raw)]
        return [zmtp.split(self.raw[a:b]) for a, b in itertools.pairwise(starts)]

    @property
    def whole(self) -> bool:
        """It has heard no half message."""
        return ([0, *zmtp.boundaries(self.raw)])[-1] == len(self.raw)


class Relay:
    """The opening end of a link, and its connection to the keeper."""

    def __init__(self, world: World, hello: Hello) -> None:
        self.world, self.hello = world, hello
        self.link = Link.opening(world.clock, hello)
        #: The relay's and the keeper's end of the connection.
        self.near: Wire | None = None
        self.far: Wire | None = None
        self.heard = b""
        world.relays.append(self)
        self.connect()

    def connect(self) -> None:
        """The first time, or again."""
        self.near, self.far = Wire(LinkConnection(self.link)), Wire(self.world.links.door())
        self.world.settle()

    def cut(self, *, seen: bool = True) -> None:
        """The connection is gone; the keeper may not have `seen` that yet."""
        assert self.near is not None and self.far is not None
        near, far, self.near, self.far = self.near, self.far, None, None
        near.lose()
        if seen:
            far.lose()
        self.world.settle()

    def turn(self) -> bool:
        """Carry bytes both ways."""
        if self.near is None or self.far is None:
            return False
        there, back = self.near.take(), self.far.take()
        moved = self.far.give(there)
        self.heard += back
        moved |= self.near.give(back)
        for wire in (self.near, self.far):
            if (wire.disconnecting and not wire.value()) or wire.gone:
                self.near.lose()
                self.far.lose()
        return moved


class World:
    """One engine called "e": `channels`; `kernel` are its connections."""

    def __init__(self, case: TestCase, buffer: int = 64 * MIB, journal: int = 64 * MIB) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sk-"))
        case.addCleanup(shutil.rmtree, self.folder, True)
        self.clock = MemoryReactorClock()
        self.sizes = (buffer, journal)
        self.up = True
        self.state = RUNNING
        self.stalls: list[str | None] = []
        self.kernel: list[Socket] = []
        self.fronts: list[Front] = []
        self.relays: list[Relay] = []
        self.rests = 0
        self.links = Links(self.clock, self, self._rested)  # type: ignore[arg-type]
        self.record = SimpleNamespace(id="e")
        self.channels = self.open()
        case.addCleanup(self.channels.close)
        self._connected = 0
        self.settle()

    def _rested(self) -> None:
        self.rests += 1

    def open(self) -> Channels:
        """The channels of a new keeper."""
        buffer, size = self.sizes
        journal = Journal(self.folder / "journal", size=size, memory=4 * MIB)
        seen = self.folder / "seen"
        channels = Channels(
            self.clock, CONNECTION, seen, self.folder, journal, buffer, lambda: self.state != DEAD,
            lambda: self.state == RUNNING, self.stalls.append,
        )
        channels.listen()
        return channels

    # -- what Links wants of Engines and of an Engine ------------------------------------------------

    def get(self, engine: str) -> World:
        """As Engines."""
        if engine != "e":
            raise NoSuchEngine(engine=engine)
        return self

    def all(self) -> list[World]:
        """As Engines."""
        return [self]

    def must_speak(self, watches: bool) -> None:
        """Called with each link that is new."""
        if not watches:
            self.must_live()

    def must_live(self) -> None:
        """As Engine."""
        if self.state == DEAD:
            raise EngineEnded(engine="e", how="exit code 1", log="")

    def attach(self, link: Link, hello: Hello) -> None:
        """As Engine."""
        self.must_live()
        self.channels.attach(link, hello.replay, hello.watch)

    # -- what happens --------------------------------------------------------------------------------

    def settle(self) -> None:
        """Until nobody has anything to say."""
        moved = True
        while moved:
            self._connect()
            moved = False
            for each in (*self.kernel, *self.relays, *self.fronts):
                moved |= each.turn()

    def advance(self, seconds: float) -> None:
        """Time goes by."""
        while seconds > 0:
            self.clock.advance(min(seconds, 0.5))
            seconds -= 0.5
            self.settle()

    def _connect(self) -> None:
        clients = self.clock.unixClients
        while self._connected < len(clients):
            address, factory = clients[self._connected][:2]
            self._connected += 1
            if not self.up:
                factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
                continue
            channel = CHANNELS[int(address.rpartition("-")[2])]
            self.kernel.append(Socket(channel, Wire(factory.buildProtocol(None))))

    def sockets(self, channel: str) -> list[Socket]:
        """The kernel's living connections."""
        return [socket for socket in self.kernel if socket.channel == channel and not socket.wire.gone]

    def publish(self, *frames: bytes) -> None:
        """The kernel says something on iopub."""
        self.publish_raw(zmtp.join(frames))

    def publish_raw(self, data: bytes) -> None:
        """Some bytes of it."""
        [iopub] = self.sockets("iopub")
        iopub.wire.give(data)
        self.settle()

    def down(self) -> None:
        """The kernel's sockets close."""
        self.up = False
        for socket in self.kernel:
            socket.wire.lose()
        self.settle()

    def relay(self, **more: Any) -> Relay:
        """A new link to the engine."""
        return Relay(self, msgspec.structs.replace(new_hello("", **more), engine="e"))

    def die(self) -> None:
        """The kernel is dead, as the engine does it."""
        self.state = DEAD
        self.down()
        self.last = self.channels.last()

    def bury(self, error: SksdError) -> None:
        """All that it had said is in the journal: links end."""
        for link in self.channels.links:
            link.finish(error, None)
        self.settle()


def message(text: bytes, metadata: bytes = b"{}", *buffers: bytes) -> list[bytes]:
    """A Jupyter message on iopub."""
    parts = [b'{"msg_type":"stream"}', b"{}", metadata, b'{"text":"' + text + b'"}']
    return [b"stream", jupyter.DELIMITER, jupyter._sign(KEY, parts), *parts, *buffers]


def texts(front: Front) -> list[tuple[str, bool]]:
    """(text, whether it is past) of what a front end has heard; checks the signatures."""
    found = []
    for frames in front.heard:
        content = jupyter.content_of(KEY, frames)
        assert content is not None, frames
        metadata = msgspec.json.decode(frames[5])
        found.append((content["text"], metadata.get("sksd", {}).get("past", False)))
    return found


def plain(words: list[bytes], past: int = 0) -> list[tuple[str, bool]]:
    """What `texts` answers for `words`, the first `past` of them marked."""
    return [(word.decode(), number < past) for number, word in enumerate(words)]
