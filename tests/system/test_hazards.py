"""Whatever strangers send, the daemon goes on serving: bounded memory, a short log, no traceback."""

from __future__ import annotations

import shutil
from typing import Any

from twisted.internet import defer

from tests import attacks
from tests.system.daemon import DaemonCase
from tests.system.watch import attack, memory, warm

#: MiB that the daemon may grow by, and lines of log for a connection.
GROWTH, LINES = 32, 10
#: Milliseconds of the longest call. `tests.bench.hazards` measures it on a quiet machine, where the goal is 100.
STALL = 3000
#: Each group meets a daemon of its own.
GROUPS = {
    "broker": ("open_list", "small_strings", "nested_lists", "nested_arguments"),
    "tls": ("large_hello", "tiny_records", "thousand"),
    "connections": ("unfinished", "silent", "slow"),
    "links": ("link_garbage",),
    "guesses": ("guesses",),
    "padding": ("padded",),
}


class Hazards(DaemonCase):
    """Each measured on a stock server before: facts, not guesses."""

    async def attacked(self, *names: str) -> None:
        """All goals are met, and the daemon can be used afterwards."""
        daemon = await self.start()
        here = await self.log_in()
        await warm(here)
        for name in names:
            seen: Any = await attack(name, self.note(), here, lambda: daemon.output.count(b"\n"))
            self.assertLess(seen.growth, GROWTH, f"{name}: {seen}")
            self.assertLess(seen.stall, STALL, f"{name}: {seen}")
            self.assertLess(seen.lines, LINES, f"{name}: {seen}")
        await here.close()
        # One more gets in, also right after.
        here = await self.log_in()
        await here.host()
        await here.close()
        await self.stop(daemon)
        self.assertNotIn(b"Traceback", daemon.output)

    async def test_broker(self) -> None:
        await self.attacked(*GROUPS["broker"])

    async def test_tls(self) -> None:
        await self.attacked(*GROUPS["tls"])

    async def test_connections(self) -> None:
        await self.attacked(*GROUPS["connections"])

    async def test_links(self) -> None:
        await self.attacked(*GROUPS["links"])

    async def test_guesses(self) -> None:
        await self.attacked(*GROUPS["guesses"])

    async def test_padding(self) -> None:
        if not shutil.which("openssl"):
            self.skipTest("there is no openssl here")
        await self.attacked(*GROUPS["padding"])

    async def test_somebody_who_calls_and_does_not_read(self) -> None:
        daemon = await self.start()
        here = await self.log_in()
        other = await self.log_in()
        before = memory(self.note().pid)
        transport = here._broker.transport
        transport.pauseProducing()
        asked = [defer.ensureDeferred(here.host()) for _ in range(6000)]
        for _ in range(20):
            await other.ping()
        self.assertLess(memory(self.note().pid) - before, GROWTH)
        transport.resumeProducing()
        for answer in asked:
            await answer
        for each in (here, other):
            await each.close()
        await self.stop(daemon)
        self.assertNotIn(b"dropping", daemon.output)

    def test_every_attack_has_a_test(self) -> None:
        self.assertEqual(sorted(name for group in GROUPS.values() for name in group), sorted(attacks.ATTACKS))
