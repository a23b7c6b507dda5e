"""Which connection belongs to which link, and what a keeper with links waits for."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from sksd.errors import EngineEnded, LinkCut, LinkForgotten, NoSuchEngine
from sksd.keeper import links
from sksd.link import frames, limits
from sksd.link.hello import hello_frame, new_hello, read_goodbye
from sksd.wire.names import PREAMBLE_HANDOVER
from sksd.wire.resident import Entrance, Resident
from tests.system.daemon import until
from tests.unit.keeping import Front, Relay, Wire, World, message, texts


class Greeting(TestCase):
    """The first frame."""

    def setUp(self) -> None:
        self.world = World(self)

    def said(self, data: bytes) -> Any:
        """What a connection that says `data` is told with GOODBYE; it is closed."""
        wire = Wire(self.world.links.door())
        for at in range(len(data)):
            wire.give(data[at : at + 1])
            if wire.disconnecting:
                break
        self.assertTrue(wire.disconnecting)
        [frame] = frames.Decoder().feed(wire.take())
        wire.lose()
        return read_goodbye(frame.body)

    def test_garbage(self) -> None:
        for data in (b"GET / HTTP/1.1", b"\xff" * 100, bytes(100)):
            self.assertIsNotNone(self.said(data))

    def test_no_such_engine(self) -> None:
        hello = msgspec.structs.replace(new_hello(""), engine="other")
        self.assertIsInstance(self.said(hello_frame(hello)), NoSuchEngine)

    def test_dead_engine(self) -> None:
        self.world.state = "dead"
        hello = msgspec.structs.replace(new_hello(""), engine="e")
        self.assertIsInstance(self.said(hello_frame(hello)), EngineEnded)

    def test_nothing_is_said(self) -> None:
        wire = Wire(self.world.links.door())
        wire.give(b"\1")
        self.world.advance(links._GREETING)
        self.assertTrue(wire.gone)

    def test_gone_at_once(self) -> None:
        """Nothing is left on the clock."""
        before = len(self.world.clock.getDelayedCalls())
        Wire(self.world.links.door()).lose()
        self.assertEqual(len(self.world.clock.getDelayedCalls()), before)


class Known(TestCase):
    """Links that come back."""

    def setUp(self) -> None:
        self.world = World(self)
        self.relay = self.world.relay()
        self.front = Front(self.world, self.relay, "iopub")

    def test_takeover(self) -> None:
        """A second connection while the first still seems to live: the first is closed, nothing is lost."""
        first = self.relay.far
        assert first is not None
        self.relay.cut(seen=False)
        self.world.publish(*message(b"a"))
        self.assertFalse(first.gone)
        self.relay.connect()
        self.assertTrue(first.gone)
        self.world.publish(*message(b"b"))
        self.assertEqual(texts(self.front), [("a", False), ("b", False)])
        self.assertEqual(len(self.world.channels.links), 1)

    def test_wrong_engine(self) -> None:
        """The link is not known there, and goes on where it is."""
        other = World(self)
        self.world.links._engines = type("Two", (), {
            "get": lambda _, name: other if name == "f" else self.world.get(name), "all": lambda _: [],
        })()  # type: ignore[assignment] # fmt: skip
        self.relay.cut()
        core = self.relay.link.core
        assert core._hello is not None
        right, core._hello = core._hello, msgspec.structs.replace(core._hello, engine="f")
        ended = self.relay.link.when_ended()
        self.relay.connect()
        self.assertIsInstance(self.successResultOf(ended), LinkForgotten)
        self.assertEqual((len(self.world.channels.links), other.channels.links), (1, []))
        self.assertEqual(list(self.world.links._links), [("e", right.link)])

    def test_a_new_link_with_a_known_id(self) -> None:
        """It takes the other's place; what is missed is not lost."""
        self.front.slow()
        self.relay.cut()
        self.world.publish(*message(b"a"))
        again = Relay(self.world, self.relay.hello)
        self.assertEqual(len(self.world.channels.links), 1)
        self.assertEqual(self.world.channels.journal.lag, self.world.channels.journal.end)
        front = Front(self.world, again, "iopub")
        self.assertEqual(texts(front), [("a", True)])
        again.cut()
        again.connect()
        self.world.publish(*message(b"b"))
        self.assertEqual(texts(front)[1:], [("b", False)])

    def test_unknown(self) -> None:
        """Of another keeper."""
        self.world.links._links.clear()
        self.relay.cut()
        self.relay.connect()
        self.assertIsInstance(self.successResultOf(self.relay.link.when_ended()), LinkForgotten)

    def test_nobody_comes_back(self) -> None:
        """A cut link is given up at last, and pins nothing any more."""
        self.relay.cut()
        self.world.publish(*message(b"a"))
        [link] = self.world.channels.links
        self.world.clock.advance(links.KEPT - 1)
        self.assertFalse(link.ended)
        self.world.clock.advance(links._LOOK + 1)
        self.assertIsInstance(self.successResultOf(link.when_ended()), LinkCut)
        self.assertEqual((self.world.channels.journal.lag, self.world.links.waiting()), (0, False))

    def test_waiting_until_goodbye_is_read(self) -> None:
        """The process may not end before: the reason would be lost."""
        self.world.state = "dead"
        rests = self.world.rests
        relay, self.relay.near = self.relay.near, None
        [link] = self.world.channels.links
        link.end(EngineEnded(engine="e", how="exit code 1", log=""))
        self.assertTrue(self.world.links.waiting())
        self.relay.near = relay
        self.world.settle()
        self.assertFalse(self.world.links.waiting())
        self.assertGreater(self.world.rests, rests)

    def test_goodbye_is_not_waited_for_without_end(self) -> None:
        self.relay.near = None
        [link] = self.world.channels.links
        link.end()
        self.world.advance(limits.GOODBYE_LIMIT)
        self.assertFalse(self.world.links.waiting())


def sockets() -> int:
    """How many this process has."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


class HandOver(TestCase):
    """Connections that a proxy hands over, on real sockets."""

    timeout = 10

    def setUp(self) -> None:
        self.world = World(self)
        self.path = str(self.world.folder / "keeper")
        self.rests = 0
        self.resident = Resident(reactor, {PREAMBLE_HANDOVER: self.handover}, self.busy)
        self.resident.rest()
        factory = Factory.forProtocol(lambda: Entrance(self.resident))
        port = reactor.listenUNIX(self.path, factory)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.before = sockets()

    def busy(self) -> bool:
        """Asked whenever no connection is left."""
        self.rests += 1
        return True

    def handover(self, entrance: Entrance) -> Protocol:
        """With the real reactor for sockets."""
        return links._Handover(reactor, entrance.take_descriptor(), self.door)

    def door(self) -> links.Door:
        """Whose links are in memory."""
        return links.Door(reactor, self.world.links._greeted)

    async def send(self, data: bytes, *descriptors: int) -> None:
        """As the proxy does; returns when the keeper has seen the end."""
        before = self.rests
        with socket.socket(socket.AF_UNIX) as to:
            to.connect(self.path)
            if descriptors:
                socket.send_fds(to, [data], list(descriptors))
            else:
                to.sendall(data)
        await until(lambda: self.rests > before, "the connection is counted no longer", 5)

    async def test_nothing_is_handed_over(self) -> None:
        """The keeper does not count that connection for ever."""
        await self.send(PREAMBLE_HANDOVER)
        self.assertEqual(sockets(), self.before)

    async def test_no_socket_is_handed_over(self) -> None:
        with open(os.devnull) as file:
            await self.send(PREAMBLE_HANDOVER, file.fileno())
        self.assertEqual(sockets(), self.before)

    async def test_a_link(self) -> None:
        """What was read of it first, then the rest; in the end no descriptor is left."""
        ours, theirs = socket.socketpair()
        hello = hello_frame(msgspec.structs.replace(new_hello(""), engine="other"))
        await self.send(PREAMBLE_HANDOVER + hello[:20], theirs.fileno())
        theirs.close()
        ours.setblocking(False)
        ours.send(hello[20:])
        said: list[bytes] = []

        def told() -> bool:
            try:
                said.append(ours.recv(4096))
            except BlockingIOError:
                return False
            return not said[-1]

        await until(told, "it is refused", 5)
        [frame] = frames.Decoder().feed(b"".join(said))
        self.assertIsInstance(read_goodbye(frame.body), NoSuchEngine)
        ours.close()
        await until(lambda: sockets() == self.before, "no descriptor is left", 3)


class DoorTests(TestCase):
    def test_refused_before_the_rest_is_read(self) -> None:
        door = links.Door(World(self).clock, lambda hello: b"no")
        transport = StringTransport()
        door.makeConnection(transport)
        door.dataReceived(hello_frame(new_hello("")) + b"rest")
        self.assertEqual((transport.value(), transport.disconnecting), (b"no", True))
        door.connectionLost()


