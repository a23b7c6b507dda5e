"""SIGKILL for daemon, proxy and relay under load: the engine keeps its state, and nothing that it says is lost."""

from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tests.system.daemon import LIMIT, Process, until
from tests.system.load import Load, LoadCase, pause

DESK = 1
ASKED = str(Path(__file__).with_name("front_asked.py"))


def free_port() -> int:
    """A port on 127.0.0.1 that nobody has at the moment; a daemon that is started again keeps it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class KillCase(LoadCase):
    """All on one machine."""

    def setUp(self) -> None:
        super().setUp()
        port = free_port()
        self.host = f"127.0.0.1:{port}"
        self.configure(f"announce = no\nlisten = 127.0.0.1\nport = {port}\n")

    async def daemon(self) -> Process:
        """A daemon that listens."""
        return await self.start(sys.executable, "-m", "sksd", "serve")

    async def kill(self, process: Process) -> None:
        """SIGKILL, and wait for its end."""
        process.kill(signal.SIGKILL)
        await process.over

    async def kill_proxy(self) -> None:
        """SIGKILL to the proxy of whom the test has logged in as."""
        # One that was killed a moment ago may not have a successor yet.
        proxies: list[Any] = await until(lambda: self.named("sksd.proxy"), "a proxy runs")
        for proxy in proxies:
            proxy.kill()
        gone = [proxy.pid for proxy in proxies]
        await until(lambda: not any(proxy.pid in gone for proxy in self.named("sksd.proxy")), "its end")

    async def begin(self, load: Load, *more: str, ask: bool) -> tuple[str, Process, Path, Process]:
        """An engine, a relay, its file, and a front end that runs the load."""
        engine = await self.start_engine(DESK)
        relay, file = await self.relay(DESK, engine, *more)
        front = await self.front(DESK, file, load, ask=ask)
        self.go(front)
        return engine, relay, file, front

    async def run_kills(self, count: int, lines: int, blobs: int, size: int) -> dict[str, Any]:
        """`count` times the daemon, the proxy or both; answers the front end's report and the seconds it took."""
        kinds = [("daemon",), ("proxy",), ("daemon", "proxy"), ("proxy", "daemon")]
        plan = [(self.random.uniform(0.3, 2.0), kinds[number % len(kinds)]) for number in range(count)]
        self.random.shuffle(plan)
        # A daemon takes about half a second to be there again.
        load = Load(lines, blobs, size, sum(after for after, _ in plan) + count * 0.7, bursts=10 * count + 1)
        daemon = await self.daemon()
        engine, relay, _, front = await self.begin(load, ask=True)
        began = time.monotonic()
        for after, kind in plan:
            await pause(after)
            for part in kind:
                if part == "daemon":
                    await self.kill(daemon)
                else:
                    await self.kill_proxy()
            if "daemon" in kind:
                daemon = await self.daemon()
        report = await self.report(front, load, relay)
        took = time.monotonic() - began
        self.assertEqual(report["missed"], 0, self.about(f"the heartbeat: {report}"))
        self.check_memory()
        await self.stop_engine(DESK, engine)
        await self.stop(daemon)
        return {**report, "seconds": took}

    async def run_relay_kills(self, count: int, lines: int, blobs: int, size: int) -> dict[str, Any]:
        """`count` times the relay, started again with the same command: the front end goes on by ZeroMQ alone."""
        waits = [self.random.uniform(0.3, 2.0) for _ in range(count)]
        load = Load(lines, blobs, size, sum(waits) + count, bursts=10 * count + 1)
        daemon = await self.daemon()
        state = ("--state", str(self.top / "link.state"))
        # A request that the relay has not read when it is killed is gone with its socket: no front end asks anything
        # meanwhile. Nor is the heartbeat looked at, which nobody can answer before the relay is there again.
        engine, relay, file, front = await self.begin(load, *state, ask=False)
        began = time.monotonic()
        for wait in waits:
            await pause(wait)
            await self.kill(relay)
            relay, again = await self.relay(DESK, engine, *state)
            self.assertEqual(again, file)
        report = await self.report(front, load, relay)
        took = time.monotonic() - began
        await self.stop_engine(DESK, engine)
        self.assertNotIn(b"Traceback", relay.output)
        await self.stop(daemon)
        await until(lambda: not file.exists(), "the connection file is gone", LIMIT)
        return {**report, "seconds": took}


    async def run_asked(self, count: int, lines: int, *transport: str) -> dict[str, Any]:
        """`count` times the relay, while a user types."""
        waits = [self.random.uniform(0.3, 1.5) for _ in range(count)]
        load = Load(lines, 0, 0, sum(waits) + count)
        daemon = await self.daemon()
        engine = await self.start_engine(DESK)
        state = ("--state", str(self.top / "link.state"), *transport)
        relay, file = await self.relay(DESK, engine, *state)
        asked = (sys.executable, ASKED, str(file), str(lines), str(load.seconds))
        front = self.run_process(*asked, env=self.theirs(DESK))
        await front.says(b"ready")
        self.go(front)
        for wait in waits:
            await pause(wait)
            await self.kill(relay)
            relay, _ = await self.relay(DESK, engine, *state)
        report = await self.report(front, load, relay)
        await self.stop_engine(DESK, engine)
        self.assertNotIn(b"Traceback", relay.output)
        await self.stop(daemon)
        self.assertFalse((self.top / "link.state").exists())
        return report


class Kills(KillCase):
    """A small number; tests.bench.link_kills has the large one."""

    async def test_six_kills(self) -> None:
        await self.run_kills(6, 2000, 25, 200_000)

    async def test_relay_three_times(self) -> None:
        await self.run_relay_kills(3, 2000, 25, 200_000)

    async def test_relay_while_a_user_types(self) -> None:
        report = await self.run_asked(6, 2000)
        self.assertEqual(report["typed"], 20)
        # What was on its way to a relay when that was killed, and the piece that it had sent but not counted: the
        # one thing that a kill may do (docs/link.md). Most kills do not.
        self.assertLessEqual(report["again"], 6, self.about(report))
        self.assertLessEqual(report["doubled"], 12, self.about(report))

    async def test_relay_on_ports(self) -> None:
        report = await self.run_asked(3, 1000, "--transport", "tcp")
        self.assertEqual(report["typed"], 10)
