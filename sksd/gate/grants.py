"""Grants: the proof, made by the gate and by nobody else, that somebody came in. Decides, and does nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from typing import Final

#: Seconds a login's grant holds, and a ticket's, which is good for one link.
LIFETIME: Final = 7 * 24 * 3600.0
LIFETIME_LINK: Final = 60.0


@dataclass(frozen=True)
class Grant:
    """One login of one account, until `until` on the clock of the machine; `link`: a ticket's."""

    user: str
    uid: int
    link: bool
    until: float
    number: str = ""


class Grants:
    """A key that lives as long as the gate does, and the grants that ended before their time."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._ended: dict[str, float] = {}

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def make(self, user: str, uid: int, link: bool, now: float) -> str:
        """For a CHECK that was good: the word that PROXY needs."""
        until = now + (LIFETIME_LINK if link else LIFETIME)
        text = json.dumps(asdict(Grant(user, uid, link, until, secrets.token_hex(16))))
        return f"{self._mac(text)}{text}"

    def read(self, word: str, now: float) -> Grant | None:
        """For PROXY: what `word` proves; None where that is nothing, or no longer."""
        if word in self._ended or not hmac.compare_digest(word[:64].encode(), self._mac(word[64:]).encode()):
            return None
        grant = Grant(**json.loads(word[64:]))
        return grant if grant.until > now else None

    def end(self, word: str, now: float) -> None:
        """It proves nothing any more."""
        if (grant := self.read(word, now)) is not None:
            self._ended = {word: until for word, until in self._ended.items() if until > now}
            self._ended[word] = grant.until
