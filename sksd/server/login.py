"""The first object of a connection: `hello`, `login` and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import frozen
from twisted.cred import checkers, credentials, portal
from twisted.internet import defer, task
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.spread import pb
from zope.interface import Interface, implementer

from sksd.errors import LoginRefused, NotAllowed, ProtocolMismatch
from sksd.interfaces import IAvatar, IGate
from sksd.wire import messages
from sksd.wire.broker import LimitedBroker, Remote
from sksd.wire.names import PROTOCOLS

log = Logger()

#: A wrong password costs this many seconds, the same for everybody.
REFUSAL_DELAY: Final = 0.5
#: Wrong passwords on one connection before it is dropped.
ATTEMPTS: Final = 3


class IMethodCredentials(credentials.ICredentials):
    """A login method's name with the user and the secret it needs."""


@implementer(IMethodCredentials)
@frozen
class MethodCredentials:
    """What a `Login` brought, and from where. The secret never shows in a repr."""

    method: str
    user: str
    password: str
    peer: IAddress | None = None

    def __repr__(self) -> str:
        return f"MethodCredentials({self.method!r}, {self.user!r})"


@implementer(checkers.ICredentialsChecker)
class GateChecker:
    """Asks the gate; called by the Portal."""

    credentialInterfaces = (IMethodCredentials,)

    def __init__(self, gate: IGate) -> None:
        self._gate = gate

    def requestAvatarId(self, credentials: Any) -> defer.Deferred[Any]:
        """Fires with the account's name, or fails with LoginRefused."""
        given: MethodCredentials = credentials
        return defer.ensureDeferred(self._gate.check(given.method, given.user, given.password, given.peer))


class LoginRoot(Remote):
    """One connection before login, from `peer`. `welcome()` makes the answer to `hello`; `on_login` is told once it
    is over."""

    def __init__(
        self,
        broker: LimitedBroker,
        clock: Any,
        portal: portal.Portal,
        welcome: Callable[[int], messages.Welcome],
        on_login: Callable[[], None],
        peer: IAddress | None = None,
    ) -> None:
        self._broker = broker
        self._peer = peer
        self._clock = clock
        self._portal = portal
        self._welcome = welcome
        self._on_login = on_login
        self._failures = 0
        self._trying = False
        self._done = False

    async def remote_hello(self, request: dict[str, Any]) -> messages.Welcome:
        """Agree on a protocol version; raises ProtocolMismatch when there is none that both know."""
        hello = messages.read(messages.Hello, request)
        common = set(hello.protocols) & set(PROTOCOLS)
        if not common:
            raise _mismatch(hello.protocols)
        return self._welcome(max(common))

    async def remote_login(
        self, request: dict[str, Any], mind: pb.RemoteReference | None = None
    ) -> tuple[messages.LoggedIn, Remote]:
        """Check credentials; the avatar comes beside the answer, and is logged out with the connection.

        One at a time: guesses that are sent together must not share one delay, nor come before they are counted.
        """
        login = messages.read(messages.Login, request)
        if login.protocol not in PROTOCOLS:
            raise _mismatch([login.protocol])
        if self._done:
            raise NotAllowed(problem="this connection has logged in already")
        if self._trying or self._failures >= ATTEMPTS:
            raise NotAllowed(problem="one login at a time, and three at the most on a connection")
        self._trying = True
        try:
            return await self._login(login, mind)
        finally:
            self._trying = False

    async def _login(
        self, login: messages.Login, mind: pb.RemoteReference | None
    ) -> tuple[messages.LoggedIn, Remote]:
        given = MethodCredentials(login.method, login.user, login.password, self._peer)
        try:
            _, made, logout = await self._portal.login(given, mind, IAvatar)
        except LoginRefused:
            self._failures += 1
            await task.deferLater(self._clock, REFUSAL_DELAY)
            if self._failures >= ATTEMPTS:
                self._clock.callLater(0.1, self._broker.transport.loseConnection)
            raise
        if self._broker.disconnected:
            logout()
            raise NotAllowed(problem="the connection is gone")
        self._done = True
        avatar: Any = made
        self._broker.logged_in()
        self._on_login()
        self._broker.notifyOnDisconnect(logout)
        return messages.LoggedIn(user=avatar.user), avatar


def _mismatch(theirs: list[int]) -> ProtocolMismatch:
    # The sentence is read at the other end, where this host is `theirs`.
    return ProtocolMismatch(theirs=str(list(PROTOCOLS)), ours=str(theirs))


@implementer(portal.IRealm)
class Realm:
    """Makes avatars. `make(user, mind)` answers with an avatar that has `logout()`."""

    def __init__(self, make: Callable[[str, Any], Any]) -> None:
        self._make = make

    def requestAvatar(
        self, avatarId: bytes | tuple[()] | str, mind: object, *interfaces: type[Interface]
    ) -> tuple[type[Interface], Any, Callable[[], None]]:
        """Called by the Portal after the checker said yes."""
        if IAvatar not in interfaces:
            raise NotImplementedError("sksd has one kind of avatar")
        avatar = self._make(str(avatarId), mind)
        return IAvatar, avatar, avatar.logout
