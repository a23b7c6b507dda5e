"""The life of one engine, decided without any I/O.

`Lifecycle` is told what happened and answers with the actions to take; `sksd.keeper.engine.Engine` does them.

    STARTING --ready--> RUNNING --ended--> DEAD
        |  \\-ended/late--> DEAD    |-stop--> STOPPING --ended--> DEAD
        |                          '-restart-> RESTARTING --ended--> STARTING
"""

from __future__ import annotations

import enum
from typing import Final

from attrs import define, frozen

from sksd.wire.names import DEAD, RESTARTING, RUNNING, STARTING, STOPPING

#: Seconds between SIGTERM and SIGKILL.
KILL_AFTER: Final = 3.0
#: Seconds a kernel that hangs while it starts has between SIGTERM and SIGKILL.
_NO_GRACE: Final = 0.5


class Do(enum.Enum):
    """Actions without a parameter."""

    #: Start the process, and ask it for its kernel_info until it answers.
    SPAWN = "spawn"
    #: Send the kernel a shutdown_request on its control channel.
    ASK_SHUTDOWN = "ask-shutdown"
    TERMINATE = "terminate"
    KILL = "kill"
    #: End what the process has left behind in its session.
    SWEEP = "sweep"
    #: Remove sockets, record and log.
    CLEAN = "clean"
    #: Stop the timer.
    DISARM = "disarm"
    #: Tell everybody who listens of the new state.
    REPORT = "report"
    #: Answer those who wait for the engine to be ready.
    READY = "ready"
    #: Answer those who wait for the engine to be ready that it will not be.
    FAILED = "failed"


@frozen
class Arm:
    """Start the one timer anew: call `Lifecycle.late` in `seconds`."""

    seconds: float


Action = Do | Arm


@frozen
class End:
    """How a process ended; both None: it was not ours to wait for, so nobody knows."""

    exit_code: int | None = None
    signal: int | None = None


@define
class Lifecycle:
    """One engine. `ready_within`: seconds a kernel has to answer for the first time."""

    ready_within: float
    state: str = STARTING
    end: End | None = None
    #: Why it is dead, where that is not how the process ended: "stopped", or "silent" for one that never answered.
    cause: str | None = None
    _again: bool = False
    _terminated: bool = False

    def start(self) -> list[Action]:
        """A new engine."""
        return [Do.SPAWN, Arm(self.ready_within)]

    def adopt(self) -> list[Action]:
        """An engine that an earlier proxy left running."""
        self.state = RUNNING
        return [Do.REPORT]

    def ready(self) -> list[Action]:
        """The kernel has answered."""
        if self.state != STARTING:
            return []
        self.state = RUNNING
        return [Do.DISARM, Do.READY, Do.REPORT]

    def stop(self, grace: float) -> list[Action]:
        """Somebody wants it ended; `grace`: seconds to end by itself."""
        if self.state in (DEAD, STOPPING):
            return []
        asked = self.state == RESTARTING
        was_starting = self.state == STARTING
        self.state, self.cause, self._again = STOPPING, "stopped", False
        if asked:
            return [Do.REPORT]
        self._terminated = False
        if was_starting or grace <= 0:
            # A kernel that is not up yet does not read its control channel.
            self._terminated = True
            return [Do.TERMINATE, Arm(KILL_AFTER), Do.REPORT]
        return [Do.ASK_SHUTDOWN, Arm(grace), Do.REPORT]

    def restart(self, grace: float) -> list[Action]:
        """Somebody wants a new process in its place."""
        if self.state != RUNNING:
            return []
        self.state, self._again, self._terminated = RESTARTING, True, False
        return [Do.ASK_SHUTDOWN, Arm(grace), Do.REPORT]

    def late(self) -> list[Action]:
        """The timer has run out."""
        if self.state == STARTING:
            self.state, self.cause, self._terminated = STOPPING, "silent", True
            return [Do.TERMINATE, Arm(_NO_GRACE)]
        if self.state not in (STOPPING, RESTARTING):
            return []
        if not self._terminated:
            self._terminated = True
            return [Do.TERMINATE, Arm(KILL_AFTER)]
        return [Do.KILL]

    def ended(self, end: End) -> list[Action]:
        """The process has ended (or could not be started)."""
        if self.state == DEAD:
            return []
        if self._again:
            self._again, self.state = False, STARTING
            return [Do.DISARM, Do.SWEEP, Do.REPORT, Do.SPAWN, Arm(self.ready_within)]
        self.state, self.end = DEAD, end
        return [Do.DISARM, Do.SWEEP, Do.FAILED, Do.CLEAN, Do.REPORT]
