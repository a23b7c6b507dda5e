"""Grants of the gate: only its own, only while they hold."""

from __future__ import annotations

import base64

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
            # A ticket's is good for one link.
            self.assertEqual(self.grants.read(word, 4.9 + lifetime) is None, link)
            self.assertIsNone(self.grants.read(self.grants.make("ada", 1000, link, 5.0), 5.0 + lifetime))

    def test_each_login_ends_by_itself(self) -> None:
        first, second = (self.grants.make("ada", 1000, False, 0.0) for _ in range(2))
        self.assertIsNotNone(self.grants.read(first, 1.0, end=True))
        self.assertIsNone(self.grants.read("nonsense", 1.0, end=True))
        self.assertIsNone(self.grants.read(first, 1.0))
        self.assertIsNotNone(self.grants.read(second, 1.0))

    def test_ended_ones_are_forgotten_once_they_are_too_old(self) -> None:
        for now in range(1000):
            self.grants.read(self.grants.make("ada", 1000, True, float(now)), float(now))
        self.assertLessEqual(len(self.grants._ended), LIFETIME_LINK + 1)

    def test_nonce_is_good_once(self) -> None:
        nonce = self.grants.nonce(0.0)
        self.assertEqual([self.grants.fresh(nonce, 1.0) for _ in range(2)], [True, False])
        # Written in another way it is the same.
        nonce = self.grants.nonce(0.0)
        self.assertEqual([self.grants.fresh(each, 1.0) for each in (f"\n{nonce}", nonce)], [True, False])
        self.assertFalse(self.grants.fresh(self.grants.nonce(0.0), LIFETIME_LINK))
        self.assertFalse(Grants().fresh(self.grants.nonce(0.0), 1.0))
        # A login's grant is none, and a nonce no login.
        grant = self.grants.make("ada", 1000, False, 0.0)
        self.assertFalse(self.grants.fresh(base64.b64encode(grant.encode()).decode(), 1.0))
        self.assertEqual(self.grants.read(base64.b64decode(self.grants.nonce(0.0)).decode(), 1.0).user, "")
