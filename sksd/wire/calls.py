"""One way to call the other side: timeout, translation of errors, checked answer."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

import msgspec
from twisted.internet import defer
from twisted.internet.interfaces import IReactorTime
from twisted.spread import pb

from sksd.errors import BadAnswer, BadRequest, Field, HostGone, SksdError, TimedOut, from_code
from sksd.wire.broker import LimitedBroker
from sksd.wire.messages import Answer, plain, unpacked

#: Seconds the other side has to answer a call.
CALL_TIMEOUT: Final = 30.0

M = TypeVar("M", bound=msgspec.Struct)


class _Error(Answer):
    """The error of an envelope (docs/protocol.md, "The broker")."""

    code: str = ""
    message: str = ""
    fields: dict[str, Field] = {}


def _opened(answer: object) -> tuple[dict[str, Any], pb.RemoteReference | None]:
    """The envelope of an answer and the reference beside it; raises BadAnswer where the peer sent other things."""
    match answer:
        case (dict() as envelope,):
            return envelope, None
        case (dict() as envelope, pb.RemoteReference() as reference):
            return envelope, reference
    raise BadAnswer(problem="it is in no envelope")


class Caller:
    """Calls on the objects of one connection.

    `host` is what the person calls the other side; it goes into every error. `gone` is the class of error for a
    lost connection. `timeout`: seconds a call may take that does not say otherwise.
    """

    def __init__(
        self,
        clock: IReactorTime,
        host: str,
        gone: type[SksdError] = HostGone,
        timeout: float = CALL_TIMEOUT,
        **fields: str,
    ) -> None:
        self._clock = clock
        self.host = host
        self.timeout = timeout
        self._gone = gone
        self._fields = fields

    async def call(
        self,
        reference: pb.RemoteReference,
        name: str,
        request: msgspec.Struct,
        answer: type[M],
        *references: pb.Referenceable | None,
        timeout: float | None = None,
    ) -> M:
        """`reference.name(request)` as an `answer`; raises the SksdError the other side sent, BadAnswer,
        TimedOut after `timeout` s, or `gone` when the connection is or goes down."""
        message, _ = await self.call_for(
            reference, name, request, answer, *references, timeout=timeout
        )
        return message

    async def call_for(
        self,
        reference: pb.RemoteReference,
        name: str,
        request: msgspec.Struct,
        answer: type[M],
        *references: pb.Referenceable | None,
        timeout: float | None = None,
    ) -> tuple[M, pb.RemoteReference | None]:
        """As `call`, for calls whose answer brings an object beside it."""
        given = [each for each in references if each is not None]
        seconds = self.timeout if timeout is None else timeout
        try:
            broker = cast(LimitedBroker, reference.broker)
            waiting = broker.call(reference, name, plain(request), *given)
            waiting.addTimeout(seconds, cast(Any, self._clock))
            envelope, extra = _opened(await waiting)
        except UnicodeEncodeError:
            # A lone surrogate, as of an argument in Latin-1. Which text is not said: it may be a password.
            raise BadRequest(host=self.host, problem="a text in it is not valid Unicode") from None
        except pb.DeadReferenceError:
            raise self._lost("it was closed") from None
        except (pb.PBConnectionLost, pb.Error):
            raise self._lost(broker.dropped or "the other side closed it") from None
        except defer.TimeoutError:
            raise TimedOut(host=self.host, seconds=f"{seconds:g}") from None
        if "error" in envelope:
            raise self.error(envelope["error"])
        return unpacked(answer, envelope.get("ok")), extra

    def error(self, sent: dict[str, Any]) -> SksdError:
        """The error of an envelope, with this host's name in it. Raises BadAnswer."""
        try:
            said = msgspec.convert(sent, _Error)
        except msgspec.ValidationError as wrong:
            raise BadAnswer(problem=str(wrong)) from None
        return from_code(said.code, said.message, {**said.fields, "host": self.host, **self._fields})

    def _lost(self, problem: str) -> SksdError:
        return self._gone(host=self.host, problem=problem, **self._fields)


def tell(listener: pb.RemoteReference, name: str, message: msgspec.Struct) -> None:
    """Call a listener without waiting for its answer; one that is gone does not matter."""
    try:
        waiting: defer.Deferred[Any] = listener.callRemote(name, plain(message))
    except pb.DeadReferenceError:
        return
    waiting.addErrback(lambda _: None)
