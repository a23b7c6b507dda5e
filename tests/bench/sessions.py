"""1,000 people logged in at once, and logins a second, beside a stock Perspective Broker server over TLS 1.3.

`python -m tests.bench.sessions [COUNT]`. Goal: at most 60 KiB in the daemon for each.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from sksd import reactor as choose_reactor

choose_reactor.install()

from twisted.cred.credentials import UsernamePassword  # noqa: E402
from twisted.internet import defer, task  # noqa: E402
from twisted.internet.ssl import CertificateOptions  # noqa: E402
from twisted.spread import pb  # noqa: E402

from sksd import paths  # noqa: E402
from sksd.client import session  # noqa: E402
from sksd.wire.local import read_note  # noqa: E402
from tests.bench.host import daemon  # noqa: E402
from tests.system.daemon import Local  # noqa: E402

#: Logins for a rate, and how many are under way at once.
LOGINS = 200
AT_ONCE = 20


def _memory(pid: int) -> float:
    found: float = psutil.Process(pid).memory_full_info().uss / 1024
    return found


async def _all(count: int, at_once: int, one: Callable[[], Awaitable[Any]]) -> list[Any]:
    made: list[Any] = []

    async def work() -> None:
        while len(made) + at_once <= count or not made:
            made.append(await one())

    await defer.gatherResults([defer.ensureDeferred(work()) for _ in range(at_once)], consumeErrors=True)
    return made


async def rates(name: str, one: Callable[[], Awaitable[Any]], close: Callable[[Any], Any]) -> None:
    """Print logins a second, one after the other and at once."""
    said = []
    for at_once in (1, AT_ONCE):
        start = time.perf_counter()
        made = await _all(LOGINS, at_once, one)
        said.append(len(made) / (time.perf_counter() - start))
        for each in made:
            await close(each)
    print(f"{name:8} {said[0]:5.0f} logins/s one by one, {said[1]:5.0f} with {AT_ONCE} at once", flush=True)


async def held(
    name: str, pid: int, count: int, one: Callable[[], Awaitable[Any]], close: Callable[[Any], Any]
) -> float:
    """Print and answer the KiB for each of `count` sessions."""
    before = _memory(pid)
    made = await _all(count, AT_ONCE, one)
    each = (_memory(pid) - before) / len(made)
    print(f"{name:8} {len(made)} sessions held, {each:.1f} KiB each", flush=True)
    for session_of in made:
        await close(session_of)
    return each


async def measure(reactor: Any, count: int) -> None:
    """Print four lines; fails where the goal was missed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with tempfile.TemporaryDirectory() as folder:
        stock = subprocess.Popen([sys.executable, "-m", "tests.bench.stock", folder], stdout=subprocess.PIPE)
        try:
            assert stock.stdout is not None
            port = int(stock.stdout.readline())

            async def stock_login() -> pb.PBClientFactory:
                factory = pb.PBClientFactory()
                factory.noisy = False
                reactor.connectSSL("127.0.0.1", port, factory, CertificateOptions(verify=False))
                await factory.login(UsernamePassword(b"ada", b"lovelace"))
                return factory

            async def stock_close(factory: Any) -> None:
                factory.disconnect()

            await rates("stock PB", stock_login, stock_close)
            await held("stock PB", stock.pid, count, stock_login, stock_close)
        finally:
            stock.terminate()
            stock.wait()
    async with daemon() as (_, process):
        note = read_note(paths.daemon_note())
        assert note is not None
        token = paths.token().read_text().strip()
        route = Local(note)

        async def login() -> session.Session:
            return await (await session.connect(reactor, route)).login("", token)

        await rates("sksd", login, session.Session.close)
        each = await held("sksd", process.pid, count, login, session.Session.close)
    if each > 60:
        raise SystemExit(f"goal missed: {each:.1f} KiB, at most 60")


def main(reactor: Any) -> defer.Deferred[None]:
    """For task.react."""
    return defer.ensureDeferred(measure(reactor, int(sys.argv[1]) if len(sys.argv) > 1 else 1000))


if __name__ == "__main__":
    task.react(main)
