"""Stops engines that nobody uses (sksd.keeper.idle decides which)."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger

from sksd.keeper import idle, processes
from sksd.keeper.engines import Engines
from sksd.wire.names import RUNNING

log = Logger()

#: Seconds that an unused engine has to end by itself.
_GRACE = 5.0


class Looking:
    """Looks at all engines, once it has been told how long they may be unused."""

    def __init__(self, reactor: Any, engines: Engines) -> None:
        self._reactor = reactor
        self._engines = engines
        self._timeout = 0.0
        self._unused: dict[str, idle.Unused] = {}
        self._looking = task.LoopingCall(self._look)
        self._looking.clock = reactor

    def allow(self, timeout: float | None) -> None:
        """From now on `timeout` seconds, None: any time. Called with what each daemon's configuration says."""
        if (timeout or 0.0) == self._timeout:
            return
        self._timeout = timeout or 0.0
        self.stop()
        if self._timeout:
            self._looking.start(idle.pause(self._timeout)).addErrback(
                lambda failure: log.failure("engines are no longer looked at", failure=failure)
            )

    def stop(self) -> None:
        """Called when the process ends."""
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        now, cpu = self._reactor.seconds(), processes.cpu_by_session()
        before, self._unused = self._unused, {}
        for engine in self._engines.all():
            if engine.state != RUNNING:
                continue
            unused = self._unused[engine.record.id] = before.get(engine.record.id) or idle.Unused()
            if unused.look(now, engine.use(cpu)) >= self._timeout:
                allowed = idle.words(self._timeout)
                log.info("engine {id} is stopped after {allowed} without use", id=engine.record.id, allowed=allowed)
                defer.ensureDeferred(engine.stop(_GRACE, f"after {allowed} without use", asked=False))
