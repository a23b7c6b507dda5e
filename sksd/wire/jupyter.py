"""The few Jupyter messages that sksd itself says and reads (Jupyter messaging 5.3): the keeper's, and `sksd log`'s.

Front ends speak for themselves: their messages pass unread. A message is `<IDS|MSG>`, the signature, then header,
parent header, metadata and content as JSON, then buffers; the signature is HMAC-SHA256 over those four.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

DELIMITER: Final = b"<IDS|MSG>"
_VERSION: Final = "5.3"


class Message(NamedTuple):
    """What matters of a message on iopub. `left`: of the past, which is said first, so many messages follow it; None:
    it is no message of the past."""

    kind: str
    content: dict[str, Any]
    left: int | None


def new(key: bytes, kind: str, content: dict[str, Any]) -> list[bytes]:
    """The frames of a new message of type `kind`."""
    header = {
        "msg_id": secrets.token_hex(16),
        "session": secrets.token_hex(16),
        "username": "sksd",
        "date": datetime.now(UTC).isoformat(),
        "msg_type": kind,
        "version": _VERSION,
    }
    parts = [msgspec.json.encode(part) for part in (header, {}, {}, content)]
    return [DELIMITER, _sign(key, parts), *parts]


def content_of(key: bytes, frames: Sequence[bytes]) -> dict[str, Any] | None:
    """The content of a message with a right signature, None for anything else."""
    message = read(key, frames)
    return message.content if message is not None else None


class _Header(msgspec.Struct):
    msg_type: str = ""
    msg_id: str = ""


class _Status(msgspec.Struct):
    execution_state: str = ""


class _Mark(msgspec.Struct):
    left: int | None = None


class _Metadata(msgspec.Struct):
    sksd: _Mark = msgspec.field(default_factory=_Mark)


def read(key: bytes, frames: Sequence[bytes]) -> Message | None:
    """A message with a right signature, None for anything else."""
    parts = _parts(frames)
    if parts is None or not hmac.compare_digest(_sign(key, parts[1:5]), parts[0]):
        return None
    try:
        return Message(
            msgspec.json.decode(parts[1], type=_Header).msg_type,
            msgspec.json.decode(parts[4], type=dict[str, Any]),
            msgspec.json.decode(parts[3], type=_Metadata).sksd.left,
        )
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def is_status(frames: Sequence[bytes]) -> bool:
    """Whether it says no more than that the kernel is busy, idle or starting."""
    return status(frames) is not None


def status(frames: Sequence[bytes]) -> tuple[str, str] | None:
    """What a message of type "status" says: the id of the request that it is about, and "busy", "idle" or
    "starting"; None for any other message."""
    parts = _parts(frames)
    try:
        if parts is None or msgspec.json.decode(parts[1], type=_Header).msg_type != "status":
            return None
        request = msgspec.json.decode(parts[2], type=_Header).msg_id
        return request, msgspec.json.decode(parts[4], type=_Status).execution_state
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def as_past(key: bytes, frames: Sequence[bytes], left: int) -> list[bytes]:
    """The frames of a message with `"sksd": {"past": true, "left": left}` in its metadata, signed anew; what is no
    Jupyter message stays as it is."""
    frames = list(frames)
    parts = _parts(frames)
    if parts is None:
        return frames
    try:
        metadata = msgspec.json.decode(parts[3], type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return frames
    metadata["sksd"] = msgspec.Raw(msgspec.json.encode({"past": True, "left": left}))
    signed = [parts[1], parts[2], msgspec.json.encode(metadata), parts[4]]
    before = frames[: frames.index(DELIMITER) + 1]
    return [*before, _sign(key, signed), *signed, *parts[5:]]


def _parts(frames: Sequence[bytes]) -> list[bytes] | None:
    """Signature, header, parent, metadata, content, buffers."""
    if DELIMITER not in frames:
        return None
    parts = list(frames)[list(frames).index(DELIMITER) + 1 :]
    return parts if len(parts) >= 5 else None


def _sign(key: bytes, parts: Sequence[bytes]) -> bytes:
    if not key:
        return b""
    return hmac.digest(key, b"".join(parts), "sha256").hex().encode()
