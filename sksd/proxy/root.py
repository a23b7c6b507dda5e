"""What the daemon may ask of a proxy, over its UNIX socket (docs/protocol.md, "Between daemon and proxy")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.spread import pb

from sksd import __version__
from sksd.proxy import log as engine_log
from sksd.proxy import records
from sksd.proxy.catalogue import Catalogue
from sksd.proxy.changing import Changes
from sksd.proxy.engine import Engine
from sksd.proxy.engines import Engines
from sksd.proxy.spin_up import SpinningUp
from sksd.proxy.workers import Silence, Told
from sksd.wire import messages
from sksd.wire.calls import tell
from sksd.wire.changes import CancelTask, Changed, Changing, Plan
from sksd.wire.names import DEAD, PROTOCOL


class _Told:
    """Tells an observer."""

    def __init__(self, observer: pb.RemoteReference) -> None:
        self._observer = observer

    def progress(self, event: messages.Progress) -> None:
        """A step."""
        tell(self._observer, "progress", event)

    def plan(self, event: Plan) -> None:
        """What will be done."""
        tell(self._observer, "plan", event)


def _told(observer: pb.RemoteReference | None) -> Told:
    return Silence() if observer is None else _Told(observer)


class ProxyRoot(Changing):
    """One daemon's connection. `configure` takes what its configuration says, `listen` who is told of events."""

    def __init__(
        self,
        engines: Engines,
        catalogue: Catalogue,
        changes: Changes,
        spinning: SpinningUp,
        configure: Callable[[messages.Settings], None],
        listen: Callable[[pb.RemoteReference], None],
        pid: int,
    ) -> None:
        self._engines = engines
        self._catalogue = catalogue
        self._changes = changes
        self._spinning = spinning
        self._configure = configure
        self._listen = listen
        self._pid = pid

    async def remote_settings(
        self, request: dict[str, Any], listener: pb.RemoteReference
    ) -> messages.ProxyInfo:
        """The first call: what the configuration says. `listener` is told of events from then on."""
        self._configure(messages.read(messages.Settings, request))
        self._listen(listener)
        return messages.ProxyInfo(
            protocol=PROTOCOL,
            version=__version__,
            pid=self._pid,
            engines=[engine.describe() for engine in self._engines.all()],
        )

    async def remote_environments(self, request: dict[str, Any]) -> messages.Environments:
        """All environments, read afresh."""
        return await self._catalogue.listing(messages.read(messages.EnvironmentsQuery, request))

    async def change(self, call: str, wish: Any, observer: pb.RemoteReference | None) -> Changed:
        """Any of the calls that change an environment."""
        return await self._changes.change(wish, _told(observer))

    async def remote_cancel(self, request: dict[str, Any]) -> messages.Nothing:
        """Undo and end a change."""
        self._changes.cancel(messages.read(CancelTask, request))
        return messages.Nothing()

    async def remote_spin_up(
        self, request: dict[str, Any], observer: pb.RemoteReference | None = None
    ) -> messages.Outcome:
        """Start an engine. What keeps it from starting is raised; the avatar makes it an outcome."""
        return await self._spinning.spin_up(messages.read(messages.SpinUp, request), _told(observer))

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
        """End it; one that is dead is listed no longer."""
        query = messages.read(messages.Shutdown, request)
        engine = self._engines.get(query.engine)
        await engine.stop(query.grace)
        self._engines.forget(query.engine)
        return engine.describe()

    async def remote_log(self, request: dict[str, Any]) -> messages.LogPage:
        """A page of an engine's log; of a dead one, its last words."""
        query = messages.read(messages.LogQuery, request)
        engine = self._engines.get(query.engine)
        if engine.state == DEAD:
            words = engine.last_words.encode()
            start = max(0, len(words) + query.offset) if query.offset < 0 else query.offset
            data, size = words[start : start + query.limit], len(words)
        else:
            data, start, size = engine_log.read_log(records.log_path(query.engine), query.offset, query.limit)
        after = start + len(data)
        return messages.LogPage(
            text=data.decode("utf-8", "replace"), offset=start, next=after, end=after >= size
        )

    async def remote_ticket(self, request: dict[str, Any]) -> messages.Ticket:
        """What a link's local end needs to know; the daemon puts the ticket itself in."""
        engine = self._engine(request)
        connection = engine.record.connection
        return messages.Ticket(ticket="", engine=engine.record.id, key=str(connection["key"]), kernel_name="")


class Listeners:
    """The daemons that are told of every engine's new state."""

    def __init__(self) -> None:
        self._listeners: set[pb.RemoteReference] = set()

    def add(self, listener: pb.RemoteReference) -> None:
        """Tell it until its connection is gone."""
        self._listeners.add(listener)
        listener.broker.notifyOnDisconnect(lambda: self._listeners.discard(listener))

    def changed(self, engine: Engine) -> None:
        """Called at every new state of an engine."""
        self._tell(messages.Event(event="engine", engine=engine.describe()))

    def environments_changed(self) -> None:
        """Called when a listing of the environments is another than it was."""
        self._tell(messages.Event(event="environments"))

    def _tell(self, event: messages.Event) -> None:
        for listener in list(self._listeners):
            tell(listener, "event", event)
