"""The life of an engine, whatever happens in whatever order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial import unittest

from sksd.keeper.lifecycle import KILL_AFTER, Action, Arm, Do, End, Lifecycle
from sksd.wire.names import DEAD, RESTARTING, RUNNING, STARTING, STOPPING


class World(RuleBasedStateMachine):
    """A process and a timer that do what the lifecycle says, and events that come at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Lifecycle(30.0)
        self.process = self.timer = self.cleaned = False
        self.killed = 0
        self.waiting = 1
        self.do(self.life.start())

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Arm):
                self.timer = True
            elif action is Do.SPAWN:
                assert not self.process, "a second process beside the first"
                self.process = True
            elif action is Do.DISARM:
                self.timer = False
            elif action in (Do.READY, Do.FAILED):
                self.waiting = 0
            elif action is Do.CLEAN:
                assert not self.process
                self.cleaned = True
            elif action is Do.KILL:
                self.killed += 1

    @rule()
    @precondition(lambda self: self.process)
    def ready(self) -> None:
        self.do(self.life.ready())

    @rule(end=st.builds(End, st.none() | st.integers(0, 255), st.none() | st.integers(1, 15)))
    @precondition(lambda self: self.process)
    def ended(self, end: End) -> None:
        self.process = False
        self.do(self.life.ended(end))

    @rule()
    @precondition(lambda self: self.timer)
    def late(self) -> None:
        self.timer = False
        self.do(self.life.late())

    @rule(grace=st.floats(0, 10))
    def stop(self, grace: float) -> None:
        self.do(self.life.stop(grace))

    @rule(grace=st.floats(0, 10))
    def restart(self, grace: float) -> None:
        if self.life.state == RUNNING:
            self.waiting += 1
        self.do(self.life.restart(grace))

    @invariant()
    def alive_means_a_process(self) -> None:
        assert self.process == (self.life.state != DEAD)

    @invariant()
    def dead_means_clean(self) -> None:
        assert self.cleaned == (self.life.state == DEAD)

    @invariant()
    def whoever_must_end_is_watched(self) -> None:
        assert self.timer or self.killed or self.life.state in (RUNNING, DEAD)

    @invariant()
    def the_dead_keep_nobody_waiting(self) -> None:
        assert not (self.life.state == DEAD and self.waiting)


class Anything(unittest.TestCase):
    """Run by hypothesis."""

    def test_any_order(self) -> None:
        run_state_machine_as_test(World, settings=settings(max_examples=300, deadline=None))


class Courses(unittest.TestCase):
    """The usual courses."""

    def running(self) -> Lifecycle:
        life = Lifecycle(30.0)
        self.assertEqual(life.start(), [Do.SPAWN, Arm(30.0)])
        self.assertEqual(life.ready(), [Do.DISARM, Do.READY, Do.REPORT])
        return life

    def test_kernel_that_ends_by_itself(self) -> None:
        life = self.running()
        actions = life.ended(End(exit_code=3))
        self.assertEqual((life.state, life.cause, life.end), (DEAD, None, End(exit_code=3)))
        self.assertIn(Do.REPORT, actions)

    def test_stop_asks_then_terminates_then_kills(self) -> None:
        life = self.running()
        self.assertEqual(life.stop(5.0), [Do.ASK_SHUTDOWN, Arm(5.0), Do.REPORT])
        self.assertEqual(life.late(), [Do.TERMINATE, Arm(KILL_AFTER)])
        self.assertEqual(life.late(), [Do.KILL])
        life.ended(End(signal=9))
        self.assertEqual((life.state, life.cause), (DEAD, "stopped"))

    def test_restart_uses_a_new_process_only_after_the_old_one(self) -> None:
        life = self.running()
        self.assertNotIn(Do.SPAWN, life.restart(5.0))
        self.assertEqual(life.state, RESTARTING)
        self.assertIn(Do.SPAWN, life.ended(End(exit_code=0)))
        self.assertEqual(life.state, STARTING)
        life.ready()
        self.assertEqual(life.state, RUNNING)

    def test_stop_during_restart_stops(self) -> None:
        life = self.running()
        life.restart(5.0)
        life.stop(5.0)
        self.assertEqual(life.state, STOPPING)
        self.assertNotIn(Do.SPAWN, life.ended(End(exit_code=0)))
        self.assertEqual(life.state, DEAD)

    def test_kernel_that_never_answers(self) -> None:
        life = Lifecycle(30.0)
        life.start()
        self.assertIn(Do.TERMINATE, life.late())
        self.assertIn(Do.FAILED, life.ended(End(signal=15)))
        self.assertEqual(life.cause, "silent")
