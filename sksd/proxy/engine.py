"""One engine: does what its `Lifecycle` decides, with a real process, sockets, record and log."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from twisted.internet import defer, error, protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sksd.errors import EngineEnded, KernelDied, KernelSilent, SksdError
from sksd.proxy import processes, records
from sksd.proxy.lifecycle import Action, Arm, End, Lifecycle
from sksd.proxy.log import BoundedLogs, open_log, tail
from sksd.proxy.probe import Question
from sksd.wire import messages
from sksd.wire.names import DEAD, RESTARTING, RUNNING, STARTING

log = Logger()


class Attached(Protocol):
    """A link that is attached to an engine."""

    def end(self, error: SksdError | None = None) -> None:
        """Called once when the engine is dead."""


class _Process(protocol.ProcessProtocol):
    def __init__(self, ended: Callable[[End], None]) -> None:
        self._ended = ended

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        self._ended(End(exit_code=value.exitCode, signal=value.signal))


class Engine:
    """One engine of this user.

    `changed` is called with the engine at every new state. `reactor` starts processes and keeps time.
    """

    def __init__(
        self, reactor: Any, record: records.Record, logs: BoundedLogs, changed: Callable[[Engine], None]
    ) -> None:
        self.record = record
        self.links: set[Attached] = set()
        #: The last lines of the log, kept after the log itself is gone.
        self.last_words = ""
        #: What the kernel answered when it was asked for its kernel_info; empty for one that was adopted.
        self.kernel_info: dict[str, Any] = {}
        self._reactor = reactor
        self._logs = logs
        self._changed = changed
        self._life = Lifecycle(record.ready_within)
        self._process: Any = None
        self._watch: processes.Watch | None = None
        self._timer: Any = None
        self._linger: Any = None
        self._question: Question | None = None
        self._farewell: Question | None = None
        self._never_started: OSError | None = None
        self._waiting: list[defer.Deferred[None]] = []
        self._dead: list[defer.Deferred[None]] = []

    # -- what callers ask -----------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """As in `messages.Engine`."""
        return self._life.state

    def describe(self) -> messages.Engine:
        """The engine as it crosses the wire."""
        record, end = self.record, self._life.end
        identity = record.identity
        return messages.Engine(
            id=record.id,
            environment=record.environment,
            prefix=record.prefix,
            python=record.python,
            kernel=record.kernel,
            state=self.state,
            started=record.started,
            pid=identity.pid if identity is not None and self.state != DEAD else None,
            cwd=record.cwd,
            label=record.label,
            links=len(self.links),
            reason=self.how() if self.state == DEAD else None,
            exit_code=end.exit_code if end is not None else None,
            signal=end.signal if end is not None else None,
        )

    def how(self) -> str:
        """How a dead engine ended, in words."""
        end = self._life.end
        if self._life.cause is not None:
            return self._life.cause
        if self._never_started is not None:
            return f"it could not be started: {self._never_started.strerror}"
        if end is None or (end.exit_code is None and end.signal is None):
            return "it ended while no proxy watched it"
        if end.signal is not None:
            return f"killed by {signal.Signals(end.signal).name}"
        return f"exit code {end.exit_code}"

    async def start(self) -> None:
        """Start it; returns when the kernel has answered. Raises KernelDied or KernelSilent, with the log's last
        lines, and leaves nothing behind then."""
        self._perform(self._life.start())
        await self._until_ready()

    def adopt(self) -> None:
        """Go on with a process that an earlier proxy started. Raises OSError where it is not that process."""
        assert self.record.identity is not None
        self._watch = processes.Watch(self._reactor, self.record.identity, self._adopted_ended)
        path = records.log_path(self.record.id)
        if path.exists():
            self._logs.add(path)
        self._perform(self._life.adopt())
        self._rest()

    def interrupt(self) -> None:
        """SIGINT to the kernel and all it has started. Raises EngineEnded."""
        self._must_live()
        self._signal(signal.SIGINT)

    async def restart(self, grace: float) -> None:
        """A new process on the same sockets, key and environment; returns when it is ready."""
        self._must_live()
        self._perform(self._life.restart(grace))
        self._rest()
        await self._until_ready()

    async def stop(self, grace: float) -> None:
        """End it; returns when it has ended. Nothing to do for one that is dead."""
        if self.state == DEAD:
            return
        done: defer.Deferred[None] = defer.Deferred()
        self._dead.append(done)
        self._perform(self._life.stop(grace))
        await done

    def attach(self, link: Attached) -> None:
        """A link begins to carry it. Raises EngineEnded."""
        self._must_live()
        self.links.add(link)
        self._rest()
        self._changed(self)

    def detach(self, link: Attached) -> None:
        """A link no longer carries it."""
        if link in self.links:
            self.links.remove(link)
            if self.state != DEAD:
                self._rest()
                self._changed(self)

    def expects(self) -> bool:
        """Whether it is worth trying its sockets again: it lives, or will."""
        return self.state in (STARTING, RUNNING, RESTARTING)

    def release(self) -> None:
        """Called when the proxy ends: the engine goes on without it."""
        for timer in (self._timer, self._linger):
            if timer is not None and timer.active():
                timer.cancel()
        if self._watch is not None:
            self._watch.stop()

    # -- the edge of the lifecycle ----------------------------------------------------------------------------------

    def _must_live(self) -> None:
        if self.state == DEAD:
            raise EngineEnded(engine=self.record.id, how=self.how())

    def _until_ready(self) -> defer.Deferred[None]:
        ready: defer.Deferred[None] = defer.Deferred()
        if self.state == RUNNING:
            ready.callback(None)
        elif self.state == DEAD:
            ready.errback(self._failure())
        else:
            self._waiting.append(ready)
        return ready

    def _failure(self) -> SksdError:
        if self._never_started is not None:
            return records.cannot_keep(self._never_started, records.log_path(self.record.id))
        if self._life.cause == "silent":
            return KernelSilent(seconds=self.record.ready_within, log=self.last_words)
        if self._life.cause is not None:
            return EngineEnded(engine=self.record.id, how=self.how())
        return KernelDied(how=self.how(), log=self.last_words)

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Arm):
                self._disarm()
                self._timer = self._reactor.callLater(action.seconds, self._late)
            else:
                getattr(self, f"_do_{action.name.lower()}")()

    def _late(self) -> None:
        self._perform(self._life.late())

    def _disarm(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    _do_disarm = _disarm

    def _do_spawn(self) -> None:
        record = self.record
        try:
            output = open_log(records.log_path(record.id))
            try:
                with open(os.devnull, "rb") as nothing:
                    command = processes.session_command(record.arguments)
                    self._process = self._reactor.spawnProcess(
                        _Process(self._ended),
                        command[0],
                        command,
                        env=record.variables,
                        path=record.cwd,
                        childFDs={0: nothing.fileno(), 1: output, 2: output},
                    )
            finally:
                os.close(output)
            record.identity = processes.identify(self._process.pid)
            records.save(record)
            self._logs.add(records.log_path(record.id))
        except (OSError, ValueError) as wrong:
            failed = wrong if isinstance(wrong, OSError) else OSError(errno.EINVAL, str(wrong))
            log.warn("engine {id} cannot be started: {failed}", id=record.id, failed=failed)
            if self._process is not None and self._process.pid:
                self._do_kill()
            else:
                self._reactor.callLater(0, self._ended, End())
            self._never_started = failed
            return
        self._question = Question(
            self._reactor, record.connection, "shell", "kernel_info_request", {}, self._answered
        )

    def _answered(self, content: dict[str, Any]) -> None:
        self.kernel_info = content
        self._question = None
        self._perform(self._life.ready())
        self._rest()

    def _ended(self, end: End) -> None:
        self._process = None
        self._perform(self._life.ended(end))

    def _adopted_ended(self) -> None:
        self._watch = None
        self._ended(End())

    def _signal(self, number: int) -> None:
        identity = self.record.identity
        if identity is not None and processes.identify(identity.pid) == identity:
            processes.signal_group(identity.pid, number)
        elif self._process is not None:
            with contextlib.suppress(error.ProcessExitedAlready):
                self._process.signalProcess(number)

    def _do_ask_shutdown(self) -> None:
        again = self.state == RESTARTING
        self._farewell = Question(
            self._reactor,
            self.record.connection,
            "control",
            "shutdown_request",
            {"restart": again},
            lambda _: None,
        )

    def _do_terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def _do_kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _do_sweep(self) -> None:
        for question in (self._question, self._farewell):
            if question is not None:
                question.close()
        self._question = self._farewell = None
        if self.record.identity is not None:
            processes.sweep(self.record.identity.pid)
            self.record.identity = None

    def _do_ready(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def _do_failed(self) -> None:
        self.last_words = tail(records.log_path(self.record.id))
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.errback(self._failure())

    def _do_clean(self) -> None:
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._logs.remove(records.log_path(self.record.id))
        try:
            records.remove(self.record)
        except OSError as failed:
            log.warn("engine {id} left something behind: {failed}", id=self.record.id, failed=failed)

    def _do_report(self) -> None:
        self._changed(self)
        if self.state == DEAD:
            for link in list(self.links):
                link.end(EngineEnded(engine=self.record.id, how=self.how()))
            self.links.clear()
            waiting, self._dead = self._dead, []
            for each in waiting:
                each.callback(None)

    def _rest(self) -> None:
        """Start or stop the linger timer: nobody is attached, or somebody is."""
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._linger = None
        if self.record.linger is not None and not self.links and self.state == RUNNING:
            self._linger = self._reactor.callLater(self.record.linger, self._unwanted)

    def _unwanted(self) -> None:
        log.info("engine {id} is stopped: nobody is attached any more", id=self.record.id)
        defer.ensureDeferred(self.stop(5.0))


def runtime_folder(engine: str) -> Path:
    """Where the sockets of an engine are."""
    return records.sockets() / engine
