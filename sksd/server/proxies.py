"""A person's proxy, as the daemon sees it: reached when first needed, listened to, reached again when it was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from twisted.internet import defer, task
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.spread import pb

from sksd import __version__
from sksd.errors import ProxyFailed, ProxyLost, SksdError
from sksd.interfaces import IGate
from sksd.wire import messages
from sksd.wire.broker import Remote
from sksd.wire.calls import Caller
from sksd.wire.names import DEAD, PROTOCOL
from sksd.wire.reaching import Connecting
from sksd.wire.who import guest_of

log = Logger()

#: Seconds a proxy has to answer its first call.
FIRST_CALL: Final = 15.0
#: Seconds before each attempt to have a proxy again for engines whose proxy was lost.
AGAIN: Final = (0.0, 0.5, 2.0, 10.0)
#: Seconds a proxy without engines is held on a shared host after its user's last login is over.
LET_GO: Final = 60.0
#: Of a guest, of whom nothing is to stay.
LET_GO_GUEST: Final = 5.0

M = TypeVar("M", bound=msgspec.Struct)


class _Listener(Remote):
    def __init__(self, told: Callable[[messages.Event], None]) -> None:
        self._told = told

    async def remote_event(self, request: dict[str, Any]) -> messages.Nothing:
        self._told(messages.read(messages.Event, request))
        return messages.Nothing()


class UserProxy:
    """One user's proxy. `changed` is called whenever the number of running engines may be another."""

    def __init__(
        self, reactor: Any, gate: IGate, user: str, settings: messages.Settings, changed: Callable[[], None]
    ) -> None:
        self.user = user
        #: Called with each Event of the proxy: the avatars of this user.
        self.listeners: set[Callable[[messages.Event], None]] = set()
        #: Called with each Event, whether or not anybody is logged in.
        self.on_event: Callable[[messages.Event], None] = lambda _: None
        #: Ids of the engines that run, as far as the proxy has told.
        self.running: set[str] = set()
        self._reactor = reactor
        self._gate = gate
        self._settings = settings
        self._changed = changed
        self._root: pb.RemoteReference | None = None
        self._reaching: list[defer.Deferred[None]] | None = None
        self._stopping = False
        self._resting = False
        self._letting_go: Any = None
        self._caller = Caller(reactor, "the host", gone=ProxyLost, user=user)

    async def call(
        self,
        name: str,
        request: msgspec.Struct,
        answer: type[M],
        *references: pb.Referenceable | None,
        timeout: float = 30.0,
    ) -> M:
        """A call of the proxy's root, which is reached (and started) first if need be.

        Raises what the proxy raised, ProxyFailed when it cannot be had, ProxyLost when it ended meanwhile.
        """
        root = await self.reach()
        return await self._caller.call(root, name, request, answer, *references, timeout=timeout)

    async def reach(self) -> pb.RemoteReference:
        """The proxy's root; callers that come while it is being reached share one attempt."""
        if self._root is not None:
            return self._root
        if self._reaching is not None:
            turn: defer.Deferred[None] = defer.Deferred()
            self._reaching.append(turn)
            await turn
            return await self.reach()
        self._reaching = []
        try:
            return await self._reach()
        finally:
            waiting, self._reaching = self._reaching, None
            for turn in waiting:
                turn.callback(None)

    async def _reach(self) -> pb.RemoteReference:
        factory = Connecting()
        try:
            endpoint = await self._gate.endpoint(self.user)
            connected: Any = await endpoint.connect(factory)
        except SksdError:
            raise
        except Exception as error:
            raise ProxyFailed(user=self.user, problem=str(error) or type(error).__name__) from None
        try:
            broker = await factory.ready.addTimeout(FIRST_CALL, self._reactor)
            root = broker.remoteForName("root")
            info = await self._caller.call(
                root, "settings", self._settings, messages.ProxyInfo, _Listener(self._told), timeout=FIRST_CALL
            )
        except BaseException as error:
            # A proxy that does not answer, or is of a version that refuses us: each attempt would leave one behind.
            connected.transport.abortConnection()
            if isinstance(error, SksdError) or not isinstance(error, Exception):
                raise
            problem = "it does not answer" if isinstance(error, defer.TimeoutError) else str(error)
            raise ProxyFailed(user=self.user, problem=problem) from None
        if info.protocol != PROTOCOL or info.version != __version__:
            log.info(
                "the proxy of {user} is of version {theirs}, this is {ours}",
                user=self.user,
                theirs=info.version,
                ours=__version__,
            )
        broker.notifyOnDisconnect(self._lost)
        self._broker, self._root = broker, root
        self.running = {engine.id for engine in info.engines if engine.state != DEAD}
        self._changed()
        return root

    async def link_endpoint(self) -> IStreamClientEndpoint:
        """Where a link to one of this user's engines goes on."""
        await self.reach()
        endpoint: IStreamClientEndpoint = await self._gate.endpoint(self.user)
        return endpoint

    def disconnect(self) -> None:
        """Called when the daemon stops; a proxy without engines then ends by itself."""
        self._stopping = True
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
        if self._root is not None:
            self._broker.transport.loseConnection()

    def rest(self) -> None:
        """Called on a shared host when a login is over: a proxy that nobody needs is let go of, and then ends."""
        self._resting = True
        if self._unneeded() and self._letting_go is None:
            self._letting_go = self._reactor.callLater(LET_GO_GUEST if guest_of(self.user) else LET_GO, self._let_go)

    @property
    def over(self) -> bool:
        """Nobody is logged in as this user, and nothing is known to run."""
        return self._root is None and self._reaching is None and not self.listeners and not self.running

    def _unneeded(self) -> bool:
        return self._root is not None and not self.listeners and not self.running

    def _let_go(self) -> None:
        self._letting_go = None
        if self._unneeded():
            self._root = None
            self._broker.dontNotifyOnDisconnect(self._lost)
            self._broker.transport.loseConnection()

    def _told(self, event: messages.Event) -> None:
        if event.engine is not None:
            before = len(self.running)
            (self.running.discard if event.engine.state == DEAD else self.running.add)(event.engine.id)
            if len(self.running) != before:
                self._changed()
            if self._resting:
                self.rest()
        self.on_event(event)
        for listener in list(self.listeners):
            listener(event)

    def _lost(self) -> None:
        self._root = None
        had_engines, self.running = bool(self.running), set()
        if self._stopping:
            return
        log.info("the proxy of {user} is gone", user=self.user)
        self._changed()
        if had_engines:
            # A new one adopts the engines, so that their deaths go on being told.
            defer.ensureDeferred(self._reach_again())

    async def _reach_again(self) -> None:
        # The socket of one that was killed may still answer while the machine takes it down.
        for pause in AGAIN:
            await task.deferLater(self._reactor, pause)
            if self._stopping or self._root is not None:
                return
            try:
                await self.reach()
                return
            except SksdError as error:
                log.error("{why}", why=str(error))
