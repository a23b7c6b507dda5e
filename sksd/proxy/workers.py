"""The processes that change environments: started, fed, listened to, cancelled (docs/environments.md).

One worker a change, in a session of its own: a proxy that is killed does not kill it half way. What it is to do and
what it says is `sksd.conda.messages`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from twisted.internet import defer, error, protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sksd.conda import messages as conda
from sksd.errors import BadRequest, Cancelled, NoSuchTask, NotAllowed, SksdError, WorkerFailed, from_code
from sksd.proxy.turns import MOST_WAITING, Turns
from sksd.wire import changes, groups, messages

log = Logger()

#: Seconds a cancelled worker has to undo what it did, before SIGKILL.
UNDO_LIMIT: Final = 20.0
#: Bytes of one event; a list of packages has a few hundred kB.
_LARGEST_EVENT: Final = 64 * 1024 * 1024
#: Bytes of stderr that are kept for the log.
_COMPLAINT: Final = 4096


class Told(Protocol):
    """Who is told what happens while a call is under way."""

    def progress(self, event: messages.Progress) -> None:
        """A step."""

    def plan(self, event: changes.Plan) -> None:
        """What a worker is going to do."""


class Silence:
    """Nobody listens."""

    def progress(self, event: messages.Progress) -> None:
        """A step."""

    def plan(self, event: changes.Plan) -> None:
        """A plan."""


class _Worker(protocol.ProcessProtocol):
    """One worker; `ended` fires with its last event, or fails with its error."""

    transport: Any

    def __init__(self, reactor: Any, job: conda.Job, told: Told) -> None:
        self.ended: defer.Deferred[conda.Done] = defer.Deferred()
        self._reactor = reactor
        self._job = job
        self._told = told
        self._said = b""
        self._complaint = b""
        self._last: conda.Done | conda.Failed | None = None
        self._killing: Any = None
        #: Only from its first event on does it surely take a signal: before its exec one would be lost.
        self._speaks = False

    def connectionMade(self) -> None:
        """Feed it."""
        self.transport.write(msgspec.json.encode(self._job))
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Events, and what libraries say."""
        if childFD == 2:
            self._complaint = (self._complaint + data)[-_COMPLAINT:]
            return
        *lines, self._said = (self._said + data).split(b"\n")
        if len(self._said) > _LARGEST_EVENT:
            self.kill()
        for line in lines:
            try:
                event = conda.read_event(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as wrong:
                log.warn("a worker said what is no event: {wrong}", wrong=wrong)
                continue
            if not self._speaks:
                self._speaks = True
                if self._killing is not None:
                    self._terminate()
            if isinstance(event, conda.Progress):
                self._told.progress(msgspec.convert(event, messages.Progress, from_attributes=True))
            elif isinstance(event, conda.Plan):
                self._told.plan(msgspec.convert(event, changes.Plan, from_attributes=True))
            else:
                self._last = event

    def cancel(self) -> None:
        """SIGTERM; it undoes what it did, or is killed in the end."""
        if self._killing is None and self.transport.pid:
            self._killing = self._reactor.callLater(UNDO_LIMIT, self.kill)
            if self._speaks:
                self._terminate()

    def _terminate(self) -> None:
        # Not the group: pip and others that it started are the worker's own business.
        with contextlib.suppress(error.ProcessExitedAlready):
            self.transport.signalProcess(signal.SIGTERM)

    def kill(self) -> None:
        """The worker, and what it started."""
        if self.transport.pid:
            groups.signal_group(self.transport.pid, signal.SIGKILL)

    def processEnded(self, reason: Failure) -> None:
        """Fires `ended`."""
        if self._killing is not None and self._killing.active():
            self._killing.cancel()
        if self._complaint:
            log.info("a worker said: {words}", words=self._complaint.decode(errors="replace"))
        match self._last:
            case conda.Done():
                self.ended.callback(self._last)
            case conda.Failed():
                self.ended.errback(from_code(self._last.code, self._last.message, self._last.fields))
            case None:
                value: Any = reason.value
                how = (
                    f"was killed by signal {value.signal}"
                    if value.signal
                    else f"ended with code {value.exitCode}"
                )
                self.ended.errback(WorkerFailed(problem=how))


class Workers:
    """Runs jobs, each in a process. `idle` is called whenever the last one has ended."""

    def __init__(
        self,
        reactor: Any,
        idle: Callable[[], None],
        environ: Mapping[str, str],
        command: Sequence[str] = (sys.executable, "-P", "-m", "sksd.conda"),
    ) -> None:
        self._reactor = reactor
        self._idle = idle
        self._environ = dict(environ)
        self._command = list(command)
        self._turns = Turns()
        self._jobs = 0
        self._running: dict[int, _Worker] = {}
        self._turn_of: dict[int, defer.Deferred[None]] = {}
        #: Tasks by name: their jobs, None before one has begun.
        self._tasks: dict[str, int | None] = {}
        self._cancelled: set[str] = set()

    def busy(self) -> int:
        """How many jobs are under way or wait."""
        return len(self._running) + len(self._turn_of)

    @contextlib.contextmanager
    def named(self, task: str) -> Iterator[None]:
        """For as long as a call lasts that may lead to a job, `cancel` knows it as `task` (empty: it does not).
        Raises BadRequest for one that is under way already."""
        if task in self._tasks:
            raise BadRequest(problem=f"there is a task {task} already")
        if task:
            self._tasks[task] = None
        try:
            yield
        finally:
            self._tasks.pop(task, None)
            self._cancelled.discard(task)

    async def run(self, job: conda.Job, told: Told, task: str = "") -> conda.Done:
        """Do `job` when its turn has come. `task`: a name that `named` knows.

        Raises the worker's error, Cancelled, WorkerFailed when it was killed. Whoever waits may go away: the change
        goes on.
        """
        if task in self._cancelled:
            raise _not_begun(job)
        if self._turns.full():
            raise NotAllowed(problem=f"{MOST_WAITING} changes of environments wait already")
        self._jobs += 1
        number = self._jobs
        if task:
            self._tasks[task] = number
        try:
            await self._turn(number, job, told)
            return await self._work(number, job, told)
        finally:
            if task:
                self._tasks[task] = None
            self._running.pop(number, None)
            for begun in self._turns.over(number):
                self._turn_of.pop(begun).callback(None)  # type: ignore[call-overload]
            if not self.busy():
                self._idle()

    async def _turn(self, number: int, job: conda.Job, told: Told) -> None:
        places = frozenset(
            os.path.realpath(place) if os.path.isabs(place) else place
            for place in (job.prefix or job.name, job.source)
            if place
        )
        if self._turns.ask(number, places):
            return
        turn: defer.Deferred[None] = defer.Deferred()
        self._turn_of[number] = turn
        what = "another change of it" if self._turns.in_the_way(number) else "other changes"
        told.progress(messages.Progress(step="waiting", message=f"waiting for {what} to end"))
        try:
            await turn
        except defer.CancelledError:
            raise _not_begun(job) from None
        finally:
            self._turn_of.pop(number, None)

    async def _work(self, number: int, job: conda.Job, told: Told) -> conda.Done:
        worker = _Worker(self._reactor, job, told)
        command = groups.session_command(self._command)
        try:
            self._reactor.spawnProcess(
                worker, command[0], command, env=self._environ, path="/", childFDs={0: "w", 1: "r", 2: "r"}
            )
        except OSError as failed:
            raise WorkerFailed(problem=f"cannot be started ({failed.strerror})") from None
        self._running[number] = worker
        return await worker.ended

    def cancel(self, task: str) -> None:
        """Undo and end `task`. Raises NoSuchTask."""
        if task not in self._tasks:
            raise NoSuchTask(task=task)
        number = self._tasks[task]
        if number is None:
            self._cancelled.add(task)
        elif number in self._turn_of:
            self._turn_of[number].cancel()
        elif number in self._running:
            self._running[number].cancel()


def _not_begun(job: conda.Job) -> Cancelled:
    return Cancelled(name=job.name or job.prefix, undone="It had not begun.")


async def repaired(workers: Workers, job: conda.Job) -> None:
    """Run a repair; what cannot be mended now is for the log and the next time."""
    try:
        done = await workers.run(job, Silence())
    except SksdError as problem:
        log.warn("a repair failed: {problem}", problem=str(problem))
        return
    for note in done.notes:
        log.info("repair: {note}", note=note)
