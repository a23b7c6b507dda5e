"""Engines started and stopped in a row: nothing may be left, and nothing may grow.

`python -m tests.bench.engines_in_a_row [N]` (default 200). Prints what the daemon and the proxy hold now and then,
and fails when descriptors, processes, sockets or records are left, or memory grows beyond what its noise explains.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from sksd import reactor as choose_reactor

choose_reactor.install()

import psutil  # noqa: E402
from twisted.internet import defer, task  # noqa: E402

from sksd import paths  # noqa: E402
from sksd.wire import messages  # noqa: E402
from tests.bench.host import daemon  # noqa: E402
from tests.system.daemon import until  # noqa: E402

#: MiB that a process may hold more at the end than after a tenth of the way.
GROWTH = 3.0


def held(process: psutil.Process) -> tuple[int, float]:
    """(descriptors, MiB of memory of its own)."""
    return process.num_fds(), process.memory_full_info().uss / 2**20


def left() -> list[str]:
    """Sockets, records and logs."""
    folders = (paths.runtime() / "e", paths.state() / "engines")
    return [str(path) for folder in folders if folder.exists() for path in folder.rglob("*")]


async def measure(count: int) -> int:
    """Run, print, judge."""
    async with daemon() as (here, process):
        watched: dict[str, psutil.Process] = {"daemon": psutil.Process(process.pid)}
        samples: list[dict[str, tuple[int, float]]] = []
        for number in range(1, count + 1):
            outcome = await here.spin_up(messages.SpinUp(environment=sys.prefix))
            assert outcome.engine is not None, outcome
            await (await here.engine(outcome.engine.id)).shutdown()
            if "proxy" not in watched:
                [watched["proxy"]] = [p for p in ours() if "sksd.proxy" in p.cmdline()]
            if number % max(1, count // 10) == 0:
                sample = {name: held(each) for name, each in watched.items()}
                samples.append(sample)
                words = ", ".join(f"{name} {fds} descriptors {size:.1f} MiB" for name, (fds, size) in sample.items())
                print(f"{number:5} engines: {words}", flush=True)
        await until(lambda: not left(), f"files go: {left()}", 5)
        kernels = [p.pid for p in ours() if "spyder_kernels.console" in p.cmdline()]
        first, last = samples[0], samples[-1]
        faults = [f"processes {kernels}"] if kernels else []
        for name in watched:
            if last[name][0] > first[name][0]:
                faults.append(f"{name}: {last[name][0] - first[name][0]} more descriptors")
            if last[name][1] > first[name][1] + GROWTH:
                faults.append(f"{name}: {last[name][1] - first[name][1]:.1f} MiB more")
    print("nothing is left, nothing grew" if not faults else f"FAILED: {'; '.join(faults)}")
    return bool(faults)


def ours() -> list[psutil.Process]:
    """The processes of this measurement's daemon."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine = process.environ().get("XDG_RUNTIME_DIR") == os.environ["XDG_RUNTIME_DIR"]
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def main(reactor: Any) -> defer.Deferred[None]:
    """For task.react."""

    async def body() -> None:
        if await measure(int(sys.argv[1]) if len(sys.argv) > 1 else 200):
            raise SystemExit(1)

    return defer.ensureDeferred(body())


if __name__ == "__main__":
    task.react(main)
