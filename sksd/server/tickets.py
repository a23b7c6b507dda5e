"""Tickets: what a client shows to have its link passed on to one engine of one user.

The daemon keeps no list of them: a ticket carries the user and the engine, and a MAC (HMAC-SHA256, RFC 2104)
over both. The key outlives the daemon (`token.secret`), so tickets do, too: they are good for as long as the
engine lives, which the proxy knows.

    v1.<payload>.<mac>    each base64url without padding (RFC 4648, section 5); payload: the JSON array [user,
    engine]
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

import attrs
import msgspec

from sksd.errors import TicketRefused

_VERSION: Final = "v1"
#: What the key is used for: the same key must never give the same MAC elsewhere.
_PURPOSE: Final = b"sksd ticket "
#: Letters of a ticket.
LONGEST: Final = 4096


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


@attrs.frozen
class Tickets:
    """Issues and checks tickets under one secret, which no repr shows."""

    _secret: str = attrs.field(repr=False)

    def _mac(self, signed: str) -> str:
        key = self._secret.encode("ascii")
        return _base64(hmac.new(key, _PURPOSE + signed.encode("ascii"), hashlib.sha256).digest())

    def issue(self, user: str, engine: str) -> str:
        """The ticket for `engine` of `user`; the same each time. Called when an engine was started or asked
        for.

        Raises ValueError when the names are too long for a ticket.
        """
        signed = f"{_VERSION}.{_base64(msgspec.json.encode([user, engine]))}"
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
        payload = signed.partition(".")[2]
        try:
            return msgspec.json.decode(
                base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=tuple[str, str]
            )
        except (msgspec.MsgspecError, binascii.Error, ValueError):
            raise TicketRefused() from None
