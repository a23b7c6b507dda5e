"""Perspective Broker with limits: the only broker that sksd speaks, on TLS and on the proxy's UNIX socket.

What it adds to Twisted's (docs/protocol.md, "The broker"): exact type names only, a byte budget before login and a
size limit for each message afterwards, a depth limit, one dict per call and one envelope per answer, so that
neither side ever logs an argument or meets an exception of the other's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import defer, protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.spread import banana, jelly, pb

from sksd.errors import BadRequest, InternalError, SksdError, TooLarge
from sksd.wire.messages import packed

log = Logger()

#: Bytes a connection may send before it has logged in, TLS not counted.
LOGIN_BUDGET: Final = 16 * 1024
#: Bytes of one message, either way.
MESSAGE_LIMIT: Final = 4 * 1024 * 1024
#: Lists within lists of one message: a jellied SpinUp needs 8.
DEPTH_LIMIT: Final = 40
#: Items of one message: strings, numbers, lists. An empty list takes two bytes on the wire and 64 of memory.
ITEMS_LIMIT: Final = 50_000
#: Items that a connection may send before it has logged in.
LOGIN_ITEMS: Final = 1_000
#: Bytes that may wait for a peer that calls and does not read the answers.
UNREAD_LIMIT: Final = 2 * MESSAGE_LIMIT
#: Calls of one peer that wait for their answer at once.
CALLS_LIMIT: Final = 256
#: Banana re-slices what it was given at every item, so large pieces cost the square of their size.
_PIECE: Final = 4096

_TYPES: Final = frozenset(
    {b"None", b"NoneType", b"bool", b"boolean", b"int", b"float", b"str", b"unicode", b"bytes", b"builtins.bytes"}
    | {b"list", b"tuple", b"dict", b"dictionary", b"remote", b"local"}
)


class WireTypes(jelly.SecurityOptions):
    """Plain data and references, by exact name; the stock options let every dotted name pass."""

    def isTypeAllowed(self, typeName: bytes | str) -> bool:
        name = typeName.encode() if isinstance(typeName, str) else typeName
        return name.removeprefix(b"builtins.") in _TYPES

    def isModuleAllowed(self, moduleName: bytes | str) -> bool:
        return False

    def isClassAllowed(self, klass: type) -> bool:
        return False


class _BoundedStack(list[Any]):
    def append(self, item: Any) -> None:
        if len(self) >= DEPTH_LIMIT:
            raise banana.BananaError("lists too deep")
        super().append(item)


class Remote(pb.Referenceable):
    """Base of what the other side may call.

    A method ``async def remote_NAME(self, request, *references)`` takes the plain dict of the call and answers with
    a message (`sksd.wire.messages`), or with a pair of a message and one `Remote`. What it raises becomes the error
    of the envelope.
    """


class LimitedBroker(pb.Broker):
    """A broker whose peer is not trusted. `trusted` lifts the login budget; the other limits always hold.

    A peer that came as a stranger and does not read its answers is read no further, and dropped when too much waits
    for it. (Were both ends to stop reading, they could wait for each other.)
    """

    # Twisted's annotations say None for what is only there while connected.
    transport: Any
    factory: Any
    waitingForAnswers: Any

    def __init__(self, is_client: bool, *, trusted: bool = False) -> None:
        super().__init__(1 if is_client else 0, WireTypes())
        self.listStack = _BoundedStack()
        self._budget: int | None = None if trusted else LOGIN_BUDGET
        self._message_bytes = 0
        self._message_items = 0
        self._login_items: int | None = None if trusted else LOGIN_ITEMS
        self._unread: int | None = None
        self._calls = 0
        #: Why this side dropped the connection, and how it was lost, for whoever waits on it.
        self.dropped: str | None = None
        self.lost = protocol.connectionDone

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self.lost = reason
        super().connectionLost(reason)

    def logged_in(self) -> None:
        """Called by the login root once the peer is known: the login budget no longer counts."""
        self._budget = self._login_items = None

    def connectionMade(self) -> None:
        if not self.isClient and self._budget is not None:
            self.transport.registerProducer(self, True)
        super().connectionMade()

    def hang_up(self) -> None:
        """Close the connection once all that was said is sent."""
        # TLS would wait for a producer to end.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def pauseProducing(self) -> None:
        """Called by the transport when the peer reads too slowly."""
        if self._unread is None:
            self._unread = 0
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Called by the transport when the peer has read."""
        if self._unread is not None:
            self._unread = None
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Called by the transport when the connection is lost."""

    def gotItem(self, item: Any) -> None:
        self._message_items += 1
        if self._message_items > ITEMS_LIMIT:
            raise banana.BananaError("too many items")
        if self._login_items is not None:
            self._login_items -= 1
            if self._login_items < 0:
                raise banana.BananaError("too many items before login")
        super().gotItem(item)

    def dataReceived(self, chunk: bytes) -> None:
        if self._budget is not None:
            self._budget -= len(chunk)
            if self._budget < 0:
                return self._drop("too much data before login")
        for start in range(0, len(chunk), _PIECE):
            piece = chunk[start : start + _PIECE]
            self._message_bytes += len(piece)
            if self._message_bytes > MESSAGE_LIMIT:
                return self._drop("message too large")
            try:
                super().dataReceived(piece)
            except Exception as problem:
                # Whatever a stranger's bytes provoke ends his connection and costs one line of log.
                return self._drop(f"not Perspective Broker: {type(problem).__name__}")
            if self.dropped or self.disconnected:
                return None
        return None

    def expressionReceived(self, sexp: Any) -> None:
        self._message_bytes = self._message_items = 0
        super().expressionReceived(sexp)

    def _drop(self, reason: str) -> None:
        if self.dropped is None:
            self.dropped = reason
            log.info("dropping a connection: {reason}", reason=reason)
            self.transport.abortConnection()

    # No class of ours is cached, so nobody has business here.
    def proto_cachemessage(self, *args: Any) -> None:
        self._drop("cached objects are not spoken here")

    proto_decache = proto_uncache = proto_cachemessage

    def proto_didNotUnderstand(self, command: Any) -> None:
        self._drop("the peer does not understand us")

    def proto_error(self, requestID: int, fail: Any) -> None:
        self._drop("errors come in envelopes here")

    def proto_answer(self, requestID: int, netResult: Any) -> None:
        # A timed-out call's late answer finds nobody: fine.
        waiting = self.waitingForAnswers.pop(requestID, None)
        if waiting is not None:
            waiting.callback(self.unserialize(netResult))

    def proto_message(
        self, requestID: int, objectID: Any, message: Any, answerRequired: int, netArgs: Any, netKw: Any
    ) -> None:
        if self._calls >= CALLS_LIMIT:
            return self._drop("too many calls at once")
        self._calls += 1
        name = message.decode("ascii", "replace") if isinstance(message, bytes) else str(message)
        running = defer.ensureDeferred(self._answer(objectID, name, netArgs, netKw))
        running.addCallback(self._respond, requestID, answerRequired)
        return None

    async def _answer(self, target: Any, name: str, net_args: Any, net_kw: Any) -> tuple[Any, ...]:
        try:
            method = getattr(self.localObjectForID(target), f"remote_{name}", None)
            arguments, keywords = self._plain(net_args), self._plain(net_kw)
            if method is None or keywords:
                raise BadRequest(problem=f"there is no call {name[:64]!r}")
            if not arguments or not isinstance(arguments[0], dict):
                raise BadRequest(problem="a call takes one dict")
            if not all(isinstance(extra, pb.RemoteReference) for extra in arguments[1:]):
                raise BadRequest(problem="only references may follow the dict")
            answer = await method(*arguments)
            message, *references = answer if isinstance(answer, tuple) else (answer,)
            return ({"ok": packed(message)}, *references)
        except SksdError as error:
            return (envelope(error),)
        except Exception:
            return (_internal(name),)

    def _plain(self, jellied: Any) -> Any:
        try:
            return self.unserialize(jellied)
        except Exception as error:
            raise BadRequest(problem=f"its arguments are malformed ({type(error).__name__})") from None

    def _respond(self, answer: tuple[Any, ...], request: int, wanted: int) -> None:
        self._calls -= 1
        if self.disconnected or not wanted:
            return
        try:
            self._sendAnswer(self.serialize(answer), request)
        except (banana.BananaError, TooLarge):
            self._sendAnswer(self.serialize((envelope(TooLarge(size="over 600000")),)), request)
        except Exception:
            # As more references than Perspective Broker keeps: the peer must not wait for an answer for ever.
            self._sendAnswer(self.serialize((_internal("answer"),)), request)

    def sendEncoded(self, obj: Any) -> None:
        pieces: list[bytes] = []
        self._encode(obj, pieces.append)
        data = b"".join(pieces)
        if len(data) > MESSAGE_LIMIT:
            raise TooLarge(size=len(data))
        if self._unread is not None:
            self._unread += len(data)
            if self._unread > UNREAD_LIMIT:
                return self._drop("it does not read what it is told")
        self.transport.write(data)
        return None

    def call(self, reference: pb.RemoteReference, name: str, *arguments: Any) -> defer.Deferred[Any]:
        """Send one call; fires with the envelope. An argument too large for the wire raises TooLarge here."""
        try:
            answer: defer.Deferred[Any] = reference.callRemote(name, *arguments)
        except (banana.BananaError, TooLarge):
            self.waitingForAnswers.pop(self.currentRequestID, None)
            raise TooLarge(size="over 600000") from None
        return answer


def envelope(error: SksdError) -> dict[str, Any]:
    """`error` as it crosses the wire: {"error": {"code", "message", "fields"}}."""
    fields = {name: _utf8(value) if isinstance(value, str) else value for name, value in error.fields.items()}
    return {"error": {"code": error.code, "message": _utf8(str(error)), "fields": fields}}


def _utf8(text: str) -> str:
    # A file's name in a sentence need not be.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _internal(name: str) -> dict[str, Any]:
    """The envelope for an exception that is being handled and that nobody foresaw; the log gets the traceback."""
    log_id = secrets.token_hex(4)
    log.failure("call {name} failed, {log_id}", name=name[:64], log_id=log_id)
    return envelope(InternalError(log_id=log_id))


class BrokerFactory:
    """What `pb.Broker` asks of its factory.

    `root`: called with the broker once both have agreed on the dialect; what it returns is the peer's first object.
    `on_ready`: called with the broker at the same moment (client side).
    """

    unsafeTracebacks = False

    def __init__(
        self,
        root: Callable[[LimitedBroker], Remote] | None = None,
        on_ready: Callable[[LimitedBroker], None] | None = None,
    ) -> None:
        self._root = root
        self._on_ready = on_ready

    def build(self, is_client: bool, *, trusted: bool = False) -> LimitedBroker:
        """A new broker, not yet connected."""
        broker = LimitedBroker(is_client, trusted=trusted)
        broker.factory = self
        if self._root is not None:
            broker.setNameForLocal("root", self._root(broker))
        return broker

    def clientConnectionMade(self, broker: LimitedBroker) -> None:
        """Called by the broker when the dialect is agreed."""
        if self._on_ready is not None:
            self._on_ready(broker)
