"""Failed logins slow down, and nobody is locked out."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from sksd.server.throttle import CAP, CAP_OF_NAME, FORGET, FREE, MOST, REMEMBERED, Throttle, group

ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", ""])
EVENTS = st.lists(
    st.tuples(st.sampled_from(["attempt", "failed"]), st.floats(0, 20), ADDRESSES, st.sampled_from(["ada", "bob"])),
    max_size=60,
)


class Groups(unittest.TestCase):
    """What is one address."""

    def test_groups(self) -> None:
        self.assertEqual(group("192.0.2.1"), group("::ffff:192.0.2.1"))
        self.assertNotEqual(group("192.0.2.1"), group("192.0.2.2"))
        self.assertEqual(group("2001:db8::1"), group("2001:db8::ffff:1"))
        self.assertNotEqual(group("2001:db8::1"), group("2001:db8:0:1::1"))
        self.assertEqual(group("fe80::1%eth0"), group("fe80::2"))
        self.assertEqual(group(""), "")


class Throttled(unittest.TestCase):
    """Delays."""

    def setUp(self) -> None:
        self.throttle = Throttle()

    def guesses(self, address: str, name: str, seconds: float) -> int:
        """How many guesses a hurried stranger gets checked in `seconds`, many at once."""
        turns: list[float] = []
        checked, now = 0, 0.0
        while now < seconds:
            while len(turns) < 64 and (wait := self.throttle.attempt(now, address, name)) is not None:
                turns.append(now + wait)
            now = min([*turns, now + 1.0]) if turns else now + 1.0
            for turn in [each for each in turns if each <= now]:
                turns.remove(turn)
                checked += 1
                self.throttle.failed(now, address, name)
        return checked

    def test_typing_mistakes_cost_nothing(self) -> None:
        for _ in range(FREE - 1):
            self.assertEqual(self.throttle.attempt(0, "192.0.2.1", "ada"), 0)
            self.throttle.failed(0, "192.0.2.1", "ada")
        self.assertEqual(self.throttle.attempt(0, "192.0.2.1", "ada"), 0)

    def test_an_address_that_guesses_gets_one_turn_in_eight_seconds(self) -> None:
        first = self.guesses("192.0.2.1", "ada", 60)
        self.throttle = Throttle()
        self.assertLess(self.guesses("192.0.2.1", "ada", 3600), first + 3600 / CAP + 5)

    def test_sending_many_at_once_gains_nothing(self) -> None:
        for _ in range(10):
            self.throttle.failed(0, "192.0.2.1", "ada")
        waits = [self.throttle.attempt(0, "192.0.2.1", "ada") for _ in range(20)]
        self.assertEqual(len([wait for wait in waits if wait is not None and wait <= CAP]), 1 + (waits[0] == 0))

    def test_elsewhere_is_hardly_slowed(self) -> None:
        for _ in range(1000):
            self.throttle.failed(0, "192.0.2.1", "ada")
            self.throttle.failed(0, "192.0.2.2", "ada")
        waits = [self.throttle.attempt(0, "198.51.100.1", "ada") for _ in range(20)]
        self.assertEqual(set(waits), {CAP_OF_NAME})
        self.assertEqual(self.throttle.attempt(0, "198.51.100.1", "bob"), 0)

    def test_failures_are_forgotten(self) -> None:
        for _ in range(1000):
            self.throttle.failed(0, "192.0.2.1", "ada")
        self.assertEqual(self.throttle.attempt(FORGET * MOST, "192.0.2.1", "ada"), 0)

    def test_memory_is_bounded(self) -> None:
        for number in range(REMEMBERED * 2):
            self.throttle.failed(number, f"address {number}", f"name {number}")
        self.assertEqual((len(self.throttle._addresses), len(self.throttle._names)), (REMEMBERED, REMEMBERED))

    @given(EVENTS)
    def test_no_wait_is_longer_than_the_cap(self, events: list[tuple[str, float, str, str]]) -> None:
        throttle, now = Throttle(), 0.0
        for kind, later, address, name in events:
            now += later
            if kind == "failed":
                throttle.failed(now, address, name)
            else:
                wait = throttle.attempt(now, address, name)
                self.assertTrue(wait is None or 0 <= wait <= CAP, wait)

    @given(EVENTS)
    def test_whoever_waits_for_the_cap_twice_has_a_turn(self, events: list[tuple[str, float, str, str]]) -> None:
        throttle, now = Throttle(), 0.0
        for kind, later, address, name in events:
            now += later
            getattr(throttle, kind)(now, address, name)
        self.assertIsNotNone(throttle.attempt(now + 2 * CAP, "192.0.2.1", "ada"))
