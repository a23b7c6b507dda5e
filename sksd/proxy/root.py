"""What the daemon may ask of a proxy, over its UNIX socket (docs/protocol.md, "Between daemon and proxy")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.spread import pb

from sksd import __version__
from sksd.proxy.catalogue import Catalogue
from sksd.proxy.changing import Changes
from sksd.proxy.keeper import Keeper
from sksd.proxy.spin_up import SpinningUp
from sksd.proxy.workers import Silence, Told
from sksd.wire import messages
from sksd.wire.calls import tell
from sksd.wire.changes import CancelTask, Changed, Changing, Plan
from sksd.wire.names import PROTOCOL

#: Seconds that a call may take in the keeper beyond what the kernel itself is given.
_MARGIN: Final = 25.0


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
    """One daemon's connection. `configure` takes what its configuration says, `listen` who is told of events;
    `ticket` makes an engine's ticket, or nothing where the daemon does that itself.

    What concerns an engine that runs goes on to the keeper.
    """

    def __init__(
        self,
        keeper: Keeper,
        catalogue: Catalogue,
        changes: Changes,
        spinning: SpinningUp,
        configure: Callable[[messages.Settings], Awaitable[None]],
        listen: Callable[[pb.RemoteReference], None],
        pid: int,
        ticket: Callable[[str], str],
    ) -> None:
        self._keeper = keeper
        self._catalogue = catalogue
        self._changes = changes
        self._spinning = spinning
        self._configure = configure
        self._listen = listen
        self._pid = pid
        self._ticket = ticket

    async def remote_settings(self, request: dict[str, Any], listener: pb.RemoteReference) -> messages.ProxyInfo:
        """The first call: what the configuration says. `listener` is told of events from then on."""
        await self._configure(messages.read(messages.Settings, request))
        self._listen(listener)
        found = await self.remote_engines({})
        return messages.ProxyInfo(protocol=PROTOCOL, version=__version__, pid=self._pid, engines=found.engines)

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
        outcome = await self._spinning.spin_up(messages.read(messages.SpinUp, request), _told(observer))
        if outcome.ticket is not None:
            outcome.ticket.ticket = self._ticket(outcome.ticket.engine)
        return outcome

    async def remote_engines(self, request: dict[str, Any]) -> messages.Engines:
        """All engines, oldest first."""
        return await self._keeper.call("engines", messages.Nothing(), messages.Engines)

    async def remote_info(self, request: dict[str, Any]) -> messages.Engine:
        """One engine."""
        return await self._keeper.call("info", messages.read(messages.EngineQuery, request), messages.Engine)

    async def remote_interrupt(self, request: dict[str, Any]) -> messages.Engine:
        """SIGINT."""
        return await self._keeper.call("interrupt", messages.read(messages.EngineQuery, request), messages.Engine)

    async def remote_restart(self, request: dict[str, Any]) -> messages.Engine:
        """A new process in the old one's place."""
        query = messages.read(messages.Shutdown, request)
        return await self._keeper.call("restart", query, messages.Engine, timeout=query.grace + 60 + _MARGIN)

    async def remote_shutdown(self, request: dict[str, Any]) -> messages.Engine:
        """End it; one that is dead is listed no longer."""
        query = messages.read(messages.Shutdown, request)
        return await self._keeper.call("shutdown", query, messages.Engine, timeout=query.grace + _MARGIN)

    async def remote_log(self, request: dict[str, Any]) -> messages.LogPage:
        """A page of an engine's log."""
        return await self._keeper.call("log", messages.read(messages.LogQuery, request), messages.LogPage)

    async def remote_ticket(self, request: dict[str, Any]) -> messages.Ticket:
        """What a link's local end needs to know."""
        query = messages.read(messages.EngineQuery, request)
        ticket = await self._keeper.call("ticket", query, messages.Ticket)
        ticket.ticket = self._ticket(ticket.engine)
        return ticket


class Listeners:
    """The daemons that are told of every engine's new state."""

    def __init__(self) -> None:
        self._listeners: set[pb.RemoteReference] = set()

    def add(self, listener: pb.RemoteReference) -> None:
        """Tell it until its connection is gone."""
        self._listeners.add(listener)
        listener.broker.notifyOnDisconnect(lambda: self._listeners.discard(listener))

    def environments_changed(self) -> None:
        """Called when a listing of the environments is another than it was."""
        self.told(messages.Event(event="environments"))

    def told(self, event: messages.Event) -> None:
        """Called with each event of the keeper."""
        for listener in list(self._listeners):
            tell(listener, "event", event)
