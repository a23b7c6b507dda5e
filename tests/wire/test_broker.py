"""The broker with limits: what a peer may do, and what a stranger cannot."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer, task
from twisted.logger import LogLevel, globalLogPublisher, textFileLogObserver
from twisted.spread import pb
from twisted.trial import unittest

from sksd.errors import (
    BadAnswer,
    BadRequest,
    EnvironmentBroken,
    HostGone,
    InternalError,
    NoSuchEngine,
    TimedOut,
    TooLarge,
)
from sksd.wire import messages
from sksd.wire.broker import (
    DEPTH_LIMIT,
    ITEMS_LIMIT,
    LOGIN_BUDGET,
    LOGIN_ITEMS,
    MESSAGE_LIMIT,
    UNREAD_LIMIT,
    LimitedBroker,
    Remote,
)
from sksd.wire.calls import Caller
from tests.wire.pairs import Pair, Stranger


class Service(Remote):
    """What the tests call."""

    def __init__(self) -> None:
        self.never: defer.Deferred[Any] = defer.Deferred()
        self.called: list[Any] = []

    async def remote_echo(self, request: dict[str, Any]) -> messages.Progress:
        self.called.append(request)
        return messages.read(messages.Progress, request)

    async def remote_refuse(self, request: dict[str, Any]) -> messages.Nothing:
        raise NoSuchEngine(engine="abc")

    async def remote_no_utf8(self, request: dict[str, Any]) -> messages.Nothing:
        raise EnvironmentBroken(name="bare", problem="it points to /b\udcffd")

    async def remote_break(self, request: dict[str, Any]) -> messages.Nothing:
        raise ZeroDivisionError("classified")

    async def remote_large(self, request: dict[str, Any]) -> messages.Progress:
        return messages.Progress(step="large", message="x" * 5_000_000)

    async def remote_hang(self, request: dict[str, Any]) -> messages.Nothing:
        await self.never
        return messages.Nothing()

    async def remote_another(self, request: dict[str, Any]) -> tuple[messages.Nothing, Remote]:
        return messages.Nothing(), Service()


def logged(test: unittest.TestCase) -> list[Any]:
    """What is logged at or above warning while the test runs."""
    events: list[Any] = []

    def observe(event: Any) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.warn:
            events.append(event)

    globalLogPublisher.addObserver(observe)
    test.addCleanup(globalLogPublisher.removeObserver, observe)
    return events


class Calls(unittest.TestCase):
    """One call, its answer or its error."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.service = Service()
        self.pair = Pair(self.service)
        self.caller = Caller(self.clock, "lab")

    def call(self, name: str, request: Any = None, answer: Any = messages.Nothing, **options: Any) -> Any:
        calling = self.caller.call(self.pair.root, name, request or messages.Nothing(), answer, **options)
        d = defer.ensureDeferred(calling)
        self.pair.flush()
        return d

    def test_answer(self) -> None:
        sent = messages.Progress(step="solve", message="lösen \N{SNOWMAN}", done=3)
        self.assertEqual(self.successResultOf(self.call("echo", sent, messages.Progress)), sent)

    @given(st.text(max_size=50), st.text(max_size=200), st.none() | st.integers(-(2**63), 2**63))
    @settings(max_examples=50, deadline=None)
    def test_any_text_and_number_arrives(self, step: str, message: str, number: int | None) -> None:
        sent = messages.Progress(step=step, message=message, done=number)
        self.assertEqual(self.successResultOf(self.call("echo", sent, messages.Progress)), sent)

    def test_error_is_the_same_class_with_this_hosts_name(self) -> None:
        failure = self.failureResultOf(self.call("refuse"), NoSuchEngine)
        self.assertIn("no engine abc on lab", str(failure.value))

    def test_bug_is_internal_and_says_nothing_of_the_inside(self) -> None:
        failure = self.failureResultOf(self.call("break"), InternalError)
        self.assertNotIn("classified", str(failure.value))
        [logged_error] = self.flushLoggedErrors(ZeroDivisionError)
        self.assertIn("classified", str(logged_error.value))

    def test_file_name_that_is_not_utf8(self) -> None:
        failure = self.failureResultOf(self.call("no_utf8"), EnvironmentBroken)
        self.assertIn("/b\\udcffd", str(failure.value))

    def test_more_references_than_a_broker_keeps(self) -> None:
        self.patch(pb, "MAX_BROKER_REFS", 3)
        kept = []
        for _ in range(3):
            another = self.caller.call_for(self.pair.root, "another", messages.Nothing(), messages.Nothing)
            kept.append(defer.ensureDeferred(another))
            self.pair.flush()
        self.failureResultOf(self.call("another"), InternalError)
        self.assertEqual(len(self.flushLoggedErrors(pb.Error)), 1)

    def test_answers_that_no_sksd_sends(self) -> None:
        for answer in (
            None,
            [],
            (),
            ("ok",),
            ({"ok": []}, "no reference"),
            ({"ok": [b"{"]},),
            ({"ok": "text"},),
            ({"error": None},),
            ({"error": {"code": 7}},),
            ({"error": {"code": "internal", "fields": {"problem": [1]}}},),
        ):
            self.patch(self.pair.client, "call", lambda *_, answer=answer: defer.succeed(answer))
            self.failureResultOf(self.call("echo"), BadAnswer)

    def test_any_name_of_a_field(self) -> None:
        sent = {"code": "bad-name", "message": "", "fields": {"self": 1, "name": "x", "code": None}}
        self.assertIn("x is not", str(self.caller.error(sent)))

    def test_missing_call(self) -> None:
        failure = self.failureResultOf(self.call("nonsense"), BadRequest)
        self.assertIn("nonsense", str(failure.value))

    def test_too_large_an_answer_is_an_error_not_silence(self) -> None:
        self.failureResultOf(self.call("large", answer=messages.Progress), TooLarge)
        self.test_answer()

    def test_too_large_an_argument_is_an_error_and_leaks_nothing(self) -> None:
        large = messages.Progress(step="x", message="y" * 700_000)
        self.failureResultOf(self.call("echo", large), TooLarge)
        self.assertEqual(self.pair.client.waitingForAnswers, {})
        self.test_answer()

    def test_text_that_is_not_unicode_is_an_error_and_leaks_nothing(self) -> None:
        request = messages.Progress(step="secret\udcff", message="")
        failure = self.failureResultOf(self.call("echo", request), BadRequest)
        self.assertNotIn("secret", str(failure.value))
        self.assertEqual(self.pair.client.waitingForAnswers, {})
        self.test_answer()

    def test_timeout_names_host_and_seconds(self) -> None:
        d = self.call("hang", timeout=7)
        self.clock.advance(7)
        self.assertIn("lab did not answer within 7 s", str(self.failureResultOf(d, TimedOut).value))
        self.service.never.callback(None)
        self.pair.flush()
        self.test_answer()

    def test_lost_connection(self) -> None:
        d = self.call("hang")
        self.pair.server.transport.loseConnection()
        self.pair.flush()
        self.failureResultOf(d, HostGone)
        self.failureResultOf(self.call("echo"), HostGone)

    def test_object_beside_the_answer(self) -> None:
        calling = self.caller.call_for(self.pair.root, "another", messages.Nothing(), messages.Nothing)
        d = defer.ensureDeferred(calling)
        self.pair.flush()
        _, other = self.successResultOf(d)
        self.pair.root = other
        self.test_answer()

    def test_only_a_dict_is_taken(self) -> None:
        for arguments in ((), ("text",), ({}, "text"), ([],)):
            d = self.pair.root.callRemote("echo", *arguments)
            self.pair.flush()
            (envelope,) = self.successResultOf(d)
            self.assertEqual(envelope["error"]["code"], "bad-request")
        d = self.pair.root.callRemote("echo", {}, keyword=1)
        self.pair.flush()
        self.assertEqual(self.successResultOf(d)[0]["error"]["code"], "bad-request")
        self.assertEqual(self.service.called, [])

    def test_no_argument_is_logged(self) -> None:
        lines: list[str] = []
        observer = textFileLogObserver(SimpleNamespace(write=lines.append, flush=lambda: None))  # type: ignore[arg-type]
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for name, arguments in (
            ("echo", ({"step": "classified", "classified": 1},)),
            ("echo", ("classified", {"a": "classified"})),
            ("nonsense", ({"step": "classified"},)),
            ("break", ({"step": "classified"},)),
        ):
            self.pair.root.callRemote(name, *arguments)
            self.pair.flush()
        self.flushLoggedErrors(ZeroDivisionError)
        # What a call raises is logged, and no argument of it.
        self.assertNotIn("classified", "".join(lines).replace("ZeroDivisionError: classified", "").replace(
            'ZeroDivisionError("classified")', ""))

    def test_private_names_cannot_be_called(self) -> None:
        for name in ("__init__", "echo.__func__", "../echo", ""):
            self.failureResultOf(self.call(name), BadRequest)


class Copied(pb.Copyable, pb.RemoteCopy):
    """A class that some library has registered for everybody in the process."""

    made = 0

    def setCopyableState(self, state: Any) -> None:
        Copied.made += 1


pb.setUnjellyableForClass(Copied, Copied)


class Strangers(unittest.TestCase):
    """Before login."""

    def stranger(self, **options: Any) -> Stranger:
        self.service = Service()
        stranger = Stranger(self.service, **options)
        return stranger

    def encoded(self, *expression: Any) -> bytes:
        return self.banana(expression)

    def banana(self, expression: Any) -> bytes:
        encoder = LimitedBroker(True, trusted=True)
        encoder.setPrefixLimit(64)
        encoder.currentDialect = None
        pieces: list[bytes] = []
        encoder._encode(expression, pieces.append)
        return b"".join(pieces)

    def test_budget(self) -> None:
        stranger = self.stranger()
        stranger.send(b"\x02\x80" + b"\x00" * 10)
        self.assertFalse(stranger.dropped)
        stranger.send(b"x" * LOGIN_BUDGET)
        self.assertTrue(stranger.dropped)

    def test_message_limit_after_login(self) -> None:
        stranger = self.stranger()
        stranger.send(self.banana(b"pb"))
        stranger.broker.logged_in()
        opened = b"\x00\x20\x80"  # a list of 4,096
        stranger.send(opened)
        piece = self.banana(b"x" * 60_000)
        for _ in range(MESSAGE_LIMIT // 60_000 + 2):
            stranger.send(piece)
        self.assertTrue(stranger.dropped)

    def test_depth(self) -> None:
        stranger = self.stranger()
        stranger.send(b"\x02\x80" * (DEPTH_LIMIT + 2))
        self.assertTrue(stranger.dropped)

    def test_items(self) -> None:
        stranger = self.stranger()
        stranger.send(self.banana(b"pb"))
        stranger.send(b"\x00\x08\x80" + b"\x00\x80" * (LOGIN_ITEMS - 10))
        self.assertFalse(stranger.dropped)
        stranger.send(b"\x00\x80" * 20)
        self.assertTrue(stranger.dropped)

    def test_items_after_login(self) -> None:
        stranger = self.stranger()
        stranger.send(self.banana(b"pb"))
        stranger.broker.logged_in()
        stranger.send(b"\x00\x20\x20\x80" + b"\x00\x80" * (ITEMS_LIMIT - 10))
        self.assertFalse(stranger.dropped)
        stranger.send(b"\x00\x80" * 20)
        self.assertTrue(stranger.dropped)

    def test_peer_that_does_not_read(self) -> None:
        stranger = self.stranger()
        stranger.send(self.banana(b"pb"))
        stranger.broker.logged_in()
        stranger.transport.producer.pauseProducing()
        self.assertEqual(stranger.transport.producerState, "paused")
        stranger.transport.producer.resumeProducing()
        self.assertEqual(stranger.transport.producerState, "producing")
        stranger.transport.producer.pauseProducing()
        stranger.transport.clear()
        for _ in range(UNREAD_LIMIT // 500_000 + 1):
            stranger.broker.sendEncoded(b"x" * 500_000)
        self.assertTrue(stranger.dropped)
        self.assertLessEqual(len(stranger.transport.value()), UNREAD_LIMIT + 100)

    def test_garbage_costs_a_line_and_the_connection(self) -> None:
        events = logged(self)
        http = b"GET / HTTP/1.1\r\n" * 5
        for garbage in (http, b"\x16\x03\x01" + bytes(range(256)), b"\xff" * 100, b"\x00" * 200):
            stranger = self.stranger()
            stranger.send(garbage)
            self.assertTrue(stranger.dropped, garbage)
        self.assertEqual(events, [])

    @given(st.lists(st.binary(max_size=300), max_size=8))
    @settings(max_examples=200, deadline=None)
    def test_no_bytes_raise(self, pieces: list[bytes]) -> None:
        stranger = self.stranger()
        for piece in pieces:
            stranger.send(piece)
        self.assertEqual(self.service.called, [])

    def test_registered_class_does_not_get_in(self) -> None:
        types = (b"os.system", b"instance", b"module", b"function", b"reference", b"persistent")
        for name in (b"tests.wire.test_broker.Copied", *types):
            stranger = self.stranger()
            hostile = [b"tuple", [name, [b"dictionary"]]]
            stranger.send(self.banana(b"pb"))
            stranger.send(self.encoded(b"message", 1, b"root", b"echo", 1, hostile, [b"dictionary"]))
            self.assertEqual((Copied.made, self.service.called), (0, []), name)
            self.assertIn(b"bad-request", stranger.transport.value())

    def test_other_verbs(self) -> None:
        for verb in (b"cachemessage", b"decache", b"uncache", b"error", b"nonsense"):
            stranger = self.stranger()
            stranger.send(self.banana(b"pb"))
            stranger.send(self.encoded(verb, 1, b"root", b"echo", 1, [b"tuple"], [b"dictionary"]))
            self.assertEqual(self.service.called, [])

    def test_calls_at_once(self) -> None:
        stranger = self.stranger(trusted=True)
        stranger.send(self.banana(b"pb"))
        call = self.encoded(b"message", 1, b"root", b"hang", 1, [b"tuple", [b"dictionary"]], [b"dictionary"])
        for _ in range(300):
            stranger.send(call)
        self.assertTrue(stranger.dropped)
