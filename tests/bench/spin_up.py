"""From the request to the first result, beside a local jupyter_client start of the same kernel.

`python -m tests.bench.spin_up [PAIRS]` (default 15), interleaved. Both start `python -m spyder_kernels.console` cold,
run `6*7` and wait for the result on iopub. Ours: a session over TLS asks the daemon, a link is opened, and the front
end works through the relay's sockets. Local: KernelManager over ipc, and a client that does no more than ours does
(jupyter_client's own wait_for_ready adds up to 0.2 s, which is left out). Goal: at most 1.15 times.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sksd import reactor as choose_reactor

choose_reactor.install()

from jupyter_client.asynchronous.client import AsyncKernelClient  # noqa: E402
from jupyter_client.kernelspec import KernelSpec  # noqa: E402
from jupyter_client.manager import AsyncKernelManager  # noqa: E402
from twisted.internet import defer, task  # noqa: E402

from sksd.client.relay import open_relay  # noqa: E402
from sksd.wire import messages  # noqa: E402
from tests.bench.host import daemon  # noqa: E402

COMMAND = ["-Xfrozen_modules=off", "-m", "spyder_kernels.console", "-f"]


async def first_result(client: Any) -> None:
    """Ask whether the kernel is there until both shell and iopub have answered, run 6*7, and wait for 42."""
    client.start_channels(hb=False)
    client.kernel_info()
    await client.get_shell_msg(timeout=60)
    # A subscription may arrive after the first answer was published: then that is asked for again.
    while not await client.iopub_channel.msg_ready():
        client.kernel_info()
        await client.get_shell_msg(timeout=60)
    client.execute("6*7")
    while True:
        message = await client.get_iopub_msg(timeout=60)
        if message["msg_type"] == "execute_result":
            assert message["content"]["data"]["text/plain"] == "42"
            break
    client.stop_channels()


def awaited(coroutine: Any) -> defer.Deferred[Any]:
    """asyncio's in Twisted's."""
    return defer.Deferred.fromFuture(asyncio.ensure_future(coroutine))


async def local(folder: Path, number: int) -> float:
    """Seconds of a local start."""

    class Manager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, *COMMAND, "{connection_file}"]
            return KernelSpec(argv=argv, display_name="", language="python")

    manager = Manager(transport="ipc", ip=str(folder / f"l{number}"), connection_file=str(folder / f"l{number}.json"))
    start = time.perf_counter()
    await awaited(manager.start_kernel())
    client = manager.client()
    await awaited(first_result(client))
    took = time.perf_counter() - start
    await awaited(manager.shutdown_kernel(now=True))
    return took


async def ours(reactor: Any, here: Any) -> float:
    """Seconds through daemon, proxy, link and relay."""
    start = time.perf_counter()
    outcome = await here.spin_up(messages.SpinUp(environment=sys.prefix))
    assert outcome.ticket is not None, outcome
    relay = await open_relay(reactor, here.route, outcome.ticket)
    client = AsyncKernelClient()
    client.load_connection_file(str(relay.file))
    await awaited(first_result(client))
    took = time.perf_counter() - start
    await relay.stop()
    await (await here.engine(outcome.engine.id)).shutdown()
    return took


async def measure(reactor: Any, pairs: int) -> int:
    """Print both medians and their ratio."""
    theirs, mine = [], []
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        async with daemon() as (here, _):
            await ours(reactor, here)
            await local(Path(folder), 0)
            for number in range(1, pairs + 1):
                mine.append(await ours(reactor, here))
                theirs.append(await local(Path(folder), number))
    ratio = statistics.median(mine) / statistics.median(theirs)
    paired = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    for name, waits in (("sksd", mine), ("local jupyter_client", theirs)):
        print(f"{name:22} {statistics.median(waits):.3f} s   ({min(waits):.3f} to {max(waits):.3f})")
    print(f"ratio of the medians   {ratio:.3f}   (median of the pairs' ratios {paired:.3f}, goal 1.15)")
    return ratio > 1.15


def main(reactor: Any) -> defer.Deferred[None]:
    """For task.react."""

    async def body() -> None:
        if await measure(reactor, int(sys.argv[1]) if len(sys.argv) > 1 else 15):
            raise SystemExit(1)

    return defer.ensureDeferred(body())


if __name__ == "__main__":
    task.react(main)
