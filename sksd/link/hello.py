"""What the two ends of a link say first and last: HELLO, WELCOME and GOODBYE, JSON in one frame each.

The daemon needs nothing of a link but this module (docs/link.md, "Through the daemon").
"""

from __future__ import annotations

import secrets
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from sksd.errors import Field, LinkProtocol, ProtocolMismatch, SksdError, from_code
from sksd.link import frames
from sksd.link.limits import MAX_BODY, VERSION
from sksd.wire.messages import Answer, Count, Short

#: The code of a GOODBYE without an error: the sender has no more use for the link.
DONE: Final = "done"


#: Where a new link's iopub begins: with what no front end has had, with what comes, with all there is.
MISSED: Final = "missed"
NOW: Final = "now"
START: Final = "start"


Replay = Literal["missed", "now", "start"]


class Hello(Answer, kw_only=True):
    """The client's first frame, the only one that the daemon reads.

    `link`: 16 random bytes in hex, the same for all connections of one link. `received`: sequenced bytes that
    this end has had of the other on that link. `resume`: go on with that link, or end. Between daemon and
    proxy `ticket` is empty and `engine` names the engine; from a client `engine` is ignored. `replay`: MISSED, NOW or
    START. `watch`: this is no front end: it only looks on, and what it gets counts as missed still. `restarted`,
    with `resume`: another program goes on with the link; `handed` are the streams that it knows of the one before,
    and how many bytes the front end of each was given.
    """

    version: int = VERSION
    link: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    ticket: Annotated[str, Meta(max_length=4096)] = ""
    received: Count = 0
    resume: bool = False
    client: Short = ""
    engine: Annotated[str, Meta(pattern=r"\A[a-z0-9]{0,32}\Z")] = ""
    replay: Replay = "missed"
    watch: bool = False
    restarted: bool = False
    handed: dict[Count, Count] = {}


class Welcome(Answer):
    """The keeper's answer to `Hello`. `past`: how many messages of iopub from before a new link come first. After
    `restarted`, `last` is the highest number of a stream that it has ever heard of, `streams` says of each that goes
    on how many bytes it has had, and how many more it takes."""

    version: int = VERSION
    resumed: bool = False
    received: Count = 0
    past: Count = 0
    last: Count = 0
    streams: dict[Count, tuple[Count, Count]] = {}


class Goodbye(Answer):
    """The last frame of either end: `code`, `message` and `fields` of an error (sksd.errors), or DONE."""

    code: Annotated[str, Meta(max_length=64)]
    message: str = ""
    fields: dict[str, Field] = {}


M = TypeVar("M", bound=Answer)


def new_hello(ticket: str, client: str = "", replay: Replay = "missed", watch: bool = False) -> Hello:
    """The HELLO of a new link with its own random id."""
    return Hello(link=secrets.token_hex(16), ticket=ticket, client=client, replay=replay, watch=watch)


def read_body(shape: type[M], body: bytes) -> M:
    """The body of a HELLO, WELCOME or GOODBYE. Raises LinkProtocol."""
    try:
        return msgspec.json.decode(body, type=shape)
    # RecursionError: JSON nested deeper than the decoder goes.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkProtocol(problem=f"{shape.__name__}: {error}") from None


def read_hello(body: bytes) -> Hello:
    """The body of a HELLO of this version. Raises LinkProtocol, ProtocolMismatch."""
    hello = read_body(Hello, body)
    if hello.version != VERSION:
        raise ProtocolMismatch(theirs=hello.version, ours=VERSION)
    return hello


def hello_frame(hello: Hello) -> bytes:
    """`hello` as a frame."""
    return frames.encode(frames.HELLO, 0, msgspec.json.encode(hello))


def hello_to_proxy(hello: Hello, engine: str) -> bytes:
    """The frame that the daemon sends to the proxy in place of the client's: no ticket, the engine's id."""
    return hello_frame(msgspec.structs.replace(hello, ticket="", engine=engine))


def welcome_frame(welcome: Welcome) -> bytes:
    """`welcome` as a frame."""
    return frames.encode(frames.WELCOME, 0, msgspec.json.encode(welcome))


def goodbye_frame(error: SksdError | None) -> bytes:
    """GOODBYE with `error`, or without one when the link is simply done.

    The daemon sends this to a client whose ticket it refuses, and then closes the connection.
    """
    if error is None:
        return frames.encode(frames.GOODBYE, 0, msgspec.json.encode(Goodbye(code=DONE)))
    said = Goodbye(code=error.code, message=str(error), fields=error.fields)
    body = msgspec.json.encode(said)
    if len(body) > MAX_BODY:
        # A byte becomes at most six in JSON (a control character).
        fields = said.fields.items()
        short = {name: value[-2048:] if isinstance(value, str) else value for name, value in fields}
        body = msgspec.json.encode(Goodbye(code=error.code, message=said.message[:2048], fields=short))
    if len(body) > MAX_BODY:
        body = msgspec.json.encode(Goodbye(code=error.code, message=said.message[:2048]))
    return frames.encode(frames.GOODBYE, 0, body)


def read_goodbye(body: bytes) -> SksdError | None:
    """The error that a GOODBYE tells, None for DONE. Raises LinkProtocol."""
    goodbye = read_body(Goodbye, body)
    if goodbye.code == DONE:
        return None
    return from_code(goodbye.code, goodbye.message, goodbye.fields)


class FirstFrame:
    """Reads the HELLO at the start of a connection and nothing after it; holds at most 8 KiB.

    The daemon feeds what arrives until `feed` answers, and then passes all bytes on unread.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[Hello, bytes] | None:
        """The HELLO and the bytes after it, or None while it is not whole.

        Raises LinkProtocol, ProtocolMismatch: answer with `goodbye_frame(error)` and close.
        """
        held = self._held + data
        # Said before the header is whole, so that something else than a link is refused at once.
        if held and held[0] != frames.HELLO:
            raise LinkProtocol(problem="it does not begin with HELLO")
        if len(held) < frames.HEADER.size:
            self._held = held
            return None
        first, stream = frames.HEADER.unpack_from(held)
        length = first & 0xFFFFFF
        frames.check(first >> 24, stream, length)
        end = frames.HEADER.size + length
        if len(held) < end:
            self._held = held
            return None
        self._held = b""
        return read_hello(held[frames.HEADER.size : end]), held[end:]
