"""A person's connection to a host: everything the avatar offers, as coroutines.

Runs under any Twisted reactor, so the command line and the Spyder plugin share it.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec
from twisted.internet import defer, endpoints, error, protocol, threads
from twisted.python.failure import Failure
from twisted.spread import pb

from sksd import __version__
from sksd.client import sshkeys
from sksd.client.tls import Creator, client_refused
from sksd.errors import HostGone, LoginRefused, SksdError, SshKeyRefused, TimedOut, Unreachable
from sksd.wire import changes, messages, sshkey
from sksd.wire.broker import BrokerFactory, LimitedBroker, Remote
from sksd.wire.calls import CALL_TIMEOUT, Caller
from sksd.wire.handshake import AfterHandshake, channel_binding
from sksd.wire.names import ALPN_LINK, ALPN_PB, METHOD_SSH_KEY

#: Seconds to connect, and again for TLS and the first call.
CONNECT_TIMEOUT: Final = 10.0
#: Seconds that sizes of environments may take beside the listing itself.
DETAIL_LIMIT: Final = 60.0
#: Seconds to hang up politely.
CLOSE_TIMEOUT: Final = 2.0

P = TypeVar("P", bound=protocol.Protocol)
M = TypeVar("M", bound=msgspec.Struct)


class Route(Protocol):
    """How to reach one host (`sksd.client.hosts.Target` is one). `socket`: the path of a UNIX socket, used in place
    of address and port unless empty."""

    name: str
    address: str
    port: int
    socket: str

    def creator(self, alpn: bytes) -> Creator:
        """TLS for one connection; raises KnownHostsBroken or CertificateRefused."""


async def _open(reactor: Any, route: Route, alpn: bytes, build: Callable[[], P], timeout: float) -> P:
    """TCP and TLS to `route`; returns `build()` once the handshake is over. Raises Unreachable, TimedOut and the
    errors of the certificate."""
    creator = route.creator(alpn)
    place = route.socket or f"{route.address}:{route.port}"
    where: Any
    if route.socket:
        where = endpoints.UNIXClientEndpoint(reactor, route.socket, timeout=timeout)
    else:
        where = endpoints.HostnameEndpoint(reactor, route.address, route.port, timeout=timeout)
    shaken: defer.Deferred[P] = defer.Deferred()

    def choose(_: bytes | None) -> protocol.Protocol | None:
        # That a pin cannot be remembered is found out only now.
        if creator.problem is not None:
            return None
        inner = build()
        # The protocol must be connected before anybody uses it.
        reactor.callLater(0, shaken.callback, inner)
        return inner

    def lost(reason: Failure) -> None:
        if not shaken.called:
            shaken.errback(Failure(creator.explain(reason)))

    factory = protocol.Factory.forProtocol(lambda: AfterHandshake(choose, lost))
    factory.noisy = False
    endpoint = endpoints.wrapClientTLS(cast(Any, creator), where)
    try:
        connected = await endpoint.connect(factory)
    except error.ConnectError as failed:
        raise Unreachable(host=route.name, address=place, problem=_reason(failed)) from None
    except (error.DNSLookupError, ValueError):
        raise Unreachable(host=route.name, address=place, problem="no such name") from None
    try:
        return await shaken.addTimeout(timeout, reactor)
    except defer.TimeoutError:
        cast(Any, connected).transport.abortConnection()
        raise TimedOut(host=route.name, seconds=f"{timeout:g}") from None


def _reason(failed: error.ConnectError) -> str:
    if isinstance(failed, error.ConnectionRefusedError):
        return "connection refused"
    if isinstance(failed, error.TimeoutError):
        return "no answer"
    return (failed.args[0] if failed.args and isinstance(failed.args[0], str) else "") or "no route"


class _Mind(Remote):
    def __init__(self, told: Callable[[messages.Event], None]) -> None:
        self._told = told

    async def remote_event(self, request: dict[str, Any]) -> messages.Nothing:
        self._told(messages.read(messages.Event, request))
        return messages.Nothing()


class _Observer(Remote):
    def __init__(
        self, told: Callable[[messages.Progress], None], plan: Callable[[changes.Plan], None] = lambda _: None
    ) -> None:
        self._told = told
        self._plan = plan

    async def remote_plan(self, request: dict[str, Any]) -> messages.Nothing:
        self._plan(messages.read(changes.Plan, request))
        return messages.Nothing()

    async def remote_progress(self, request: dict[str, Any]) -> messages.Nothing:
        self._told(messages.read(messages.Progress, request))
        return messages.Nothing()


class Connection:
    """A connection to a host before login: `welcome` is what the host said to hello."""

    def __init__(self, reactor: Any, route: Route, broker: LimitedBroker, timeout: float) -> None:
        self.route = route
        self.welcome: messages.Welcome
        self._reactor = reactor
        self._broker = broker
        self._root = broker.remoteForName("root")
        self._caller = Caller(reactor, route.name, timeout=timeout)

    async def _hello(self, timeout: float) -> None:
        hello = messages.Hello(version=__version__)
        self.welcome = await self._caller.call(self._root, "hello", hello, messages.Welcome, timeout=timeout)

    async def login(self, user: str, password: str, method: str = "password") -> Session:
        """Log in; raises LoginRefused, LoginMethod, NotAllowed. After three refusals the host hangs up."""
        request = messages.Login(method=method, user=user, password=password)
        return await self._login(request, lambda connection: connection.login(user, password, method))

    async def login_by_key(self, user: str, signers: list[sshkeys.Signer]) -> Session:
        """Log in with any of these SSH keys; raises SshKeyRefused, LoginMethod, NotAllowed."""
        channel = channel_binding(self._broker.transport)
        signed = sshkey.message(user, channel, base64.b64decode(self.welcome.nonce))
        pool = self._reactor.getThreadPool()
        proofs = await threads.deferToThreadPool(self._reactor, pool, sshkeys.prove, signers, signed)
        if not proofs:
            raise SshKeyRefused(host=self.route.name)
        try:
            request = messages.Login(method=METHOD_SSH_KEY, user=user, keys=proofs)
            return await self._login(request, lambda connection: connection.login_by_key(user, signers))
        except LoginRefused:
            raise SshKeyRefused(host=self.route.name) from None

    async def _login(self, request: messages.Login, again: Again) -> Session:
        session = Session(self._reactor, self.route, self._broker, self._caller, self.welcome, again)
        request.protocol = self.welcome.protocol
        logged_in, avatar = await self._caller.call_for(
            self._root, "login", request, messages.LoggedIn, _Mind(session._told)
        )
        session._begin(logged_in.user, cast(pb.RemoteReference, avatar))
        return session

    def abort(self) -> None:
        """Drop it at once."""
        self._broker.transport.abortConnection()

    async def close(self) -> None:
        """Hang up; returns when the connection is gone."""
        await _close(self._reactor, self._broker)


async def connect(reactor: Any, route: Route, timeout: float = CALL_TIMEOUT) -> Connection:
    """Connect to a host and say hello. `timeout`: seconds for this (CONNECT_TIMEOUT at most), and for each later
    call of the session.

    Raises Unreachable, TimedOut, NotSksd, ProtocolMismatch, ClientCertificate and the errors of the certificate.
    """
    agreed: defer.Deferred[None] = defer.Deferred()
    brokers = BrokerFactory(on_ready=lambda _: agreed.callback(None))

    def build() -> LimitedBroker:
        broker = brokers.build(True, trusted=True)

        def gone() -> None:
            if not agreed.called:
                gone_for = HostGone(host=route.name, problem=broker.dropped or "it closed it")
                agreed.errback(Failure(client_refused(broker.lost, route.name) or gone_for))

        broker.notifyOnDisconnect(gone)
        return broker

    soon = min(timeout, CONNECT_TIMEOUT)
    broker = await _open(reactor, route, ALPN_PB, build, soon)
    try:
        await agreed.addTimeout(soon, reactor)
        connection = Connection(reactor, route, broker, timeout)
        await connection._hello(soon)
    except defer.TimeoutError:
        broker.transport.abortConnection()
        raise TimedOut(host=route.name, seconds=f"{soon:g}") from None
    except SksdError:
        broker.transport.abortConnection()
        raise
    return connection


async def open_link(reactor: Any, route: Route, build: Callable[[], P], timeout: float = CONNECT_TIMEOUT) -> P:
    """Connect for a link; returns `build()`, the protocol that says HELLO (docs/link.md). Raises as `connect`."""
    return await _open(reactor, route, ALPN_LINK, build, timeout)


async def _close(reactor: Any, broker: LimitedBroker) -> None:
    if broker.disconnected:
        return
    gone: defer.Deferred[None] = defer.Deferred()
    broker.notifyOnDisconnect(lambda: gone.callback(None))
    broker.transport.loseConnection()
    # TLS waits for the other side's goodbye, which one that is gone never says.
    limit = reactor.callLater(CLOSE_TIMEOUT, broker.transport.abortConnection)
    await gone
    if limit.active():
        limit.cancel()


#: Logs in on another connection to the same host, with the same credentials.
Again = Callable[[Connection], Awaitable["Session"]]


class Session:
    """A logged-in connection. Closing it detaches; engines go on. When the connection is gone, the next call makes
    another.

    `on_event` is called with each `messages.Event` (an engine's new state, another listing), `on_gone` once when the
    connection has ended in whatever way.
    """

    def __init__(
        self,
        reactor: Any,
        route: Route,
        broker: LimitedBroker,
        caller: Caller,
        welcome: messages.Welcome,
        again: Again,
    ) -> None:
        self.route = route
        self.welcome = welcome
        self.user = ""
        self.on_event: Callable[[messages.Event], None] = lambda _: None
        self.on_gone: Callable[[], None] = lambda: None
        self._reactor = reactor
        self._broker = broker
        self._caller = caller
        self._again = again
        self._avatar: pb.RemoteReference
        self._returning: defer.Deferred[None] | None = None
        self._closed = False

    async def _present(self) -> pb.RemoteReference:
        """The avatar, on a connection that is not known to be gone. Raises what `connect` and `login` raise."""
        if not self._broker.disconnected or self._closed:
            return self._avatar
        if self._returning is not None:
            await _after(self._returning)
            return await self._present()
        self._returning = defer.Deferred()
        try:
            connection = await connect(self._reactor, self.route, self._caller.timeout)
            try:
                session = await self._again(connection)
            except BaseException:
                connection.abort()
                raise
            session.on_event = self._told
            session.on_gone = lambda: self.on_gone()
            self._broker, self._caller, self._avatar = session._broker, session._caller, session._avatar
        finally:
            returned, self._returning = self._returning, None
            returned.callback(None)
        return self._avatar

    async def _call(
        self,
        name: str,
        request: msgspec.Struct,
        answer: type[M],
        *references: pb.Referenceable | None,
        timeout: float | None = None,
    ) -> M:
        avatar = await self._present()
        return await self._caller.call(avatar, name, request, answer, *references, timeout=timeout)

    def _begin(self, user: str, avatar: pb.RemoteReference) -> None:
        self.user = user
        self._avatar = avatar
        self._broker.notifyOnDisconnect(lambda: self.on_gone())

    def _told(self, event: messages.Event) -> None:
        self.on_event(event)

    async def host(self) -> messages.Host:
        """What the host is and offers."""
        return await self._call("host", messages.Nothing(), messages.Host)

    async def environments(self, accepts: list[messages.Accept] | None = None) -> list[messages.Environment]:
        """The environments there, judged by what this front end accepts (None: any known kernel)."""
        return (await self.listing(messages.EnvironmentsQuery(accepts=accepts or []))).environments

    async def listing(self, query: messages.EnvironmentsQuery) -> messages.Environments:
        """The environments there, and the folders that did not answer."""
        more = DETAIL_LIMIT if query.detail else 0.0
        timeout = self._caller.timeout + more
        return await self._call("environments", query, messages.Environments, timeout=timeout)

    async def change(
        self,
        wish: changes.Change | changes.RepairEnvironments,
        progress: Callable[[messages.Progress], None] = lambda _: None,
        plan: Callable[[changes.Plan], None] = lambda _: None,
    ) -> changes.Changed:
        """Make, change, remove, clone, rename, export or list an environment: whatever `wish` asks for.

        `progress` is called while it takes its time, `plan` once before anything is changed. It goes on when this
        session ends; `cancel(wish.task)` undoes it, and it then raises Cancelled.
        """
        observer = _Observer(progress, plan)
        call = changes.call_of(wish)
        return await self._call(
            call, wish, changes.Changed, observer, timeout=changes.CHANGE_LIMIT + self._caller.timeout
        )

    async def cancel(self, task: str) -> None:
        """Undo and end a change; its own call answers once that is done. Raises NoSuchTask."""
        await self._call("cancel", changes.CancelTask(task=task), messages.Nothing)

    async def spin_up(
        self, wish: messages.SpinUp, progress: Callable[[messages.Progress], None] | None = None
    ) -> messages.Outcome:
        """Start an engine; one of the five outcomes. `progress` is called while it takes its time."""
        observer = _Observer(progress) if progress is not None else None
        timeout = wish.timeout + self._caller.timeout
        if wish.create or wish.mend:
            timeout += changes.CHANGE_LIMIT
        outcome = await self._call(
            "spin_up", wish, messages.Outcome, observer, timeout=timeout
        )
        if outcome.code is not None:
            # The host does not know what this person calls it.
            sent = {"code": outcome.code, "message": outcome.message, "fields": outcome.fields}
            outcome.message = str(self._caller.error(sent))
        return outcome

    async def engines(self) -> list[messages.Engine]:
        """This person's engines there, oldest first."""
        answer = await self._call("engines", messages.Nothing(), messages.Engines)
        return answer.engines

    async def engine(self, engine: str) -> EngineSession:
        """One engine by its whole id; raises NoSuchEngine."""
        found = EngineSession(self, engine)
        await found.reference()
        return found

    async def _engine(self, engine: str) -> pb.RemoteReference:
        query = messages.EngineQuery(engine=engine)
        _, reference = await self._caller.call_for(await self._present(), "engine", query, messages.Engine)
        return cast(pb.RemoteReference, reference)

    async def ping(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Raises TimedOut or HostGone when the host does not answer."""
        await self._call("ping", messages.Nothing(), messages.Nothing, timeout=timeout)

    def abort(self) -> None:
        """Drop the connection at once, for a host that does not answer; the next call makes another."""
        if not self._broker.disconnected:
            self._broker.transport.abortConnection()

    async def close(self) -> None:
        """Hang up; returns when the connection is gone."""
        self._closed = True
        await _close(self._reactor, self._broker)


async def _after(other: defer.Deferred[None]) -> None:
    """Wait for what several wait for."""
    turn: defer.Deferred[None] = defer.Deferred()
    other.addCallback(lambda _: turn.callback(None))
    await turn


class EngineSession:
    """One engine of a session; like that it outlives its connection."""

    def __init__(self, session: Session, engine: str) -> None:
        self.id = engine
        self._session = session
        self._reference: pb.RemoteReference | None = None

    async def reference(self) -> pb.RemoteReference:
        """What stands for it on the session's present connection. Raises NoSuchEngine."""
        if self._reference is None or self._reference.broker.disconnected:
            self._reference = await self._session._engine(self.id)
        return self._reference

    async def _call(self, name: str, request: Any, answer: type[M], more: float = 0.0) -> M:
        """A call that may take `more` seconds than others."""
        reference = await self.reference()
        caller = self._session._caller
        return await caller.call(reference, name, request, answer, timeout=caller.timeout + more)

    async def info(self) -> messages.Engine:
        """Its state now."""
        return await self._call("info", messages.Nothing(), messages.Engine)

    async def interrupt(self) -> messages.Engine:
        """SIGINT to what it computes."""
        return await self._call("interrupt", messages.Nothing(), messages.Engine)

    async def restart(self, grace: float = 5.0) -> messages.Engine:
        """A new kernel in its place; returns when it is ready. Raises KernelDied, KernelSilent."""
        request = messages.Shutdown(engine=self.id, grace=grace)
        return await self._call("restart", request, messages.Engine, grace + 60)

    async def shutdown(self, grace: float = 5.0) -> messages.Engine:
        """End it; returns when it has ended."""
        request = messages.Shutdown(engine=self.id, grace=grace)
        return await self._call("shutdown", request, messages.Engine, grace + 5)

    async def log(self, offset: int = 0, limit: int = 65536) -> messages.LogPage:
        """A page of its log."""
        request = messages.LogQuery(engine=self.id, offset=offset, limit=limit)
        return await self._call("log", request, messages.LogPage)

    async def ticket(self) -> messages.Ticket:
        """What opens a link to it."""
        return await self._call("ticket", messages.Nothing(), messages.Ticket)
