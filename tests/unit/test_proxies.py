"""The daemon's way to a proxy: what does not work leaves nothing behind, and holds nobody up."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import defer, task
from twisted.internet.testing import StringTransport
from twisted.trial import unittest

from sksd import paths
from sksd.errors import CannotWrite, ProxyFailed, SksdError, TicketRefused
from sksd.link.hello import Hello, hello_frame, new_hello
from sksd.server.audit import Audit, Nowhere
from sksd.server.door import Connections, Visit
from sksd.server.gate import UserGate
from sksd.server.links import LinkDoor
from sksd.server.proxies import LET_GO, UserProxy
from sksd.wire import messages
from sksd.wire.broker import BrokerFactory, Remote
from sksd.wire.names import PREAMBLE_PB
from sksd.wire.reaching import AGAIN, FIRST_CALL
from sksd.wire.tickets import Tickets


class Transport(StringTransport):
    """Counts as a proxy's socket."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Endpoint:
    """Connects to nothing."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, Transport]] = []

    def connect(self, factory: Any) -> Any:
        broker, transport = factory.buildProtocol(None), Transport()
        broker.makeConnection(transport)
        self.made.append((broker, transport))
        return defer.succeed(broker)


class Gate:
    """Whose proxy is there, and may say nothing."""

    def __init__(self) -> None:
        self.there = Endpoint()

    async def endpoint(self, user: str) -> Any:
        return self.there


class Older(Remote):
    """A proxy that does not know a setting of ours."""

    async def remote_settings(self, request: dict[str, Any], listener: Any) -> messages.ProxyInfo:
        messages.read(messages.Hello, request)
        raise AssertionError


class Reaching(unittest.TestCase):
    """`UserProxy.reach`."""

    def setUp(self) -> None:
        self.clock, self.gate = task.Clock(), Gate()
        self.proxy = UserProxy(self.clock, self.gate, "ada", messages.Settings(), lambda: None)

    def test_proxy_that_says_nothing(self) -> None:
        reached = defer.ensureDeferred(self.proxy.reach())
        self.clock.advance(FIRST_CALL)
        self.assertIn("does not answer", str(self.failureResultOf(reached, ProxyFailed).value))
        self.assertTrue(self.gate.there.made[0][1].aborted)

    def test_proxy_of_another_version(self) -> None:
        reached = defer.ensureDeferred(self.proxy.reach())
        ours, transport = self.gate.there.made[0]
        theirs, back = BrokerFactory(lambda _: Older()).build(False, trusted=True), Transport()
        theirs.makeConnection(back)
        self.assertTrue(transport.value().startswith(PREAMBLE_PB))
        skipped = len(PREAMBLE_PB)
        for _ in range(6):
            said, answer = transport.value()[skipped:], back.value()
            skipped = 0
            transport.clear()
            back.clear()
            if answer:
                ours.dataReceived(answer)
            if said:
                theirs.dataReceived(said)
        self.failureResultOf(reached, SksdError)
        self.assertTrue(transport.aborted)


    def test_lost_with_engines_is_tried_more_than_once(self) -> None:
        self.proxy.running = {"engine"}
        self.proxy._lost()
        self.clock.advance(0)
        for number, pause in enumerate(AGAIN[1:], 1):
            self.assertEqual(len(self.gate.there.made), number)
            self.clock.advance(FIRST_CALL)
            self.clock.advance(pause)
        self.assertEqual(len(self.gate.there.made), len(AGAIN))
        self.proxy.disconnect()
        self.clock.advance(FIRST_CALL)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Resting(unittest.TestCase):
    """A shared host does not hold the proxy of somebody who is gone."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.proxy = UserProxy(self.clock, Gate(), "ada", messages.Settings(), lambda: None)
        self.broker = BrokerFactory().build(True, trusted=True)
        self.broker.makeConnection(Transport())
        self.broker.notifyOnDisconnect(self.proxy._lost)
        self.proxy._root, self.proxy._broker = object(), self.broker  # type: ignore[assignment]

    def is_let_go(self) -> bool:
        return bool(self.broker.transport.disconnecting)

    def test_after_a_while(self) -> None:
        self.proxy.rest()
        self.clock.advance(LET_GO - 1)
        self.assertFalse(self.is_let_go())
        self.clock.advance(1)
        self.assertTrue(self.is_let_go())

    def test_not_while_it_is_needed(self) -> None:
        self.proxy.running.add("engine")
        self.proxy.rest()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.proxy.running.clear()
        self.proxy.rest()
        self.proxy.listeners.add(lambda event: None)
        self.clock.advance(LET_GO)
        self.assertFalse(self.is_let_go())

    def test_not_by_a_daemon_that_stops(self) -> None:
        self.proxy.rest()
        self.proxy.disconnect()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Gates(unittest.TestCase):
    """`UserGate.endpoint`."""

    def setUp(self) -> None:
        top = tempfile.mkdtemp(prefix="sksd", dir="/tmp")
        self.addCleanup(shutil.rmtree, top)
        self.runtime = Path(top) / "r"
        self.patch(paths, "runtime", lambda: self.runtime)

    def test_proxy_that_hangs_holds_nobody_up(self) -> None:
        self.runtime.mkdir(0o700)
        with socket.socket(socket.AF_UNIX) as hung:
            hung.bind(str(paths.proxy_socket()))
            hung.listen(0)
            gate = UserGate(task.Clock(), "token", Tickets("s"), {})
            for _ in range(4):
                with socket.socket(socket.AF_UNIX) as waiting:
                    waiting.setblocking(False)
                    waiting.connect_ex(str(paths.proxy_socket()))
                    self.successResultOf(defer.ensureDeferred(gate.endpoint("")))

    def test_folder_of_somebody_else(self) -> None:
        self.runtime.symlink_to("/")
        gate = UserGate(task.Clock(), "token", Tickets("s"), {})
        self.failureResultOf(defer.ensureDeferred(gate.endpoint("")), CannotWrite)


class Refusals(unittest.TestCase):
    """A link whose ticket was refused."""

    def test_nothing_that_follows_is_looked_at(self) -> None:
        asked: list[str] = []

        async def admit(ticket: str) -> Any:
            asked.append(ticket)
            raise TicketRefused()

        visit = Visit(Connections(task.Clock()), "192.0.2.1", 4711)
        self.patch(visit, "welcome", lambda user: self.fail("it was let in"))
        link = LinkDoor(admit, visit, Audit(Nowhere()))
        transport = Transport()
        link.makeConnection(transport)
        first: Hello = new_hello("wrong")
        link.dataReceived(hello_frame(first))
        said = len(transport.value())
        self.assertIn(b"ticket-refused", transport.value())
        link.dataReceived(hello_frame(new_hello("another guess")) + os.urandom(100))
        self.assertEqual((asked, len(transport.value())), (["wrong"], said))
        self.assertTrue(transport.disconnecting)
