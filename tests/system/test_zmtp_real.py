"""Our ZMTP and libzmq's, over ipc."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import zmq
from twisted.internet import protocol, reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.trial import unittest

from sksd.link import zmtp
from sksd.link.zmqsocket import ZmqSocket
from sksd.link.zmtp import Event, Peer, Piece, Ready, Send, Subscribe, Unsubscribe
from tests.system.daemon import until

BIG = bytes(range(256)) * 20_480
MESSAGES = [[b"a"], [b"", b"b"], [b"c", b"", b""], [b"d", BIG, b"x" * 255, b"y" * 256], [b""], [b"e"] * 50]


class Wire(protocol.Protocol):
    """One connection, played by a Peer."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.events: list[Event] = []
        self.part = bytearray()
        self.messages: list[list[bytes]] = []
        self.lost = False

    def connectionMade(self) -> None:
        """Begin."""
        self.write(self.peer.greeting())

    def dataReceived(self, data: bytes) -> None:
        """Whole messages go to `messages`."""
        for event in self.peer.feed(data):
            if isinstance(event, Piece):
                at = len(self.part) + event.boundary if event.boundary else 0
                self.part += event.data
                start = 0
                for end in zmtp.boundaries(self.part[:at]):
                    self.messages.append(zmtp.split(self.part[start:end]))
                    start = end
                assert start == at, (start, at)
                del self.part[:at]
            elif isinstance(event, Send):
                self.write(event.data)
            self.events.append(event)

    def connectionLost(self, reason: Any = None) -> None:
        """Remember."""
        self.lost = True

    def write(self, data: bytes) -> None:
        """To the other end."""
        self.transport.write(data)  # type: ignore[union-attr]


class Real(unittest.TestCase):
    timeout = 60

    def setUp(self) -> None:
        folder = tempfile.mkdtemp(prefix="sksdz")
        self.addCleanup(shutil.rmtree, folder)
        self.path = f"{folder}/s"
        self.wires: list[Wire] = []
        self.context: zmq.Context[Any] = zmq.Context()
        self.addCleanup(self.context.term)

    def serve(self, peer: Callable[[], Peer]) -> Any:
        """Listen, with a Peer for each connection; `wires` are those that came."""

        def wire(_: Any) -> Wire:
            self.wires.append(Wire(peer()))
            return self.wires[-1]

        factory = protocol.Factory()
        factory.buildProtocol = wire  # type: ignore[assignment]
        port = reactor.listenUNIX(self.path, factory)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return port

    def socket(self, kind: int, got: list[Any], **options: bytes | int) -> ZmqSocket:
        """A libzmq socket that connects, or binds for the kinds that do; messages go to `got`."""
        real = self.context.socket(kind)
        for name, value in options.items():
            real.set(getattr(zmq, name), value)
        address = f"ipc://{self.path}"
        real.bind(address) if kind in (zmq.ROUTER, zmq.XPUB, zmq.PUB) else real.connect(address)
        socket = ZmqSocket(reactor, real, got.append)
        self.addCleanup(socket.close)
        return socket

    async def connect(self, peer: Peer) -> Wire:
        """A Peer as client, ready."""
        wire = await connectProtocol(UNIXClientEndpoint(reactor, self.path), Wire(peer))
        self.addCleanup(wire.transport.abortConnection)
        await until(lambda: wire.peer.ready, "ready")
        return wire

    async def came(self, number: int = 1) -> Wire:
        """The connection that came as the number-th, ready."""
        await until(lambda: len(self.wires) >= number and self.wires[-1].peer.ready, "ready")
        return self.wires[-1]

    async def test_dealer(self) -> None:
        """A front end's DEALER at our ROUTER: its identity, whole messages both ways, and again after a cut."""
        self.serve(lambda: Peer("ROUTER"))
        got: list[Any] = []
        dealer = self.socket(zmq.DEALER, got, IDENTITY=b"front", RECONNECT_IVL=10)
        for number in (1, 2):
            wire = await self.came(number)
            self.assertEqual(wire.events[0], Ready("DEALER", b"front"))
            for message in MESSAGES:
                dealer.send(message)
            await until(lambda wire=wire: len(wire.messages) == len(MESSAGES), "all messages")
            self.assertEqual(wire.messages, MESSAGES)
            for message in MESSAGES:
                wire.write(zmtp.join(message))
            await until(lambda: len(got) == len(MESSAGES), "all answers")
            self.assertEqual(got, MESSAGES)
            got.clear()
            wire.transport.abortConnection()  # type: ignore[union-attr]
            await until(lambda wire=wire: wire.lost, "the cut")

    async def test_req(self) -> None:
        """A REQ at our ROUTER."""
        self.serve(lambda: Peer("ROUTER"))
        got: list[Any] = []
        request = self.socket(zmq.REQ, got)
        request.send([b"question"])
        wire = await self.came()
        await until(lambda: wire.messages, "the question")
        self.assertEqual(wire.messages, [[b"", b"question"]])
        wire.write(zmtp.join([b"", b"answer"]))
        await until(lambda: got, "the answer")
        self.assertEqual(got, [[b"answer"]])

    async def test_sub(self) -> None:
        """A SUB at our PUB: each change of what it wants, PINGs, and again after a cut."""
        self.serve(lambda: Peer("PUB"))
        got: list[Any] = []
        real = self.context.socket(zmq.SUB)
        real.set(zmq.RECONNECT_IVL, 10)
        real.set(zmq.HEARTBEAT_IVL, 20)
        real.subscribe(b"one")
        real.connect(f"ipc://{self.path}")
        socket = ZmqSocket(reactor, real, got.append)
        self.addCleanup(socket.close)
        wire = await self.came()
        real.subscribe(b"")
        real.unsubscribe(b"one")
        wanted = [Ready("SUB", b""), Subscribe(b"one"), Subscribe(b""), Unsubscribe(b"one")]
        await until(lambda: [e for e in wire.events if not isinstance(e, Send)] == wanted, "the subscriptions")
        for message in MESSAGES:
            wire.write(zmtp.join(message))
        await until(lambda: len(got) == len(MESSAGES), "all messages")
        self.assertEqual(got, MESSAGES)
        # More than one: the answer to the first was taken.
        await until(lambda: len([e for e in wire.events if isinstance(e, Send)]) > 2 or wire.lost, "PINGs")
        self.assertFalse(wire.lost)
        wire.transport.abortConnection()  # type: ignore[union-attr]
        again = await self.came(2)
        await until(lambda: Subscribe(b"") in again.events, "the subscription again")

    async def test_at_a_router(self) -> None:
        """We as a DEALER with an identity, at a kernel's ROUTER."""
        got: list[Any] = []
        router = self.socket(zmq.ROUTER, got)
        wire = await self.connect(Peer("DEALER", identity=b"keeper"))
        self.assertEqual(wire.peer.peer_type, "ROUTER")
        for message in MESSAGES:
            wire.write(zmtp.join(message))
        await until(lambda: len(got) == len(MESSAGES), "all messages")
        self.assertEqual(got, [[b"keeper", *message] for message in MESSAGES])
        for message in got:
            router.send(message)
        await until(lambda: len(wire.messages) == len(MESSAGES), "all answers")
        self.assertEqual(wire.messages, MESSAGES)

    async def test_at_a_publisher(self) -> None:
        """We as a SUB at a kernel's XPUB, which tells what we want."""
        got: list[Any] = []
        publisher = self.socket(zmq.XPUB, got)
        wire = await self.connect(Peer("SUB"))
        wire.write(zmtp.subscribe(b"a") + zmtp.subscribe(b"d") + zmtp.unsubscribe(b"a"))
        await until(lambda: len(got) == 3, "the subscriptions")
        self.assertEqual(got, [[b"\1a"], [b"\1d"], [b"\0a"]])
        for message in MESSAGES:
            publisher.send(message)
        await until(lambda: wire.messages, "what was wanted")
        self.assertEqual(wire.messages, [MESSAGES[3]])
