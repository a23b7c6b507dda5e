"""How failed logins slow down whoever makes them: events in, seconds to wait out.

Two counts, each of failures that are forgotten one by one. An *address* (for IPv6 its /64, which one machine can
wholly own) that has failed often gets its further attempts one after another, each later than the one before: sending
many at once gains nothing. A *name* that was failed from anywhere is only slowed a little and never queued, so that
nobody can lock out another by failing in that person's name.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

from attrs import Factory, define

#: Failures that cost nothing: people mistype.
FREE: Final = 3
FREE_OF_NAME: Final = 10
#: Most seconds between two attempts of one address, and that it may wait for its turn.
CAP: Final = 8.0
#: Most seconds that an attempt waits for the sake of its name.
CAP_OF_NAME: Final = 2.0
#: Seconds after which one failure is forgotten.
FORGET: Final = 60.0
#: Failures that are counted: what is forgotten after FORGET seconds each is soon over.
MOST: Final = 20
#: Addresses, and names, that are remembered at once; the one that failed longest ago is forgotten first.
REMEMBERED: Final = 4096


def group(address: str) -> str:
    """What counts as one address: IPv4 as it is (also when mapped into IPv6), the /64 of IPv6, else the text."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))


@define
class _Failures:
    count: float = 0.0
    at: float = 0.0
    #: When the next attempt may be made.
    turn: float = 0.0

    def now(self, now: float) -> float:
        return max(0.0, self.count - (now - self.at) / FORGET)

    def add(self, now: float) -> None:
        self.count, self.at = min(MOST, self.now(now) + 1), now


def _after(failures: float, free: int, cap: float) -> float:
    return 0.0 if failures < free else min(cap, 2.0 ** (failures - free - 1))


@define
class Throttle:
    """The state. `now` is any clock in seconds that never goes back."""

    _addresses: OrderedDict[str, _Failures] = Factory(OrderedDict)
    _names: OrderedDict[str, _Failures] = Factory(OrderedDict)

    def attempt(self, now: float, address: str, name: str) -> float | None:
        """Seconds to wait before this attempt is checked; its turn is taken. None: too many of this address wait
        already, so it is not to be checked at all. Called before the gate is asked."""
        known = self._addresses.get(group(address), _Failures())
        between = _after(known.now(now), FREE, CAP)
        wait = max(0.0, known.turn - now) if between else 0.0
        if wait > CAP:
            return None
        known.turn = now + wait + between
        named = self._names.get(name)
        return max(wait, _after(named.now(now), FREE_OF_NAME, CAP_OF_NAME) if named else 0.0)

    def failed(self, now: float, address: str, name: str) -> None:
        """The gate has refused an attempt."""
        for table, key, free, cap in (
            (self._addresses, group(address), FREE, CAP),
            (self._names, name, FREE_OF_NAME, CAP_OF_NAME),
        ):
            known = table.setdefault(key, _Failures())
            known.add(now)
            known.turn = max(known.turn, now + _after(known.now(now), free, cap))
            table.move_to_end(key)
            while len(table) > REMEMBERED:
                table.popitem(last=False)
