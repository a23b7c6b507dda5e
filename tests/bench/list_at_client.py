"""50 environments listed at the client, through the daemon and the proxy, beside asking each one's own Python.

`python -m tests.bench.list_at_client [COUNT]`. Goal: under 20 ms at the client.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sksd import reactor as choose_reactor

choose_reactor.install()

from twisted.internet import defer, task  # noqa: E402

from tests.bench.host import daemon  # noqa: E402
from tests.bench.list_environments import ACCEPTS, age, ask_each, make_environments, milliseconds  # noqa: E402

REPEATS = 15


async def measure(count: int) -> None:
    """Print three lines."""
    with tempfile.TemporaryDirectory() as folder:
        made = make_environments(Path(folder), count)
        age(Path(folder))
        async with daemon(CONDA_ENVS_PATH=folder) as (here, _):
            waits = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                listed = await here.environments(ACCEPTS)
                waits.append((time.perf_counter() - start) * 1000)
                assert len(listed) >= count, len(listed)
        asked = milliseconds(lambda: ask_each(made))
    print(f"the first, with the proxy's start   {waits[0]:9.1f} ms")
    print(f"{len(listed)} environments at the client       {statistics.median(waits[1:]):9.1f} ms"
          f"   (median of {REPEATS - 1}, {min(waits[1:]):.1f} to {max(waits[1:]):.1f})")
    print(f"asking each one's own Python        {asked:9.1f} ms")


def main(reactor: Any) -> defer.Deferred[None]:
    """For task.react."""
    return defer.ensureDeferred(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 50))


if __name__ == "__main__":
    task.react(main)
