"""A person's proxy, as the daemon sees it: reached when first needed, listened to, reached again when it was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from sksd import __version__
from sksd.interfaces import IGate
from sksd.wire import messages
from sksd.wire.names import DEAD, PROTOCOL
from sksd.wire.reaching import Reached
from sksd.wire.who import guest_of

log = Logger()

#: Seconds a proxy without engines is held on a shared host after its user's last login is over.
LET_GO: Final = 60.0
#: Of a guest, of whom nothing is to stay.
LET_GO_GUEST: Final = 5.0


class UserProxy(Reached):
    """One user's proxy. `changed` is called whenever the number of running engines may be another."""

    def __init__(
        self, reactor: Any, gate: IGate, user: str, settings: messages.Settings, changed: Callable[[], None]
    ) -> None:
        super().__init__(reactor, user, settings)
        #: Called with each Event of the proxy: the avatars of this user.
        self.listeners: set[Callable[[messages.Event], None]] = set()
        #: Called with each Event, whether or not anybody is logged in.
        self.on_event: Callable[[messages.Event], None] = lambda _: None
        #: Ids of the engines that run, as far as the proxy has told.
        self.running: set[str] = set()
        self._gate = gate
        self._changed = changed
        self._resting = False
        self._letting_go: Any = None

    async def endpoint(self) -> IStreamClientEndpoint:
        """Where it is, as the gate says."""
        endpoint: IStreamClientEndpoint = await self._gate.endpoint(self.user)
        return endpoint

    def _greeted(self, info: messages.ProxyInfo) -> None:
        if info.protocol != PROTOCOL or info.version != __version__:
            log.info(
                "the proxy of {user} is of version {theirs}, this is {ours}",
                user=self.user,
                theirs=info.version,
                ours=__version__,
            )
        self.running = {engine.id for engine in info.engines if engine.state != DEAD}
        self._changed()

    async def link_endpoint(self) -> IStreamClientEndpoint:
        """Where a link to one of this user's engines goes on."""
        await self.reach()
        return await self.endpoint()

    def disconnect(self) -> None:
        """Called when the daemon stops; a proxy without engines then ends by itself."""
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
        super().disconnect()

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

    def _gone(self) -> bool:
        had_engines, self.running = bool(self.running), set()
        if not self._stopping:
            log.info("the proxy of {user} is gone", user=self.user)
            self._changed()
        # A new one knows of the engines, so that their deaths go on being told.
        return had_engines
