"""One engine: does what its `Lifecycle` decides, with a real process, sockets, record and log."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from twisted.internet import defer, error, protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sksd.errors import EngineEnded, KernelDied, KernelSilent, SksdError
from sksd.keeper import processes, records
from sksd.keeper.channels import Channels
from sksd.keeper.idle import Look
from sksd.keeper.journal import Journal
from sksd.keeper.lifecycle import Action, Arm, End, Lifecycle
from sksd.keeper.log import BoundedLogs, open_log, tail, without_banner
from sksd.keeper.memory import Memory
from sksd.keeper.probe import Question
from sksd.link.hello import Hello
from sksd.link.link import Link
from sksd.wire import groups, messages
from sksd.wire.names import DEAD, RESTARTING, RUNNING, STARTING

log = Logger()


#: Seconds between looks whether what a kernel publishes arrives, how many there are, and after how many to ask again.
LOOK: Final = 0.005
LOOKS: Final = 400
LOOKS_A_QUESTION: Final = 10
#: Seconds that a stopped kernel runs to mind an interrupt.
MOMENT: Final = 1.0


class Sizes(NamedTuple):
    """How many bytes are kept of what a kernel publishes: `journal` on disk whoever wants them, up to `buffer` on
    disk for front ends that are cut or slow, the last `memory` in memory, too."""

    journal: int
    buffer: int
    memory: int


class _Process(protocol.ProcessProtocol):
    def __init__(self, ended: Callable[[End], None]) -> None:
        self._ended = ended

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        self._ended(End(exit_code=value.exitCode, signal=value.signal))


class Engine:
    """One engine of this user.

    `changed` is called with the engine at every new state, and `gone` once when a dead one needs its files no longer.
    `reactor` starts processes and keeps time.
    """

    def __init__(
        self,
        reactor: Any,
        record: records.Record,
        logs: BoundedLogs,
        sizes: Sizes,
        changed: Callable[[Engine], None],
        gone: Callable[[Engine], None],
    ) -> None:
        self.record = record
        self.links: set[Link] = set()
        #: Why the kernel is stopped for now, None when it is not.
        self.stalled: str | None = None
        #: What has become of its files: nothing of a dead engine is carried any more.
        self.closed = False
        self._removed = False
        #: The last lines of the log, kept after the log itself is gone.
        self.last_words = ""
        #: What the kernel answered when it was asked for its kernel_info; empty for one that was adopted.
        self.kernel_info: dict[str, Any] = {}
        self._reactor = reactor
        self._logs = logs
        self._sizes = sizes
        self._changed = changed
        self._gone = gone
        self._channels: Channels | None = None
        self._memory: Memory | None = None
        self._by = ""
        self._asked = True
        self._life = Lifecycle(record.ready_within)
        self._process: Any = None
        self._watch: processes.Watch | None = None
        self._timer: Any = None
        self._linger: Any = None
        self._question: Question | None = None
        self._farewell: Question | None = None
        self._look: Any = None
        self._ran = False
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
            links=len(self._attached()),
            reason=self.how() if self.state == DEAD else self.stalled,
            stalled=self.stalled is not None,
            missed=self._channels.missed if self._channels is not None and not self._removed else 0,
            exit_code=end.exit_code if end is not None else None,
            signal=end.signal if end is not None else None,
        )

    def how(self) -> str:
        """How a dead engine ended, in words."""
        end = self._life.end
        if self.record.ended is not None:
            return self.record.ended.how
        if self._life.cause is not None:
            return f"{self._life.cause} {self._by}".strip()
        if self._never_started is not None:
            return f"it could not be started: {self._never_started.strerror}"
        if end is None or (end.exit_code is None and end.signal is None):
            return "it ended while no proxy watched it"
        if end.signal is not None:
            ran_out = end.signal == signal.SIGKILL and self._memory is not None and self._memory.ran_out()
            why = ", because memory ran out" if ran_out else ""
            return f"killed by {signal.Signals(end.signal).name}{why}"
        return f"exit code {end.exit_code}"

    async def start(self) -> None:
        """Start it; returns when the kernel has answered. Raises KernelDied or KernelSilent, with the log's last
        lines, and leaves nothing behind then."""
        self._open()
        self._perform(self._life.start())
        await self._until_ready()

    def adopt(self) -> None:
        """Go on with a process that an earlier proxy started. Raises OSError where it is not that process."""
        assert self.record.identity is not None
        self._watch = processes.Watch(self._reactor, self.record.identity, self._adopted_ended)
        self._memory = Memory(self.record.identity.pid)
        path = records.log_path(self.record.id)
        if path.exists():
            self._logs.add(path)
        self._open()
        # Its last keeper may have stopped it, and cannot let it go on any more.
        self._signal(signal.SIGCONT)
        self._perform(self._life.adopt())
        self._rest()

    @property
    def stopped(self) -> bool:
        """Somebody has ended it, so that nobody wonders why it is dead."""
        return self._life.cause == "stopped" and self._asked

    @property
    def unheard(self) -> bool:
        """It has said what no front end has had."""
        return self._channels is not None and self._channels.unheard

    @property
    def died(self) -> float:
        """When it died, in seconds since 1970."""
        return self.record.ended.at if self.record.ended is not None else time.time()

    def remove(self) -> None:
        """Remove what is kept of a dead one; its links end."""
        if self._channels is not None:
            for link in self._channels.links:
                link.end(self._epitaph())
            self._channels.close()
        self.closed = self._removed = True
        try:
            records.remove(self.record)
        except OSError as failed:
            log.warn("engine {id} left something behind: {failed}", id=self.record.id, failed=failed)

    def bury(self) -> None:
        """Go on with one that has ended, for those who have missed its last words."""
        end = self.record.ended or records.Ended("it ended while no keeper watched it", time.time())
        self.record.ended = end
        self._life.ended(End(exit_code=end.exit_code, signal=end.signal))
        self.last_words = tail(records.log_path(self.record.id))
        self.closed = True
        try:
            self._channels = self._make_channels()
        except SksdError as failed:
            log.warn("what engine {id} said cannot be read: {failed}", id=self.record.id, failed=failed)
            return
        self._channels.part(self._epitaph())
        self._channels.close()

    def interrupt(self) -> None:
        """SIGINT to the kernel and all it has started. Raises EngineEnded."""
        self.must_live()
        self._signal(signal.SIGINT)
        if self.stalled is not None:
            # What is stopped minds no signal but this one.
            self._signal(signal.SIGCONT)
            self._reactor.callLater(MOMENT, self._stop_again)

    async def restart(self, grace: float) -> None:
        """A new process on the same sockets, key and environment; returns when it is ready."""
        self.must_live()
        self._perform(self._life.restart(grace))
        self._let_go()
        self._rest()
        await self._until_ready()

    async def stop(self, grace: float, by: str = "", asked: bool = True) -> None:
        """End it; returns when it has ended. Nothing to do for one that is dead. `by`: who wants that, as
        "from 10.0.0.7"; not `asked`: nobody does, and it is kept for those who wonder."""
        if self.state == DEAD:
            return
        self._by, self._asked = by, asked
        done: defer.Deferred[None] = defer.Deferred()
        self._dead.append(done)
        self._perform(self._life.stop(grace))
        self._let_go()
        await done

    def attach(self, link: Link, hello: Hello) -> None:
        """A link begins to carry it. Raises EngineEnded."""
        self.must_speak(hello.watch)
        assert self._channels is not None
        self._channels.attach(link, hello.replay, hello.watch)
        if not hello.watch:
            self.links.add(link)
        link.when_ended().addCallback(lambda _: self._detached(link))
        link.on_cut = lambda _: self._attachment()
        link.on_resumed = self._attachment
        self._attachment()

    def use(self, cpu: Mapping[int, float]) -> Look:
        """What use is made of it now; `cpu`: processor time by session. For one that runs."""
        assert self._channels is not None and self.record.identity is not None
        channels = self._channels
        spent = cpu.get(self.record.identity.pid, 0.0)
        return Look(bool(self._attached()), channels.busy, channels.journal.end, spent)

    def _attached(self) -> list[Link]:
        """The links that have a connection now."""
        return [link for link in self.links if not link.core.is_cut]

    def _attachment(self) -> None:
        """Somebody is attached, or no longer."""
        if self.state != DEAD:
            self._rest()
            self._changed(self)

    def _detached(self, link: Link) -> None:
        self.links.discard(link)
        if self.state == DEAD:
            self._close()
        self._attachment()

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
        if self._channels is not None:
            self._channels.close()

    # -- the edge of the lifecycle ----------------------------------------------------------------------------------

    def must_live(self) -> None:
        """Raises EngineEnded, with its last words."""
        if self.state == DEAD:
            raise self._epitaph()

    def must_speak(self, watches: bool) -> None:
        """Raises EngineEnded when there is nothing for a link: of a dead one, who watches gets what is kept."""
        if not watches or self._removed or self._channels is None:
            self.must_live()

    def _epitaph(self) -> EngineEnded:
        # Nobody wonders about one that somebody has stopped.
        words = "" if self.stopped else without_banner(self.last_words)
        return EngineEnded(engine=self.record.id, how=self.how(), log=words)

    def _open(self) -> None:
        """Make the channels, and listen. Raises CannotWrite and its like."""
        self._channels = self._make_channels()
        self._channels.listen()

    def _make_channels(self) -> Channels:
        record, journal = self.record, records.journal_path(self.record.id)
        return Channels(
            self._reactor,
            record.connection,
            records.seen_path(record.id),
            records.folder(),
            Journal(journal, size=self._sizes.journal, memory=self._sizes.memory),
            self._sizes.buffer,
            self.expects,
            lambda: self.state == RUNNING,
            self._stalled,
        )

    def journal(self) -> Journal | None:
        """What it has published, while its channels are open."""
        return self._channels.journal if self._channels is not None else None

    def _stalled(self, reason: str | None) -> None:
        self.stalled = reason
        if reason is not None:
            log.warn("engine {id} is stopped: {reason}", id=self.record.id, reason=reason)
        self._signal(signal.SIGSTOP if reason is not None else signal.SIGCONT)
        self._changed(self)

    def _stop_again(self) -> None:
        if self.stalled is not None:
            self._signal(signal.SIGSTOP)

    def _let_go(self) -> None:
        """What is stopped can neither end nor start."""
        if self._channels is not None and self.state != RUNNING:
            self._channels.let_go()

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
            return self._epitaph()
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
                    command = groups.session_command(record.arguments)
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
            self._memory = Memory(self._process.pid)
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
        self._ask()

    def _ask(self) -> None:
        if self._question is not None:
            self._question.close()
        self._question = Question(
            self._reactor, self.record.connection, "shell", "kernel_info_request", {}, self._answered
        )

    def _answered(self, content: dict[str, Any]) -> None:
        self.kernel_info = content
        self._question = None
        if self._look is None or not self._look.active():
            self._ready_soon(LOOKS)

    def _ready_soon(self, looks: int) -> None:
        """The kernel answers; it is ready once what it publishes arrives here, too."""
        channels = self._channels
        if channels is not None and self.state == STARTING and looks and not channels.hears:
            self._look = self._reactor.callLater(LOOK, self._ready_soon, looks - 1)
            if looks % LOOKS_A_QUESTION == 0:
                # Its status "busy" may have left before it knew of the subscription.
                self._ask()
            return
        if channels is not None and self.state == STARTING and not self._ran:
            self._ran = True
            channels.skip()
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
            groups.signal_group(identity.pid, number)
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
        end = self._life.end or End()
        self.record.ended = records.Ended(self.how(), time.time(), self.stopped, end.exit_code, end.signal)
        self.stalled = None
        if self._removed:
            return
        try:
            records.save(self.record)
            records.remove_folder(Path(self.record.runtime))
        except OSError as failed:
            log.warn("engine {id} left something behind: {failed}", id=self.record.id, failed=failed)

    def _do_report(self) -> None:
        self._changed(self)
        if self.state == DEAD:
            waiting, self._dead = self._dead, []
            for each in waiting:
                each.callback(None)
            defer.ensureDeferred(self._take_leave())

    async def _take_leave(self) -> None:
        """Every front end gets all that the kernel had said, then why it has ended."""
        if self._channels is not None:
            await self._channels.last()
            self._channels.part(self._epitaph())
        self._close()

    def _close(self) -> None:
        """Once nobody is to be told anything any more the files are closed, and no longer needed for links."""
        if self.closed or (self._channels is not None and self._channels.links):
            return
        self.closed = True
        if self._channels is not None:
            self._channels.close()
        self._gone(self)

    def _rest(self) -> None:
        """Start or stop the linger timer: nobody is attached, or somebody is."""
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._linger = None
        if self.record.linger is not None and not self._attached() and self.state == RUNNING:
            self._linger = self._reactor.callLater(self.record.linger, self._unwanted)

    def _unwanted(self) -> None:
        log.info("engine {id} is stopped: nobody is attached any more", id=self.record.id)
        defer.ensureDeferred(self.stop(5.0, "because nobody was attached any more"))


def runtime_folder(engine: str) -> Path:
    """Where the sockets of an engine are."""
    return records.sockets() / engine
