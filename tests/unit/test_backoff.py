"""When a cut link is tried again."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from sksd.client.backoff import FIRST, HELD, MOST, Backoff


class Waits(unittest.SynchronousTestCase):
    def test_doubling_to_the_most(self) -> None:
        backoff = Backoff(lambda: 1.0)
        waits = [backoff.wait(0.0) for _ in range(2000)]
        self.assertEqual(waits[:9], [0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0])
        self.assertEqual(set(waits[9:]), {MOST})

    def test_a_connection_that_held(self) -> None:
        backoff = Backoff(lambda: 1.0)
        for held, expected in ((HELD, 0.0), (HELD - 0.1, FIRST), (0.0, 2 * FIRST), (HELD + 1, 0.0)):
            backoff.connected(100.0)
            self.assertEqual(backoff.wait(100.0 + held), expected)

    def test_attempts_do_not_count_as_a_connection(self) -> None:
        backoff = Backoff(lambda: 1.0)
        backoff.connected(0.0)
        self.assertEqual([backoff.wait(now) for now in (20.0, 40.0, 60.0)], [0.0, FIRST, 2 * FIRST])

    def test_the_network_came_back(self) -> None:
        backoff = Backoff(lambda: 1.0)
        for _ in range(20):
            backoff.wait(0.0)
        self.assertEqual(backoff.now(), 0.0)
        self.assertEqual([backoff.wait(0.0) for _ in range(3)], [FIRST, 2 * FIRST, 4 * FIRST])

    @given(st.randoms(), st.lists(st.tuples(st.sampled_from(["lost", "connected", "now"]), st.floats(0, 100))))
    def test_always_within_its_limits(self, source: random.Random, steps: list[tuple[str, float]]) -> None:
        """Whatever happens: never negative, never over MOST; between two resets the ceilings never sink, and a wait
        of 0 for sure comes only first or after a connection that held."""
        backoff, now, tops = Backoff(source.random), 0.0, Backoff(lambda: 1.0)
        since: float | None = None
        before = 0.0
        for step, passed in steps:
            now += passed
            if step == "connected":
                since = now
                backoff.connected(now)
                tops.connected(now)
            elif step == "now":
                self.assertEqual((backoff.now(), tops.now()), (0.0, 0.0))
                before = 0.0
            else:
                wait, top = backoff.wait(now), tops.wait(now)
                self.assertTrue(0.0 <= wait <= top <= MOST, (wait, top))
                if since is not None and now - since >= HELD:
                    self.assertEqual(top, 0.0)
                else:
                    self.assertGreaterEqual(top, before)
                before, since = top, None
