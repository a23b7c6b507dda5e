"""Login in memory: what a stranger sees, with a gate that says what the test wants."""

from __future__ import annotations

from typing import Any

from twisted.cred.portal import Portal
from twisted.internet import defer, task
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial import unittest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sksd.errors import (
    BadRequest,
    LoginMethod,
    LoginRefused,
    NotAllowed,
    ProtocolMismatch,
    TooManyConnections,
    TooManyFailures,
)
from sksd.interfaces import IGate
from sksd.server import audit, door
from sksd.server.gate import UserGate, account
from sksd.server.login import ATTEMPTS, REFUSAL_DELAY, GateChecker, LoginRoot, MethodCredentials, Realm
from sksd.server.throttle import CAP, FREE, Throttle
from sksd.wire import messages
from sksd.wire.broker import Remote
from sksd.wire.calls import Caller
from sksd.wire.tickets import Tickets
from tests.wire.pairs import Pair


@implementer(IGate)
class Gate:
    """Lets `ada` in with `lovelace`."""

    guessable = True
    own_user = "ada"

    def begin(self, door: Any, gone: Any) -> None:
        pass

    def methods(self) -> list[str]:
        return ["password"]

    async def nonce(self) -> str:
        return ""

    async def check(self, method: str, user: str, password: str, peer: Any) -> str:
        if method != "password":
            raise LoginMethod(method=method, methods="password")
        if (user, password) != ("ada", "lovelace"):
            raise LoginRefused()
        return user

    async def endpoint(self, user: str) -> Any:
        raise AssertionError("nobody asked for a proxy")

    def leave(self, user: str) -> None:
        pass

    def ticket(self, user: str, engine: str) -> str:
        raise AssertionError("nobody asked for a ticket")

    async def admit(self, ticket: str) -> Any:
        raise AssertionError("nobody asked for a link")


class Avatar(Remote):
    """Counts its logout."""

    def __init__(self, user: str, mind: Any) -> None:
        self.user, self.mind, self.out = user, mind, 0

    def logout(self) -> None:
        self.out += 1

    async def remote_ping(self, request: dict[str, Any]) -> messages.Nothing:
        return messages.Nothing()


class Login(unittest.TestCase):
    """One connection."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.avatars: list[Avatar] = []
        self.throttle = Throttle()
        self.pair = Pair(Remote(), trusted=False)
        portal = Portal(Realm(self.make), [GateChecker(Gate())])
        self.visit = door.Visit(door.Connections(self.clock), "192.0.2.1", 4711)
        self.entries: list[audit.Entry] = []
        sink = audit.Audit(self)
        self.root = LoginRoot(self.pair.server, self.clock, portal, self.welcome, self.visit, self.throttle, sink)
        self.pair.server.setNameForLocal("root", self.root)
        self.caller = Caller(self.clock, "lab")

    def make(self, user: str, mind: Any) -> Avatar:
        self.avatars.append(Avatar(user, mind))
        return self.avatars[-1]

    def write(self, entry: audit.Entry) -> None:
        self.entries.append(entry)

    @property
    def logged_in(self) -> int:
        return len([entry for entry in self.entries if entry.event == "login"])

    async def welcome(self, protocol: int) -> messages.Welcome:
        return messages.Welcome(protocol=protocol, version="9", name="Lab", hostname="lab", methods=["password"])

    def call(self, name: str, request: Any, answer: Any, *references: Any) -> Any:
        d = defer.ensureDeferred(self.caller.call_for(self.pair.root, name, request, answer, *references))
        self.pair.flush()
        return d

    def login(self, **given: Any) -> Any:
        return self.call("login", messages.Login(**given), messages.LoggedIn)

    def test_hello(self) -> None:
        welcome, _ = self.successResultOf(self.call("hello", messages.Hello(protocols=[1, 7]), messages.Welcome))
        self.assertEqual((welcome.protocol, welcome.name), (1, "Lab"))

    def test_no_protocol_in_common(self) -> None:
        failure = self.failureResultOf(self.call("hello", messages.Hello(protocols=[7]), messages.Welcome))
        self.assertIsInstance(failure.value, ProtocolMismatch)
        self.assertIn("upgrade", str(failure.value))

    def test_newer_field_is_refused_not_ignored(self) -> None:
        d = self.pair.root.callRemote("login", {"user": "ada", "password": "lovelace", "colour": "red"})
        self.pair.flush()
        error = self.successResultOf(d)[0]["error"]
        self.assertEqual(error["code"], BadRequest.code)
        self.assertIn("colour", error["message"])

    def test_guesses_sent_at_once_are_not_tried_at_once(self) -> None:
        guesses = [self.login(user="ada", password=f"guess {number}") for number in range(ATTEMPTS + 3)]
        for guess in guesses[1:]:
            self.assertIsInstance(self.failureResultOf(guess).value, NotAllowed)
        self.clock.advance(REFUSAL_DELAY)
        self.pair.flush()
        self.assertIsInstance(self.failureResultOf(guesses[0]).value, LoginRefused)

    def test_no_guess_after_the_last(self) -> None:
        for _ in range(ATTEMPTS):
            refused = self.login(user="ada", password="guess")
            self.clock.advance(REFUSAL_DELAY)
            self.pair.flush()
            self.failureResultOf(refused)
        late = self.login(user="ada", password="lovelace")
        self.assertIsInstance(self.failureResultOf(late).value, NotAllowed)
        self.assertEqual(self.avatars, [])

    def test_protocol_that_the_host_does_not_speak(self) -> None:
        refused = self.login(user="ada", password="lovelace", protocol=7)
        self.assertIsInstance(self.failureResultOf(refused).value, ProtocolMismatch)

    def test_right_password(self) -> None:
        mind = Remote()
        d = defer.ensureDeferred(
            self.caller.call_for(
                self.pair.root, "login", messages.Login(user="ada", password="lovelace"), messages.LoggedIn, mind
            )
        )
        self.pair.flush()
        logged_in, avatar = self.successResultOf(d)
        self.assertEqual((logged_in.user, self.logged_in), ("ada", 1))
        self.assertIsNotNone(self.avatars[0].mind.reference)
        self.pair.root = avatar
        self.successResultOf(self.call("ping", messages.Nothing(), messages.Nothing))
        self.assertEqual(self.avatars[0].out, 0)
        self.pair.client.transport.loseConnection()
        self.pair.flush()
        self.assertEqual(self.avatars[0].out, 1)

    def test_wrong_user_and_wrong_password_are_the_same(self) -> None:
        said = []
        for user, password in (("ada", "x"), ("nobody", "lovelace"), ("", "")):
            d = self.login(user=user, password=password)
            self.assertNoResult(d)
            self.clock.advance(REFUSAL_DELAY)
            self.pair.flush()
            said.append(str(self.failureResultOf(d, LoginRefused).value))
        self.assertEqual(len(set(said)), 1)
        self.assertEqual((self.avatars, self.logged_in), ([], 0))

    def test_too_many_wrong_ones_hang_up(self) -> None:
        for _ in range(ATTEMPTS):
            d = self.login(user="ada", password="x")
            self.clock.advance(REFUSAL_DELAY)
            self.pair.flush()
            self.failureResultOf(d, LoginRefused)
        self.clock.advance(1)
        self.pair.flush()
        self.assertTrue(self.pair.client.disconnected)

    def refused(self, times: int) -> None:
        for _ in range(times):
            self.throttle.failed(self.clock.seconds(), "192.0.2.1", "ada")

    def test_after_failures_also_the_right_password_waits(self) -> None:
        self.refused(FREE + 2)
        d = self.login(user="ada", password="lovelace")
        self.assertNoResult(d)
        self.clock.advance(CAP)
        self.pair.flush()
        self.successResultOf(d)

    def test_too_many_that_wait(self) -> None:
        self.refused(20)
        for _ in range(3):
            self.throttle.attempt(0, "192.0.2.1", "ada")
        failure = self.failureResultOf(self.login(user="ada", password="lovelace"), TooManyFailures)
        self.assertIn("wait 16 s", str(failure.value))
        self.assertEqual(self.entries[-1].reason, "too-many-failures")

    def test_where_nobody_can_guess_only_refusals_wait(self) -> None:
        self.root._guessable = False
        self.refused(30)
        d = self.login(user="ada", password="babbage")
        for _ in range(2):
            self.clock.advance(CAP / 2 - 0.1)
            self.pair.flush()
            self.assertNoResult(d)
        self.clock.advance(CAP)
        self.pair.flush()
        self.failureResultOf(d, LoginRefused)
        self.successResultOf(self.login(user="ada", password="lovelace"))

    def test_gone_while_it_waits(self) -> None:
        self.refused(FREE + 2)
        d = self.login(user="ada", password="lovelace")
        self.pair.client.transport.loseConnection()
        self.pair.flush()
        self.clock.advance(CAP)
        self.failureResultOf(d)
        self.assertEqual(self.avatars, [])

    def test_what_is_recorded(self) -> None:
        d = self.login(user="ada", password="babbage")
        self.clock.advance(REFUSAL_DELAY)
        self.pair.flush()
        self.failureResultOf(d, LoginRefused)
        self.successResultOf(self.login(user="ada", password="lovelace"))
        self.pair.client.transport.loseConnection()
        self.pair.flush()
        self.assertEqual([entry.event for entry in self.entries], ["login-refused", "login", "logout"])
        refused, login, logout = self.entries
        self.assertEqual((refused.user, refused.address, refused.port), ("ada", "192.0.2.1", 4711))
        self.assertEqual((refused.method, refused.reason), ("password", "login-refused"))
        self.assertEqual(login.login, logout.login)
        self.assertNotEqual(login.login, refused.login)

    def test_unknown_method(self) -> None:
        self.failureResultOf(self.login(method="magic"), LoginMethod)

    def test_second_login_on_one_connection(self) -> None:
        self.successResultOf(self.login(user="ada", password="lovelace"))
        self.failureResultOf(self.login(user="ada", password="lovelace"), NotAllowed)

    def test_gone_before_the_gate_has_answered(self) -> None:
        d = self.login(user="ada", password="x")
        self.pair.client.transport.loseConnection()
        self.pair.flush()
        self.clock.advance(REFUSAL_DELAY + 1)
        self.failureResultOf(d)

    def test_no_secret_in_a_repr(self) -> None:
        self.assertNotIn("lovelace", repr(MethodCredentials("password", "ada", "lovelace")))


class TokenGate(unittest.TestCase):
    """The gate of user mode."""

    def setUp(self) -> None:
        self.gate = UserGate(task.Clock(), "token", Tickets("s"), {})

    def check(self, *given: str) -> Any:
        return defer.ensureDeferred(self.gate.check(*given, None))

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(IGate, self.gate))

    def test_token_opens_the_one_account(self) -> None:
        for user in ("", account()):
            self.assertEqual(self.successResultOf(self.check("password", user, "token")), account())

    def test_anything_else_does_not(self) -> None:
        for user, password in (("", ""), ("", "Token"), ("somebody", "token"), (account(), "token\0"), ("", "tökén")):
            self.failureResultOf(self.check("password", user, password), LoginRefused)
        self.failureResultOf(self.check("guest", "", "token"), LoginMethod)


class Tls(StringTransport):
    """A transport as TLS gives it."""

    def __init__(self, negotiated: bytes | None = None) -> None:
        super().__init__()
        self.negotiatedProtocol = negotiated
        self.aborted = False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.nodelay = enabled

    def abortConnection(self) -> None:
        self.aborted = True


class Address:
    """Where somebody comes from."""

    def __init__(self, host: str) -> None:
        self.host = host


class Doors(unittest.TestCase):
    """Deadlines and caps."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.built: list[tuple[str, Any]] = []
        self.door = door.DoorFactory(self.clock, self.builder("broker"), self.builder("link"))

    def builder(self, name: str) -> Any:
        def build(visit: Any) -> Any:
            self.built.append((name, visit))
            return Silent()

        return build

    def visitor(self, negotiated: bytes | None = None, host: str = "192.0.2.1") -> tuple[Any, Tls]:
        protocol, transport = self.door.buildProtocol(Address(host)), Tls(negotiated)  # type: ignore[arg-type]
        assert protocol is not None
        protocol.makeConnection(transport)
        return protocol, transport

    def test_alpn_decides(self) -> None:
        for negotiated, name in ((None, "broker"), (b"sksd-pb/1", "broker"), (b"sksd-link/1", "link")):
            protocol, transport = self.visitor(negotiated)
            protocol.handshakeCompleted()
            self.assertEqual(self.built[-1][0], name)
            self.assertTrue(transport.nodelay)
        protocol, transport = self.visitor(b"h2")
        protocol.handshakeCompleted()
        self.assertTrue(transport.disconnecting)

    def test_no_handshake(self) -> None:
        _, transport = self.visitor()
        self.clock.advance(door.HANDSHAKE_DEADLINE)
        self.assertTrue(transport.aborted)

    def test_no_login(self) -> None:
        protocol, transport = self.visitor()
        protocol.handshakeCompleted()
        self.clock.advance(door.LOGIN_DEADLINE - 1)
        self.assertFalse(transport.aborted)
        self.clock.advance(1)
        self.assertTrue(transport.aborted)

    def test_login_in_time(self) -> None:
        protocol, transport = self.visitor()
        protocol.handshakeCompleted()
        self.built[-1][1].welcome("ada")
        self.clock.advance(1000)
        self.assertFalse(transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def flood(self, number: int, host: str = "192.0.2.1") -> list[tuple[Any, Tls]]:
        return [self.visitor(host=host) for _ in range(number)]

    def test_one_more_of_an_address_drops_its_oldest_stranger(self) -> None:
        visitors = self.flood(door.STRANGERS_PER_ADDRESS + 2)
        other = self.visitor(host="192.0.2.2")
        self.assertEqual([t.aborted for _, t in visitors[:3]], [True, True, False])
        self.assertFalse(other[1].aborted)

    def test_who_has_logged_in_is_never_dropped(self) -> None:
        protocol, transport = self.visitor()
        protocol.handshakeCompleted()
        self.built[-1][1].welcome("ada")
        self.flood(1000)
        self.assertFalse(transport.aborted)

    def test_when_full_the_address_with_most_makes_room(self) -> None:
        few = self.flood(3, "198.51.100.1")
        many = [each for number in range(4) for each in self.flood(door.STRANGERS_PER_ADDRESS, f"192.0.2.{number}")]
        newcomers = self.flood(20, "198.51.100.2")
        self.assertFalse(any(transport.aborted for _, transport in few + newcomers))
        self.assertEqual(sum(transport.aborted for _, transport in many), 3 + 20)

    def test_one_host_is_one_address_in_its_whole_network(self) -> None:
        visitors = [self.visitor(host=f"2001:db8::{number:x}") for number in range(door.STRANGERS_PER_ADDRESS + 1)]
        self.assertTrue(visitors[0][1].aborted)
        visitors = [self.visitor(host=f"2001:db8:0:{number:x}::1") for number in range(100)]
        self.assertFalse(any(transport.aborted for _, transport in visitors))

    def test_counts_return_to_nothing(self) -> None:
        self.patch(door, "CONNECTIONS", 40)
        visitors = self.flood(30, "192.0.2.1") + self.flood(30, "192.0.2.2")
        for protocol, _ in visitors[::2]:
            protocol.handshakeCompleted()
            self.built[-1][1].welcome("ada")
        for protocol, _ in visitors:
            protocol.connectionLost()
        connections = self.door._connections
        self.assertEqual((connections.total, connections._count, connections.strangers), (0, 0, {}))
        self.assertEqual(connections.users, {})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_full_of_people_who_have_logged_in(self) -> None:
        self.patch(door, "CONNECTIONS", 10)
        for protocol, _ in self.flood(10):
            protocol.handshakeCompleted()
            self.built[-1][1].welcome("ada")
        self.assertIsNone(self.door.buildProtocol(Address("192.0.2.9")))  # type: ignore[arg-type]

    def test_connections_of_one_user(self) -> None:
        self.patch(door, "CONNECTIONS_PER_USER", 3)
        visits = []
        for _ in range(4):
            protocol, _ = self.visitor()
            protocol.handshakeCompleted()
            visits.append(self.built[-1][1])
        for visit in visits[:3]:
            visit.welcome("ada")
        self.assertRaises(TooManyConnections, visits[3].welcome, "ada")
        visits[0].over()
        visits[3].welcome("ada")

    def test_bytes_of_a_stranger(self) -> None:
        protocol, transport = self.visitor()
        self.assertTrue(protocol.visit.spend(door.STRANGER_BYTES))
        self.assertFalse(protocol.visit.spend(1))
        self.assertTrue(transport.aborted)
        protocol, transport = self.visitor()
        protocol.visit.welcome("ada")
        self.assertTrue(protocol.visit.spend(10**9))

    def test_one_line_for_a_flood(self) -> None:
        lines: list[Any] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        self.flood(1000)
        self.assertEqual(len(lines), 1)


class Silent:
    """A protocol that does nothing."""

    def makeConnection(self, transport: Any) -> None:
        pass

    def dataReceived(self, data: bytes) -> None:
        pass

    def connectionLost(self, reason: Any = None) -> None:
        pass
