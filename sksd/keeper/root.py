"""What a proxy may ask of its keeper, over its UNIX socket (docs/protocol.md, "Between proxy and keeper")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.spread import pb

from sksd import __version__
from sksd.keeper import log as engine_log
from sksd.keeper import records
from sksd.keeper.engine import Engine
from sksd.keeper.engines import Engines
from sksd.wire import messages
from sksd.wire.broker import Remote
from sksd.wire.calls import tell
from sksd.wire.names import DEAD, PROTOCOL


class KeeperRoot(Remote):
    """One proxy's connection. `configure` takes what the configuration says, `listen` who is told of events."""

    def __init__(
        self,
        engines: Engines,
        configure: Callable[[messages.Settings], None],
        listen: Callable[[pb.RemoteReference], None],
        pid: int,
    ) -> None:
        self._engines = engines
        self._configure = configure
        self._listen = listen
        self._pid = pid

    async def remote_settings(self, request: dict[str, Any], listener: pb.RemoteReference) -> messages.ProxyInfo:
        """The first call: what the configuration says. `listener` is told of events from then on."""
        self._configure(messages.read(messages.Settings, request))
        self._listen(listener)
        return messages.ProxyInfo(
            protocol=PROTOCOL,
            version=__version__,
            pid=self._pid,
            engines=[engine.describe() for engine in self._engines.all()],
        )

    async def remote_start(self, request: dict[str, Any]) -> messages.BegunEngine:
        """Start an engine; answers when its kernel has answered."""
        engine = await self._engines.start(messages.read(messages.StartEngine, request))
        version: str | None = None
        match engine.kernel_info.get("spyder_kernels_info"):
            case [str() as said, *_]:
                version = said
        return messages.BegunEngine(engine=engine.describe(), ticket=self._ticket(engine), version=version)

    async def remote_engines(self, request: dict[str, Any]) -> messages.Engines:
        """All engines, oldest first."""
        return messages.Engines(engines=[engine.describe() for engine in self._engines.all()])

    def _engine(self, request: dict[str, Any]) -> Engine:
        return self._engines.get(messages.read(messages.EngineQuery, request).engine)

    async def remote_info(self, request: dict[str, Any]) -> messages.Engine:
        """One engine."""
        return self._engine(request).describe()

    async def remote_interrupt(self, request: dict[str, Any]) -> messages.Engine:
        """SIGINT."""
        engine = self._engine(request)
        engine.interrupt()
        return engine.describe()

    async def remote_restart(self, request: dict[str, Any]) -> messages.Engine:
        """A new process in the old one's place."""
        query = messages.read(messages.Shutdown, request)
        engine = self._engines.get(query.engine)
        await engine.restart(query.grace)
        return engine.describe()

    async def remote_shutdown(self, request: dict[str, Any]) -> messages.Engine:
        """End it; one that is dead is listed no longer, and nothing of it kept."""
        query = messages.read(messages.Shutdown, request)
        engine = self._engines.get(query.engine)
        if engine.state == DEAD:
            self._engines.forget(query.engine)
        else:
            await engine.stop(query.grace, query.by)
        return engine.describe()

    async def remote_log(self, request: dict[str, Any]) -> messages.LogPage:
        """A page of an engine's log; of one of which nothing is kept, its last words."""
        query = messages.read(messages.LogQuery, request)
        engine = self._engines.get(query.engine)
        if engine.state == DEAD and not records.log_path(query.engine).exists():
            words = engine.last_words.encode()
            start = max(0, len(words) + query.offset) if query.offset < 0 else query.offset
            data, size = words[start : start + query.limit], len(words)
        else:
            data, start, size = engine_log.read_log(records.log_path(query.engine), query.offset, query.limit)
        after = start + len(data)
        return messages.LogPage(text=data.decode("utf-8", "replace"), offset=start, next=after, end=after >= size)

    async def remote_ticket(self, request: dict[str, Any]) -> messages.Ticket:
        """What a link's local end needs to know; the daemon puts the ticket itself in."""
        return self._ticket(self._engine(request))

    def _ticket(self, engine: Engine) -> messages.Ticket:
        key = str(engine.record.connection["key"])
        return messages.Ticket(ticket="", engine=engine.record.id, key=key, kernel_name="")


class Listeners:
    """The proxies that are told of every engine's new state."""

    def __init__(self) -> None:
        self._listeners: set[pb.RemoteReference] = set()

    def add(self, listener: pb.RemoteReference) -> None:
        """Tell it until its connection is gone."""
        self._listeners.add(listener)
        listener.broker.notifyOnDisconnect(lambda: self._listeners.discard(listener))

    def changed(self, engine: Engine) -> None:
        """Called at every new state of an engine."""
        for listener in list(self._listeners):
            tell(listener, "event", messages.Event(event="engine", engine=engine.describe()))
