"""A link over a network that is cut: every line arrives, once, in order. Three machines; needs root and iproute2."""

from __future__ import annotations

import sys
import time
from typing import Any

from twisted.trial import unittest

from tests.system.load import Cut, Load, LoadCase, draw_cuts, pause
from tests.system.network import MISSING, Network

PORT = 45100
DAEMON, DESK, OTHER = 1, 2, 3


class CutCase(LoadCase):
    """The daemon on one machine, a relay and a front end on the second; another pair, never cut, on the third."""

    def setUp(self) -> None:
        if MISSING:
            raise unittest.SkipTest(MISSING)
        super().setUp()
        self.network = Network(3)
        self.addCleanup(self.network.close)
        self.host = f"{self.network.address(DAEMON)}:{PORT}"
        self.configure(f"announce = no\nport = {PORT}\n")

    def on(self, host: int, *command: str) -> tuple[str, ...]:
        """On one of the three."""
        return self.network.on(host, *command)

    async def cut(self, cut: Cut) -> None:
        """One of the plan, from its beginning to its end."""
        await pause(cut.after)
        if cut.kind == "link":
            self.network.cut_by_link_down(DESK)
        else:
            if cut.kind == "reset":
                self.network.reset_connections(DESK, PORT)
            self.network.cut_by_drop(DESK)
        await pause(cut.lasts)
        self.network.heal(DESK)

    async def run_cuts(self, count: int, longest: float, lines: int, blobs: int, size: int) -> dict[str, Any]:
        """All of it; answers what the front end and the watching one report, and the seconds it took."""
        cuts = draw_cuts(self.random, count, ("drop", "link", "reset"), 0.1, longest)
        load = Load(lines, blobs, size, sum(cut.after + cut.lasts for cut in cuts), bursts=10 * count + 1)
        await self.start(*self.on(DAEMON, sys.executable, "-m", "sksd", "serve"))
        engine = await self.start_engine(DESK)
        relays = [await self.relay(host, engine) for host in (DESK, OTHER)]
        front = await self.front(DESK, relays[0][1], load)
        other = await self.front(OTHER, relays[1][1], load, watch=True)
        began = time.monotonic()
        self.go(other, front)
        for cut in cuts:
            await self.cut(cut)
        held = [relay for relay, _ in relays]
        report = await self.report(front, load, *held)
        took = time.monotonic() - began
        watching = await self.report(other, load, *held)
        for relay in held:
            self.assertNotIn(b"Traceback", relay.output)
        for each in (report, watching):
            self.assertGreater(each["looks"], 0)
            self.assertEqual(each["missed"], 0, self.about(f"the heartbeat: {each}"))
        self.check_memory()
        await self.stop_engine(DESK, engine)
        return {**report, "seconds": took, "cut": sum(cut.lasts for cut in cuts)}


class Cuts(CutCase):
    """A small number; tests.bench.link_cuts has the large one."""

    async def test_without_cuts(self) -> None:
        await self.run_cuts(0, 0.1, 200, 2, 1000)

    async def test_six_cuts(self) -> None:
        await self.run_cuts(6, 4.0, 2000, 25, 200_000)
