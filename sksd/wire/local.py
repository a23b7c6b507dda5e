"""How a daemon tells clients of the same account where it is: `paths.daemon_note()`, 0600, one JSON object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from sksd import paths

#: Bytes of a note.
_LARGEST: Final = 65536


class Note(msgspec.Struct, kw_only=True):
    """`address`: an IP address that clients on this machine can use; `socket`: a UNIX socket on which a shared host's
    daemon knows them without a password, else empty."""

    pid: int
    address: str
    port: int
    fingerprint: str
    name: str
    version: str
    socket: str = ""


def read_note(path: Path) -> Note | None:
    """The note at `path`, or None when there is none, it is not the caller's own, or nobody lives who wrote it."""
    try:
        note = msgspec.json.decode(paths.read_private(path, _LARGEST), type=Note)
        os.kill(note.pid, 0)
    except (OSError, OverflowError, UnicodeDecodeError, msgspec.MsgspecError):
        return None
    return note
