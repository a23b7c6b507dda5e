"""How long the worker takes to make an environment, beside rattler's own solve and link of the same packages.

Run with `python -m tests.bench.create_environment [ROUNDS]`. Each is a process of its own with a warm package cache;
what a process needs to start (interpreter, imports) is measured apart from the work. In each round chance decides who
is first, so that neither always has what the other leaves behind. Limit: 1.2.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests import channel

SPECS = ["python", "spyder-kernels >=3.1,<3.2"]
LIMIT = 1.2

#: What a script on rattler alone would do; prints the seconds of the work.
RATTLER = """
import asyncio, os, sys, time
from pathlib import Path
import rattler
url, prefix, cache, *specs = sys.argv[1:]
async def main():
    began = time.perf_counter()
    gateway = rattler.Gateway(cache_dir=Path(cache) / "repodata")
    detected = rattler.VirtualPackage.detect()
    records = await rattler.solve(
        [rattler.Channel(url)], specs, gateway=gateway, virtual_packages=detected, add_pip_as_python_dependency=True)
    await rattler.install(records, prefix, cache_dir=Path(cache) / "pkgs", show_progress=False)
    print(time.perf_counter() - began, flush=True)
    os._exit(0)
asyncio.run(main())
"""
#: The same job by the worker, timed from where its imports are done.
WORKER = """
import sys, time
import sksd.conda.operations
from sksd.conda import main
began = time.perf_counter()
real = main.os._exit
main.os._exit = lambda code: (print(time.perf_counter() - began, file=sys.stderr, flush=True), real(code))
main.main([])
"""


def once(command: list[str], environ: dict[str, str], job: bytes = b"") -> tuple[float, float]:
    """(seconds of the work, seconds of the whole process)."""
    began = time.perf_counter()
    done = subprocess.run(command, input=job, capture_output=True, env=environ, check=True, cwd="/")
    whole = time.perf_counter() - began
    # The worker's stdout is events; its time is on stderr.
    return float((done.stderr if job else done.stdout).split()[-1]), whole


def main() -> int:
    """Measure and print; exit code 1 beyond the limit."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    url = channel.channel().as_uri()
    found: dict[str, list[tuple[float, float]]] = {"rattler": [], "worker": []}
    with tempfile.TemporaryDirectory(prefix="sksd-bench-") as top:
        cache = Path(top, "cache")
        environ = {"PATH": os.environ["PATH"], "HOME": top, "RATTLER_CACHE_DIR": str(cache)}
        environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        for number in range(rounds + 1):
            prefix = f"{top}/rattler-{number}"
            job = {"operation": "create", "name": f"w{number}", "specs": SPECS, "channels": [url]}
            runs = [
                ("rattler", [sys.executable, "-c", RATTLER, url, prefix, str(cache), *SPECS], b""),
                ("worker", [sys.executable, "-P", "-c", WORKER], msgspec.json.encode(job)),
            ]
            random.shuffle(runs)
            for name, command, text in runs:
                times = once(command, environ, text)
                if number:
                    # The first round fills the cache.
                    found[name].append(times)
    medians = {}
    for name, times_of in found.items():
        works = [work for work, _ in times_of]
        medians[name] = statistics.median(works)
        start = statistics.median(whole - work for work, whole in times_of)
        print(
            f"{name:8} solve and link {medians[name] * 1000:.0f} ms"
            f" ({min(works) * 1000:.0f} to {max(works) * 1000:.0f}), start and end {start * 1000:.0f} ms more"
        )
    ratio = medians["worker"] / medians["rattler"]
    print(f"ratio {ratio:.2f} (limit {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
