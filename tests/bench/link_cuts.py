"""A link over a network that is cut 100 times while an engine prints 200,000 lines and sends 200 MB of buffers.

`python -m tests.bench.link_cuts [CUTS LINES MB]`: about ten minutes, root and iproute2. Cuts last 0.1 to 20 s, by
dropped packets, by link down and by reset; fails where a line is lost, doubled or out of order.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from tests.system import test_link_cuts as cuts

SIZE = 200_000
#: Of the child that trial runs in.
GIVEN = "SKSDBENCH_GIVEN"


def in_trial(case: str, *given: int) -> int:
    """Run a test case of these modules with numbers of its own, and answer its exit code."""
    command = (sys.executable, "-m", "twisted.trial", "--reactor=asyncio", "--temp-directory=/tmp/sksd-bench-trial")
    environ = {**os.environ, GIVEN: " ".join(map(str, given))}
    return subprocess.run([*command, case], env=environ).returncode


def given() -> list[int]:
    """The numbers in trial."""
    return [int(word) for word in os.environ[GIVEN].split()]


def table(report: dict[str, Any], memory: dict[str, int], cpu: dict[tuple[str, int], float]) -> None:
    """Print what came of a run."""
    print()
    print(f"{report['lines']:,} lines and {report['bytes'] / 1e6:.0f} MB of buffers in {report['seconds']:.0f} s:")
    print("every one arrived once, in order, as did", report["asked"], "replies to requests on control")
    print(f"heartbeat: {report['looks']} looks, {report['missed']} missed")
    for part, most in memory.items():
        seconds = sum(used for (name, _), used in cpu.items() if name == part)
        print(f"{part:12} at most {most / 2**20:6.1f} MiB   {seconds:6.1f} s of CPU, all its processes")


class ManyCuts(cuts.CutCase):
    """In trial."""

    timeout = 7200

    async def test_many(self) -> None:
        count, lines, megabytes = given()
        print(f"\nseed {self.seed}, {count} cuts")
        report = await self.run_cuts(count, 20.0, lines, megabytes * 10**6 // SIZE, SIZE)
        table(report, self.memory, self.cpu)
        print(f"cut for {report['cut']:.0f} s")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]] or [100, 200_000, 200]
    sys.exit(in_trial("tests.bench.link_cuts.ManyCuts", *numbers))
