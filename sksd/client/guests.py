"""What makes this user known again where he is a guest: a token for each host, which nobody can guess.

`guests.json` in the state folder (0600): {"lab": "43 url-safe letters"}, by the name that the person used.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Mapping
from typing import Final

import msgspec

from sksd import paths
from sksd.client.trust import host_key
from sksd.errors import CannotWrite

#: Bytes of the file.
_LARGEST: Final = 1024 * 1024


def token(host: str, environ: Mapping[str, str] = os.environ) -> str:
    """The token for `host`: $SKSD_GUEST, else the one that is kept, else a new one, which is kept. Called for each
    login as a guest. Raises CannotWrite."""
    if given := environ.get("SKSD_GUEST", ""):
        return given
    file = paths.private(paths.state()) / "guests.json"
    try:
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Of two at once both get the same.
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                kept = msgspec.json.decode(paths.read_private(file, _LARGEST), type=dict[str, str])
            except FileNotFoundError:
                kept = {}
            except msgspec.MsgspecError:
                raise CannotWrite(host="this machine", path=str(file), problem="it is damaged: delete it") from None
            key = host_key(host)
            if key not in kept:
                kept[key] = secrets.token_urlsafe(32)
                paths.write_private(file, msgspec.json.encode(kept))
            return kept[key]
        finally:
            os.close(lock)
    except OSError as error:
        raise CannotWrite(host="this machine", path=str(file), problem=error.strerror or str(error)) from None
