"""A daemon under attack: how its memory grows, how long somebody who has logged in waits, and how much it logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import psutil
from attrs import define
from twisted.internet import reactor, task

from sksd.client.session import Session
from sksd.wire.local import Note
from tests.system.daemon import Process

#: Seconds between two calls of whoever has logged in, and between two looks at the daemon's memory.
PAUSE = 0.005
LOOK = 0.05


@define
class Watched:
    """What an attack did. Memory in MiB (USS), the longest call in ms, log lines for each connection."""

    connections: int
    seconds: float
    growth: float
    stall: float
    lines: float

    def __str__(self) -> str:
        return (
            f"{self.connections:5} connections in {self.seconds:4.1f} s  {self.growth:+6.1f} MiB"
            f"  longest call {self.stall:6.1f} ms  {self.lines:5.2f} lines each"
        )


def memory(pid: int) -> float:
    """MiB of a process that are its own."""
    found: float = psutil.Process(pid).memory_full_info().uss / 2**20
    return found


async def attack(name: str, note: Note, here: Session, log: Callable[[], int]) -> Watched:
    """Attack the daemon of `note` while `here` calls it; `log()` counts the lines of its log so far."""
    attacker = Process()
    command = (sys.executable, "-m", "tests.attacks", name, note.address, str(note.port))
    before, lines, began = memory(note.pid), log(), time.perf_counter()
    reactor.spawnProcess(attacker, command[0], command, env=None)  # type: ignore[attr-defined]
    peak, stall, looked = before, 0.0, 0.0
    while not attacker.ended.called:
        start = time.perf_counter()
        await here.ping()
        end = time.perf_counter()
        stall = max(stall, end - start)
        if end - looked > LOOK:
            looked, peak = end, max(peak, memory(note.pid))
        await task.deferLater(reactor, PAUSE)
    code = await attacker.ended
    if code:
        raise AssertionError(f"{name} ended with {code}: {attacker.output.decode(errors='replace')}")
    connections = int(attacker.output.split()[-1])
    # What it still logs of them comes at once.
    await here.ping()
    return Watched(
        connections=connections,
        seconds=time.perf_counter() - began,
        growth=max(peak, memory(note.pid)) - before,
        stall=stall * 1000,
        lines=(log() - lines) / connections,
    )


async def warm(here: Session, calls: int = 50) -> None:
    """What only the first calls cost."""
    for _ in range(calls):
        await here.ping()
