"""Grants: the proof, made by the gate and by nobody else, that somebody came in. Decides, and does nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import Final, NamedTuple

#: Seconds a login's grant holds, and a ticket's, which is good for one link.
LIFETIME: Final = 7 * 24 * 3600.0
LIFETIME_LINK: Final = 60.0


class Grant(NamedTuple):
    """One login of one account, until `until` on the clock of the machine; `link`: a ticket's. Of nobody (""): a
    nonce."""

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
        text = json.dumps(Grant(user, uid, link, until, secrets.token_hex(16))._asdict())
        return f"{self._mac(text)}{text}"

    def read(self, word: str, now: float, end: bool = False) -> Grant | None:
        """For PROXY: what `word` proves; None where that is nothing, or no longer. With `end`, and where it is good
        for one thing only, it proves nothing any more after that."""
        self._ended = {word: until for word, until in self._ended.items() if until > now}
        if word in self._ended or not hmac.compare_digest(word[:64].encode(), self._mac(word[64:]).encode()):
            return None
        grant = Grant(**json.loads(word[64:]))
        if end or grant.link:
            self._ended[word] = grant.until
        return grant if grant.until > now else None

    def nonce(self, now: float) -> str:
        """For NONCE: in base64, good for one CHECK."""
        return base64.b64encode(self.make("", -1, True, now).encode()).decode()

    def fresh(self, nonce: str, now: float) -> bool:
        """Whether it is such a nonce, and this is its first use."""
        grant = self.read(base64.b64decode(nonce).decode(), now)
        return grant is not None and not grant.user
