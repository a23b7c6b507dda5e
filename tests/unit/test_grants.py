"""Grants of the gate: only its own, only while they hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from sksd.gate.grants import LIFETIME, LIFETIME_LINK, Grants


class GrantTests(SynchronousTestCase):
    """`Grants`."""

    def setUp(self) -> None:
        self.grants = Grants()

    def test_round_trip(self) -> None:
        @given(st.text(max_size=40), st.integers(0, 2**32 - 1), st.booleans())
        def round_trip(user: str, uid: int, link: bool) -> None:
            word = self.grants.make(user, uid, link, 100.0)
            found = self.grants.read(word, 100.0)
            assert found is not None
            self.assertEqual((found.user, found.uid, found.link), (user, uid, link))
            self.assertIsNone(Grants().read(word, 100.0))

        round_trip()

    def test_any_altered_letter(self) -> None:
        word = self.grants.make("ada", 1000, False, 0.0)

        @given(st.integers(0, len(word) - 1), st.characters(exclude_categories=["Cs"]))
        def altered(place: int, letter: str) -> None:
            other = word[:place] + letter + word[place + 1 :]
            if other != word:
                self.assertIsNone(self.grants.read(other, 0.0))
                self.assertIsNone(self.grants.read(word[:place], 0.0))

        altered()

    def test_until_when(self) -> None:
        for link, lifetime in ((False, LIFETIME), (True, LIFETIME_LINK)):
            word = self.grants.make("ada", 1000, link, 5.0)
            self.assertIsNotNone(self.grants.read(word, 4.9 + lifetime))
            self.assertIsNone(self.grants.read(word, 5.0 + lifetime))

    def test_each_login_ends_by_itself(self) -> None:
        first, second = (self.grants.make("ada", 1000, False, 0.0) for _ in range(2))
        self.grants.end(first, 1.0)
        self.grants.end("nonsense", 1.0)
        self.assertIsNone(self.grants.read(first, 1.0))
        self.assertIsNotNone(self.grants.read(second, 1.0))

    def test_ended_ones_are_forgotten_once_they_are_too_old(self) -> None:
        for now in range(1000):
            self.grants.end(self.grants.make("ada", 1000, True, float(now)), float(now))
        self.assertLessEqual(len(self.grants._ended), LIFETIME_LINK + 1)
