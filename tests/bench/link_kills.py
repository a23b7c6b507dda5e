"""100 times SIGKILL to daemon, proxy or both under load, and 20 times to the relay.

`python -m tests.bench.link_kills [KILLS LINES MB RELAY_KILLS]`: about six minutes. Fails where a line is lost,
doubled or out of order, or the engine's state.
"""

from __future__ import annotations

import sys

from tests.bench.link_cuts import SIZE, given, in_trial, table
from tests.system import test_link_kills as kills


class ManyKills(kills.KillCase):
    """In trial."""

    timeout = 7200

    async def test_daemon_and_proxy(self) -> None:
        count, lines, megabytes, _ = given()
        print(f"\nseed {self.seed}, {count} kills of daemon and proxy")
        table(await self.run_kills(count, lines, megabytes * 10**6 // SIZE, SIZE), self.memory, self.cpu)

    async def test_relay(self) -> None:
        _, lines, megabytes, count = given()
        print(f"\nseed {self.seed}, {count} kills of the relay")
        table(await self.run_relay_kills(count, lines, megabytes * 10**6 // SIZE, SIZE), self.memory, self.cpu)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]] or [100, 200_000, 200, 20]
    sys.exit(in_trial("tests.bench.link_kills.ManyKills", *numbers))
