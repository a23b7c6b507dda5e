"""Signs that the network has changed, gathered; the system's own messages are in tests.system.test_network_cuts."""

from __future__ import annotations

from twisted.internet import task
from twisted.trial import unittest

from sksd.client import network


class Gathering(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = task.Clock()
        self.slept = 0.0
        self.told: list[float] = []
        # Of this machine's own network nothing is wanted here.
        self.patch(network._Messages, "listening", lambda *_: None)
        self.watch = network.NetworkWatch(
            self.clock, lambda: self.told.append(self.clock.seconds()), lambda: self.clock.seconds() + self.slept
        )
        self.addCleanup(self.watch.stop)

    def test_one_sign(self) -> None:
        self.watch.heard()
        self.assertEqual(self.told, [])
        self.clock.advance(network.QUIET)
        self.assertEqual(self.told, [network.QUIET])

    def test_a_burst_is_one_change_and_is_told_in_the_end(self) -> None:
        for _ in range(12):
            self.watch.heard()
            self.clock.advance(0.125)
        self.clock.advance(1.0)
        # At 1.375 s was the last sign.
        self.assertEqual(self.told, [network.LONGEST, 1.5 + 1.0])

    def test_sleep(self) -> None:
        self.clock.pump([network.LOOK] * 10)
        self.assertEqual(self.told, [])
        self.slept = 3600.0
        self.clock.pump([network.LOOK, network.QUIET])
        self.assertEqual(len(self.told), 1)
        self.clock.pump([network.LOOK] * 10)
        self.assertEqual(len(self.told), 1)

    def test_stopped(self) -> None:
        self.watch.heard()
        self.watch.stop()
        self.watch.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(60)
        self.assertEqual(self.told, [])

    def test_a_clock_that_counts_sleep(self) -> None:
        before = network.running_time()
        self.assertGreaterEqual(network.running_time(), before)
