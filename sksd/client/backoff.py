"""When to try again to connect: at once, then after waits that double, each a random part of its whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: Seconds: the second wait at most, and every wait at most.
FIRST: Final = 0.2
MOST: Final = 15.0
#: Seconds that a connection has to hold before the waits begin anew: a host that hangs up at once is not hammered.
HELD: Final = 10.0


class Backoff:
    """The waits of one link. `random` answers a float from 0 up to 1, as random.random does: whoever lost the same
    host at the same moment comes back at another one. `now` arguments are seconds of any one clock."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._ceiling = 0.0
        self._connected: float | None = None

    def connected(self, now: float) -> None:
        """Called when a connection stands, greeting and all."""
        self._connected = now

    def wait(self, now: float) -> float:
        """Seconds until the next attempt. Called when a connection was lost or an attempt has failed."""
        if self._connected is not None and now - self._connected >= HELD:
            self._ceiling = 0.0
        self._connected = None
        wait = self._random() * self._ceiling
        self._ceiling = min(MOST, max(FIRST, 2 * self._ceiling))
        return wait

    def now(self) -> float:
        """0: try now, and begin the waits anew. Called at a sign that the network came back (sksd.client.network)."""
        self._ceiling = FIRST
        return 0.0
