"""Who may come in, and what guests are called."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from sksd.errors import KernelLimit, KernelLimitOfUser
from sksd.server.avatar import Room
from sksd.wire.who import Rules, account_of, guest_name, guest_of


class RulesTests(SynchronousTestCase):
    """`Rules`."""

    def test_everybody_by_default(self) -> None:
        self.assertIsNone(Rules().problem("ada", []))

    def test_by_name_or_by_group(self) -> None:
        rules = Rules(allow_users=["ada", "lab-*"], allow_groups=["staff", "proj?"])
        for user, groups in (("ada", []), ("lab-7", ["x"]), ("eve", ["x", "staff"]), ("eve", ["proj1"])):
            self.assertIsNone(rules.problem(user, groups), user)
        for user, groups in (("Ada", []), ("eve", ["staffs"]), ("staff", [])):
            self.assertIn("allow_users", rules.problem(user, groups) or "", user)

    def test_groups_alone(self) -> None:
        rules = Rules(allow_groups=["staff"])
        self.assertIsNone(rules.problem("ada", ["staff"]))
        self.assertIsNotNone(rules.problem("ada", []))

    def test_deny_wins(self) -> None:
        @given(st.sets(st.sampled_from(["ada", "*", "b*"])), st.sets(st.sampled_from(["staff", "*"])))
        def wins(users: set[str], groups: set[str]) -> None:
            rules = Rules(allow_users=users, allow_groups=groups, deny_users=["ad?"])
            self.assertIn("deny_users", rules.problem("ada", ["staff"]) or "")

        wins()


class GuestTests(SynchronousTestCase):
    """Names of guests."""

    def test_same_each_time_and_nobody_elses(self) -> None:
        one = guest_name("visitor", "secret", "token")
        self.assertEqual(one, guest_name("visitor", "secret", "token"))
        self.assertEqual((account_of(one), len(guest_of(one))), ("visitor", 16))
        for other in (guest_name("visitor", "secret", "token2"), guest_name("visitor", "secret2", "token")):
            self.assertNotEqual(one, other)
        self.assertEqual((account_of("ada"), guest_of("ada")), ("ada", ""))


class RoomTests(SynchronousTestCase):
    """`Room`: in all, and for each account."""

    def test_limits(self) -> None:
        running = Counter({"ada": 1, "bob": 1})
        room = Room(4, lambda: running)
        with room.taken("ada", 2):
            with self.assertRaises(KernelLimitOfUser) as caught, room.taken("ada", 2):
                pass
            self.assertEqual(caught.exception.fields["limit"], 2)
            with room.taken("bob", None), self.assertRaises(KernelLimit), room.taken("eve", 9):
                pass
        with room.taken("ada", 2):
            pass
