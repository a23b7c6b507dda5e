"""For how long an engine has been unused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from sksd.keeper.idle import LONGEST, SHORTEST, Look, Unused, pause, words

REST = Look(attached=False, busy=False, said=5, cpu=1.0)


class UnusedTests(SynchronousTestCase):
    """`Unused`."""

    def test_counts_from_the_first_look(self) -> None:
        unused = Unused()
        self.assertEqual([unused.look(now, REST) for now in (100.0, 160.0, 220.0)], [0.0, 60.0, 120.0])

    def test_used(self) -> None:
        for look in (
            Look(attached=True, busy=False, said=5, cpu=1.0),
            Look(attached=False, busy=True, said=5, cpu=1.0),
            Look(attached=False, busy=False, said=6, cpu=1.0),
            Look(attached=False, busy=False, said=5, cpu=3.0),
        ):
            unused = Unused()
            unused.look(0.0, REST)
            self.assertEqual(unused.look(60.0, look), 0.0, look)

    def test_hardly_any_work_is_rest(self) -> None:
        unused = Unused()
        unused.look(0.0, REST)
        self.assertEqual(unused.look(60.0, Look(attached=False, busy=False, said=5, cpu=1.6)), 60.0)
        # A child of which nobody has heard takes its time along.
        self.assertEqual(unused.look(120.0, REST), 120.0)

    def test_busy_is_never_unused(self) -> None:
        @given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans(), st.floats(0, 1e6)), max_size=20))
        def never(steps: list[tuple[float, bool, float]]) -> None:
            unused, now = Unused(), 0.0
            for seconds, attached, cpu in steps:
                now += seconds
                self.assertEqual(unused.look(now, Look(attached=attached, busy=True, said=0, cpu=cpu)), 0.0)

        never()

    def test_pause(self) -> None:
        self.assertEqual([pause(each) for each in (1.0, 80.0, 1e6)], [SHORTEST, 10.0, LONGEST])

    def test_words(self) -> None:
        for seconds, text in ((7200.0, "2 h"), (5400.0, "90 min"), (90.0, "90 s"), (0.5, "0.5 s")):
            self.assertEqual(words(seconds), text)
