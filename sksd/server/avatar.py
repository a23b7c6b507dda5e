"""What a logged-in person holds, and what it hands out for each engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

from twisted.spread import pb
from zope.interface import implementer

from sksd.errors import KernelLimit, KernelLimitOfUser, SksdError
from sksd.interfaces import IAvatar
from sksd.server.proxies import UserProxy
from sksd.wire import messages, names
from sksd.wire.broker import Remote
from sksd.wire.calls import tell
from sksd.wire.changes import CHANGE_LIMIT, CancelTask, Changed, Changing, Plan
from sksd.wire.who import account_of, guest_of

#: Seconds that a call may take in the proxy beyond what the kernel itself is given.
_MARGIN = 30.0


class Observer(Remote):
    """Hands a proxy's progress on to the observer that the client gave."""

    def __init__(self, theirs: pb.RemoteReference) -> None:
        self._theirs = theirs

    async def remote_progress(self, request: dict[str, Any]) -> messages.Nothing:
        """Called by the proxy while it works."""
        tell(self._theirs, "progress", messages.read(messages.Progress, request))
        return messages.Nothing()

    async def remote_plan(self, request: dict[str, Any]) -> messages.Nothing:
        """Called by the proxy before it changes an environment."""
        tell(self._theirs, "plan", messages.read(Plan, request))
        return messages.Nothing()


@implementer(IAvatar)
class Avatar(Changing):
    """One login of one person. Logging out detaches; it never ends an engine.

    `describe(user)` makes the answer to `host`; `room()` is what a kernel that starts is within; `over(user)` is
    told when the login is. `ticket(user, engine)` makes a link's ticket, where the proxy did not; `record(event,
    **fields)` writes its audit log.
    """

    def __init__(
        self,
        user: str,
        mind: pb.RemoteReference | None,
        proxy: UserProxy,
        describe: Callable[[str], messages.Host],
        room: Callable[[], AbstractContextManager[None]],
        ticket: Callable[[str, str], str],
        over: Callable[[str], None],
        record: Callable[..., None],
    ) -> None:
        self.user = user
        self._over = over
        self._record = record
        self._mind = mind
        self._by = _origin(mind)
        self._proxy = proxy
        self._describe = describe
        self._room = room
        self._ticket = ticket
        proxy.listeners.add(self._event)

    def logout(self) -> None:
        """Called when the connection is gone."""
        self._proxy.listeners.discard(self._event)
        self._mind = None
        self._over(self.user)

    def _event(self, event: messages.Event) -> None:
        if self._mind is not None:
            tell(self._mind, "event", event)

    async def remote_ping(self, request: dict[str, Any]) -> messages.Nothing:
        """Called by clients that want to know that the daemon lives."""
        return messages.Nothing()

    async def remote_host(self, request: dict[str, Any]) -> messages.Host:
        """What this host is and offers."""
        return self._describe(account_of(self.user))

    async def remote_environments(self, request: dict[str, Any]) -> messages.Environments:
        """The person's environments, read afresh."""
        query = messages.read(messages.EnvironmentsQuery, request)
        return await self._proxy.call("environments", query, messages.Environments)

    async def change(self, call: str, wish: Any, observer: pb.RemoteReference | None) -> Changed:
        """Any of the calls that change an environment; it goes on when the client has gone."""
        relayed = Observer(observer) if observer is not None else None
        changed = await self._proxy.call(call, wish, Changed, relayed, timeout=CHANGE_LIMIT)
        if changed.changed:
            self._record("environment-changed", environment=changed.prefix, change=call)
        return changed

    async def remote_cancel(self, request: dict[str, Any]) -> messages.Nothing:
        """Undo and end a change of this person's."""
        return await self._proxy.call("cancel", messages.read(CancelTask, request), messages.Nothing)

    async def remote_spin_up(
        self, request: dict[str, Any], observer: pb.RemoteReference | None = None
    ) -> messages.Outcome:
        """Start an engine: one of the five outcomes. What the host refuses is an outcome, not an error."""
        wish = messages.read(messages.SpinUp, request)
        relayed = Observer(observer) if observer is not None else None
        timeout = wish.timeout + _MARGIN + (CHANGE_LIMIT if wish.create or wish.mend else 0.0)
        try:
            with self._room():
                outcome = await self._proxy.call("spin_up", wish, messages.Outcome, relayed, timeout=timeout)
        except SksdError as error:
            return messages.Outcome(
                outcome=names.REFUSED, code=error.code, message=str(error), fields=error.fields
            )
        if outcome.outcome == names.STARTED and guest_of(self.user):
            outcome.outcome = names.STARTED_AS_GUEST
        if outcome.engine is not None:
            if outcome.outcome == names.CREATED:
                self._record("environment-changed", environment=outcome.engine.prefix, change="create_environment")
            self._record("engine-started", engine=outcome.engine.id, environment=outcome.engine.prefix)
        if outcome.ticket is not None and not outcome.ticket.ticket:
            outcome.ticket.ticket = self._ticket(self.user, outcome.ticket.engine)
        return outcome

    async def remote_engines(self, request: dict[str, Any]) -> messages.Engines:
        """The person's engines, oldest first."""
        return await self._proxy.call("engines", messages.Nothing(), messages.Engines)

    async def remote_engine(self, request: dict[str, Any]) -> tuple[messages.Engine, Remote]:
        """One engine: its state, and beside it the object to work it with."""
        query = messages.read(messages.EngineQuery, request)
        engine = await self._proxy.call("info", query, messages.Engine)
        return engine, EngineReference(self._proxy, self.user, engine.id, self._ticket, self._record, self._by)


class EngineReference(Remote):
    """One engine in the hands of one login, which comes `by` ("from 10.0.0.7")."""

    def __init__(
        self,
        proxy: UserProxy,
        user: str,
        engine: str,
        ticket: Callable[[str, str], str],
        record: Callable[..., None],
        by: str = "",
    ) -> None:
        self._record = partial(record, engine=engine)
        self._proxy = proxy
        self._user = user
        self._engine = engine
        self._ticket = ticket
        self._by = by

    def _query(self, request: dict[str, Any], shape: type[Any]) -> Any:
        return messages.read(shape, {**request, "engine": self._engine})

    async def remote_info(self, request: dict[str, Any]) -> messages.Engine:
        """The engine's state now."""
        query = self._query(request, messages.EngineQuery)
        return await self._proxy.call("info", query, messages.Engine)

    async def remote_interrupt(self, request: dict[str, Any]) -> messages.Engine:
        """SIGINT to the kernel and what it started."""
        query = self._query(request, messages.EngineQuery)
        return await self._proxy.call("interrupt", query, messages.Engine)

    async def remote_restart(self, request: dict[str, Any]) -> messages.Engine:
        """A new kernel process on the same sockets and key; answers when it is ready."""
        query = self._query(request, messages.Shutdown)
        self._record("engine-restarted")
        return await self._proxy.call("restart", query, messages.Engine, timeout=query.grace + 60 + _MARGIN)

    async def remote_shutdown(self, request: dict[str, Any]) -> messages.Engine:
        """Stop the kernel; answers when it and all it started have ended."""
        query = self._query({**request, "by": self._by}, messages.Shutdown)
        self._record("engine-stopped")
        return await self._proxy.call("shutdown", query, messages.Engine, timeout=query.grace + _MARGIN)

    async def remote_log(self, request: dict[str, Any]) -> messages.LogPage:
        """A page of what the kernel process wrote to its own stdout and stderr."""
        query = self._query(request, messages.LogQuery)
        return await self._proxy.call("log", query, messages.LogPage)

    async def remote_ticket(self, request: dict[str, Any]) -> messages.Ticket:
        """What opens a link to this engine."""
        query = self._query(request, messages.EngineQuery)
        ticket = await self._proxy.call("ticket", query, messages.Ticket)
        ticket.ticket = ticket.ticket or self._ticket(self._user, self._engine)
        return ticket


def _origin(mind: pb.RemoteReference | None) -> str:
    """Where a login comes from, for people; nothing where the client left no reference behind."""
    if mind is None:
        return ""
    transport = mind.broker.transport
    there, here = transport.getPeer(), transport.getHost()
    address = str(getattr(there, "host", "")).removeprefix("::ffff:")
    if not address or there.host == here.host or ip_address(address.partition("%")[0]).is_loopback:
        return "from this machine"
    return f"from {address}"


class Room:
    """How many more kernels this host takes. Those that are just starting count, or many at once would all fit.

    `running()` answers how many run, by account.
    """

    def __init__(self, limit: int, running: Callable[[], Counter[str]]) -> None:
        self._limit = limit
        self._running = running
        self._starting: Counter[str] = Counter()

    @contextmanager
    def taken(self, account: str, limit: int | None) -> Iterator[None]:
        """A place for one that is being started, from now to the end of the block. `limit`: the account's own.
        Raises KernelLimit, KernelLimitOfUser."""
        taken = self._running() + self._starting
        if limit is not None and taken[account] >= limit:
            raise KernelLimitOfUser(limit=limit)
        if taken.total() >= self._limit:
            raise KernelLimit(limit=self._limit)
        self._starting[account] += 1
        try:
            yield
        finally:
            self._starting[account] -= 1
