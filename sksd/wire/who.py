"""Who may come in, and what guests are called. Decides, and does nothing.

The daemon reads the rules in its configuration, and the gate, which alone knows who somebody is, keeps to them. Only
the standard library: the gate imports this.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

#: Between the account of guests and the guest's own id: no account's name has it (passwd(5)).
_GUEST: Final = ":"
#: Letters of what makes a guest known again, at the least.
SHORTEST_TOKEN: Final = 32
_PURPOSE: Final = b"sksd guest "


@dataclass(frozen=True)
class Rules:
    """Names or patterns (fnmatch). Nothing in both `allow_users` and `allow_groups`: everybody may."""

    allow_users: Collection[str] = ()
    deny_users: Collection[str] = ()
    allow_groups: Collection[str] = ()

    def problem(self, user: str, groups: Iterable[str]) -> str | None:
        """Why `user`, who is in `groups`, may not come in; None for who may. Called by the gate once somebody has
        proved to be that user, so that no stranger learns it."""
        if _matches([user], self.deny_users):
            return "the configuration shuts that account out (deny_users)"
        if not self.allow_users and not self.allow_groups:
            return None
        if _matches([user], self.allow_users) or _matches(groups, self.allow_groups):
            return None
        return "the configuration names others only (allow_users, allow_groups)"


def _matches(names: Iterable[str], patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def guest_name(account: str, secret: str, token: str) -> str:
    """What the guest who has `token` is called: the account, and an id that tells nothing of the token. The same each
    time, as long as the gate's `secret` is."""
    digest = hmac.new(secret.encode(), _PURPOSE + token.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return f"{account}{_GUEST}{digest.hexdigest()[:16]}"


def account_of(name: str) -> str:
    """The account of a person, or of a guest."""
    return name.partition(_GUEST)[0]


def guest_of(name: str) -> str:
    """The id of a guest; empty for a person."""
    return name.partition(_GUEST)[2]
