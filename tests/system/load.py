"""An engine under load with a front end at the other end of a link, for tests that cut and kill."""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import psutil
from twisted.internet import defer, reactor, task

from sksd import paths
from tests.system.daemon import LIMIT, DaemonCase, Process, until

FRONT = str(Path(__file__).with_name("front.py"))
#: Seconds that everything may be late after the load is over.
CATCH_UP = 60.0
#: Bytes of memory (RSS) that one process of sksd's may have, about 45 MiB of which are Python and its modules.
MEMORY = 200 * 2**20
PARTS = ("relay", "serve", "sksd.proxy", "sksd.keeper")


@attrs.frozen
class Load:
    """What the engine says within `seconds`: numbered lines, and buffers of `size` random bytes, in `bursts`."""

    lines: int
    blobs: int
    size: int
    seconds: float
    bursts: int = 40


class Cut(NamedTuple):
    """`after` seconds without a cut comes one that `lasts`; `kind` is a key of the test's cuts."""

    after: float
    kind: str
    lasts: float


def draw_cuts(source: random.Random, count: int, kinds: Sequence[str], shortest: float, longest: float) -> list[Cut]:
    """Cuts of all kinds, each as often; there are as many of 0.1 to 1 s as of 1 to 10 s."""
    cuts = []
    for number in range(count):
        lasts = shortest * (longest / shortest) ** source.random()
        cuts.append(Cut(source.uniform(0.2, 2.0), kinds[number % len(kinds)], lasts))
    source.shuffle(cuts)
    return cuts


class LoadCase(DaemonCase):
    """A daemon at `host`, an engine, relays and front ends; `seed` makes a failure happen again."""

    timeout = 300
    #: Where the daemon listens, as the command line takes it.
    host = ""

    def setUp(self) -> None:
        super().setUp()
        self.seed = random.SystemRandom().randrange(10**6)
        self.random = random.Random(self.seed)
        #: The most bytes that one process of a part has had, and the CPU seconds of each process.
        self.memory: dict[str, int] = {}
        self.cpu: dict[tuple[str, int], float] = {}
        self.stopped = False
        self.addCleanup(self._end_all)
        measuring = task.LoopingCall(self._measure)
        measuring.start(0.5, now=False)
        self.addCleanup(measuring.stop)

    def on(self, host: int, *command: str) -> tuple[str, ...]:
        """`command` as it is run on a machine; there may be but one."""
        return command

    def theirs(self, host: int) -> dict[str, str]:
        """The variables of a person on a machine, with folders of their own."""
        environ = {"SKSD_PASSWORD": paths.token().read_text().strip()}
        for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
            folder = self.top / f"desk{host}" / name
            folder.mkdir(0o700, parents=True, exist_ok=True)
            environ[name] = str(folder)
        return environ

    def sksd(self, host: int, *arguments: str) -> Process:
        """A command on a machine."""
        command = self.on(host, sys.executable, "-m", "sksd", *arguments)
        return self.run_process(*command, env=self.theirs(host))

    async def answer(self, host: int, *arguments: str) -> Any:
        """The JSON of a command."""
        command = self.sksd(host, *arguments, "--json")
        code = await command.ended.addTimeout(LIMIT, reactor)
        self.assertEqual(code, 0, command.output.decode())
        return json.loads(command.output[command.output.index(b"{") if b"{" in command.output else 0 :])

    async def start_engine(self, host: int) -> str:
        """The id of a new one."""
        outcome = await self.answer(host, "start", self.host, sys.prefix, "--accept-new")
        return str(outcome["engine"]["id"])

    async def relay(self, host: int, engine: str, *more: str) -> tuple[Process, Path]:
        """A relay that listens, and its connection file."""
        file = self.top / f"front{host}.json"
        relay = self.sksd(host, "relay", self.host, "--engine", engine, "-f", str(file), "--accept-new", *more)
        await relay.says(str(file).encode())
        return relay, file

    async def front(self, host: int, file: Path, load: Load, watch: bool = False, ask: bool = True) -> Process:
        """A front end that is ready; it waits for `go`."""
        behaviour = {"load": attrs.asdict(load), "watch": watch, "ask": ask, "limit": load.seconds + CATCH_UP}
        command = self.on(host, sys.executable, FRONT, str(file), json.dumps(behaviour))
        front = self.run_process(*command, env=self.theirs(host))
        await front.says(b"ready")
        return front

    def go(self, *fronts: Process) -> None:
        """Begin; those who watch are to be named first."""
        for front in fronts:
            front.transport.write(b"go\n")  # type: ignore[union-attr]

    async def report(self, front: Process, load: Load, *relays: Process) -> dict[str, Any]:
        """What it has seen; fails where a line or a reply was lost, came twice, or in another order, and as soon as
        one of `relays` ends."""

        def ended() -> bool:
            for relay in relays:
                self.assertFalse(relay.ended.called, self.about("a relay ended"))
            return front.ended.called

        await until(ended, self.about("the front end's report"), load.seconds + 3 * CATCH_UP)
        code = await front.ended
        self.assertEqual(code, 0, self.about(front.output.decode()))
        report: dict[str, Any] = json.loads(front.output.splitlines()[-1])
        self.assertEqual(report["problems"], [], self.about(report))
        return report

    def about(self, what: object) -> str:
        """A failure's words: the seed, and what every program has said."""
        said = "\n".join(child.output.decode(errors="replace")[-2000:] for child in self._children)
        return f"seed {self.seed}: {what}\n{said}"

    def check_memory(self) -> None:
        """No part was ever larger than MEMORY."""
        self.assertTrue(self.memory)
        for part, most in self.memory.items():
            self.assertLess(most, MEMORY, self.about(part))

    async def stop_engine(self, host: int, engine: str) -> None:
        """The end of a test."""
        self.assertEqual((await self.sksd(host, "stop", self.host, engine, "--accept-new").ended), 0)
        await until(lambda: not self.named("relay"), "no relay is left")
        self.stopped = True

    @defer.inlineCallbacks
    def _end_all(self) -> Any:
        """A test that has failed has not stopped its engine, and so the proxy would stay."""
        if not self.stopped:
            # The daemon first: it would start another proxy.
            yield self._end_children()
            for process in list(self.processes()):
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def _measure(self) -> None:
        for process in self.processes():
            try:
                line = process.cmdline()
                part = next((part for part in PARTS if part in line), None)
                if part is not None:
                    self.memory[part] = max(self.memory.get(part, 0), process.memory_info().rss)
                    self.cpu[part, process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue


async def pause(seconds: float) -> None:
    """Time passes, as a plan of cuts says."""
    passed: defer.Deferred[None] = task.deferLater(reactor, seconds)  # type: ignore[arg-type]
    await passed
