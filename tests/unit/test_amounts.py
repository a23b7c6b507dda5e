"""Sizes and durations."""

from twisted.trial import unittest

from sksd import amounts


class Amounts(unittest.TestCase):
    """As people read them."""

    def test_sizes(self) -> None:
        given = (0, 999, 1000, 3_149_000, 999_949, 999_951, 2 * 10**9, 5 * 10**15)
        shown = ["0 bytes", "999 bytes", "1.0 kB", "3.1 MB", "999.9 kB", "1.0 MB", "2.0 GB", "5000.0 TB"]
        self.assertEqual([amounts.size(each) for each in given], shown)

    def test_durations(self) -> None:
        given = (0, 59.9, 60, 3599, 7500)
        self.assertEqual([amounts.duration(each) for each in given], ["0 s", "59 s", "1 min", "59 min", "2 h 5 min"])
