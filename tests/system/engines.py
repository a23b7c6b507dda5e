"""Real engines in this process, each behind a link by TCP on loopback; front ends are jupyter_client's."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from jupyter_client.blocking.client import BlockingKernelClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from sksd.keeper.engine import Engine, Sizes
from sksd.keeper.engines import Engines
from sksd.keeper.links import Links
from sksd.keeper.log import BoundedLogs
from sksd.link.hello import new_hello
from sksd.link.link import Link
from sksd.link.local import Channels, LocalEnd
from sksd.link.protocol import LinkConnection
from sksd.proxy.kernels import BOOT
from sksd.wire import messages
from sksd.wire.names import CONNECTION_FILE
from tests.system.daemon import until

LIMIT = 30.0
MIB = 1024 * 1024


class Joined:
    """A relay's end, joined to the keeper's `links`."""

    def __init__(self, links: Links, engine: Engine, folder: Path | None, **hello: Any) -> None:
        self.links = links
        self.near = Link.opening(reactor, msgspec.structs.replace(new_hello("", **hello), engine=engine.record.id))
        key = str(engine.record.connection["key"])
        transport = "tcp" if folder is None else "ipc"
        self.local = LocalEnd(reactor, self.near, Channels(key, "spyder", transport=transport, folder=folder))

    async def start(self) -> dict[str, Any]:
        """Listen and connect; answers the connection info for front ends."""
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        self.port = await endpoint.listen(Factory.forProtocol(self.links.door))
        self.info = self.local.start()
        await self.connect()
        await self.near.when_welcomed().addTimeout(LIMIT, reactor)
        return self.info

    async def connect(self) -> None:
        """For the first time, or again."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        self.connection = await connectProtocol(endpoint, LinkConnection(self.near))

    async def cut(self) -> None:
        """The connection breaks."""
        self.connection.transport.abortConnection()
        await until(lambda: self.near.core.is_cut or self.near.ended, "it is cut")

    async def stop(self) -> None:
        """Leave nothing."""
        await self.local.stop()
        self.near.end()
        for tap in list(self.near.taps.values()):
            tap.abort()  # type: ignore[attr-defined]
        await self.port.stopListening()
        await until(lambda: not self.near.taps, "the front ends are gone")


def client(info: dict[str, Any]) -> BlockingKernelClient:
    """A front end on `info`, its kernel answered."""
    front = BlockingKernelClient()
    front.load_connection_info({name: value for name, value in info.items() if name != "kernel_name"})
    front.start_channels()
    front.wait_for_ready(timeout=LIMIT)
    return front


def run(front: BlockingKernelClient, code: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run `code`; answers the reply's content and every iopub message of it."""
    said: list[dict[str, Any]] = []
    reply = front.execute_interactive(code, timeout=LIMIT, output_hook=said.append)
    return reply["content"], said


def printed(said: list[dict[str, Any]]) -> str:
    """What of `said` was written to stdout."""
    streams = (m["content"] for m in said if m["msg_type"] == "stream")
    return "".join(content["text"] for content in streams if content["name"] == "stdout")


class EngineCase(TestCase):
    """A keeper's engines and links in this process, in folders of their own."""

    timeout = 120.0
    sizes = Sizes(journal=256 * MIB, buffer=1024 * MIB, memory=4 * MIB)

    async def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sk-", dir="/tmp"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        for variable, name in (("XDG_STATE_HOME", "s"), ("XDG_RUNTIME_DIR", "r")):
            (self.folder / name).mkdir(mode=0o700)
            self.patch(os, "environ", {**os.environ, variable: str(self.folder / name)})
        self.joins: list[Joined] = []
        self.fronts: list[BlockingKernelClient] = []
        self.logs = BoundedLogs(reactor, MIB)
        self.events: list[str] = []
        self.engines = Engines(reactor, self.logs, lambda engine: self.events.append(engine.state))
        self.engines.sizes = self.sizes
        self.links = Links(reactor, self.engines, lambda: None)
        self.addCleanup(lambda: ensureDeferred(self.end()))

    async def end(self) -> None:
        """Leave nothing."""
        for front in self.fronts:
            front.stop_channels()
        engines = self.engines.all()
        for engine in engines:
            await engine.stop(0.0)
        for joined in self.joins:
            await joined.stop()
        for engine in engines:
            await until(lambda engine=engine: engine.closed, "the engine is closed")
        self.engines.release()
        await until(lambda: not self.links.waiting(), "no link is left")
        self.links._looking.stop()
        if self.logs._notifier is not None:
            self.logs._notifier.loseConnection()
        later: Deferred[None] = Deferred()
        reactor.callLater(0, later.callback, None)
        await later

    async def engine(self, *command: str, **wish: Any) -> Engine:
        """One that runs; `command` is run by this Python."""
        variables = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
        command = command or ("-Xfrozen_modules=off", "-c", BOOT, "spyder_kernels.console")
        start = messages.StartEngine(
            environment="e",
            prefix=sys.prefix,
            python=sys.executable,
            kernel=messages.Kernel(package="spyder-kernels", version="3"),
            arguments=[sys.executable, *command, "-f", CONNECTION_FILE],
            variables=variables,
            cwd=str(self.folder),
            **wish,
        )
        return await self.engines.start(start)

    async def join(self, engine: Engine, transport: str = "ipc", **hello: Any) -> Joined:
        """A relay."""
        folder = None
        if transport == "ipc":
            folder = self.folder / f"near{len(self.joins)}"
            folder.mkdir(mode=0o700)
        joined = Joined(self.links, engine, folder, **hello)
        self.joins.append(joined)
        await joined.start()
        return joined

    async def client(self, joined: Joined) -> BlockingKernelClient:
        """A front end at a relay."""
        front = await deferToThread(client, joined.info)
        self.fronts.append(front)
        return front
