"""Tickets: what a client shows to have its link passed on to one engine of one user.

Nobody keeps a list of them: a ticket carries the user and the engine, and a MAC (HMAC-SHA256, RFC 2104) over both.
The key outlives the processes, so tickets do, too: they are good for as long as the engine lives, which the proxy
knows. In user mode the key is the daemon's. In system mode each account has one of its own (`account_key`), which
only the gate and that account's proxy have: the proxy issues, the gate checks.

    v1.<payload>.<mac>    each base64url without padding (RFC 4648, section 5); payload: the JSON array [user,
    engine]

Only the standard library: the gate imports this.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import Final

from sksd.errors import TicketRefused

_VERSION: Final = "v1"
#: What the key is used for: the same key must never give the same MAC elsewhere.
_PURPOSE: Final = b"sksd ticket "
_PURPOSE_ACCOUNT: Final = "sksd account "
#: Letters of a ticket.
LONGEST: Final = 4096


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def account_key(secret: str, user: str, uid: int) -> str:
    """The key of one account's tickets, made from the gate's secret. Of no use to an account made anew under the
    same name with another uid."""
    return hmac.new(secret.encode(), f"{_PURPOSE_ACCOUNT}{uid} {user}".encode(), hashlib.sha256).hexdigest()


def claimed_user(ticket: str) -> str:
    """Whose ticket it says it is, which is not to be believed before `Tickets.check`. Raises TicketRefused."""
    return _read(ticket)[0]


def _read(ticket: str) -> tuple[str, str]:
    parts = ticket[: LONGEST + 1].split(".")
    try:
        if len(ticket) <= LONGEST and len(parts) == 3 and parts[0] == _VERSION:
            payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
            user, engine = json.loads(payload)
            if isinstance(user, str) and isinstance(engine, str):
                return user, engine
    except (ValueError, TypeError, RecursionError, binascii.Error):
        pass
    raise TicketRefused()


class Tickets:
    """Issues and checks tickets under one key, which no repr shows."""

    def __init__(self, key: str) -> None:
        self._key = key.encode("ascii")

    def _mac(self, signed: str) -> str:
        return _base64(hmac.new(self._key, _PURPOSE + signed.encode("ascii"), hashlib.sha256).digest())

    def issue(self, user: str, engine: str) -> str:
        """The ticket for `engine` of `user`; the same each time. Called when an engine was started or asked
        for.

        Raises ValueError when the names are too long for a ticket.
        """
        payload = json.dumps([user, engine], ensure_ascii=False, separators=(",", ":")).encode()
        signed = f"{_VERSION}.{_base64(payload)}"
        ticket = f"{signed}.{self._mac(signed)}"
        if len(ticket) > LONGEST:
            raise ValueError("too long for a ticket")
        return ticket

    def check(self, ticket: str) -> tuple[str, str]:
        """The (user, engine) that `ticket` was issued for. Called for each link that comes in.

        Raises TicketRefused for anything else, without a word about what is wrong with it.
        """
        signed, _, mac = ticket[: LONGEST + 1].rpartition(".")
        # The letters themselves are compared: base64 has several spellings of the same bytes.
        if (
            len(ticket) > LONGEST
            or not ticket.isascii()
            or not signed.startswith(f"{_VERSION}.")
            or not hmac.compare_digest(mac.encode("ascii"), self._mac(signed).encode("ascii"))
        ):
            raise TicketRefused()
        return _read(ticket)
