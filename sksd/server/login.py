"""The first object of a connection: `hello`, `login` and nothing else."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import msgspec
from attrs import frozen
from twisted.cred import checkers, credentials, portal
from twisted.internet import defer, task
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.spread import pb
from zope.interface import Interface, implementer

from sksd.errors import LoginRefused, NotAllowed, ProtocolMismatch, SksdError, TooManyConnections, TooManyFailures
from sksd.interfaces import IAvatar, IGate
from sksd.server.audit import Audit
from sksd.server.door import Visit
from sksd.server.throttle import CAP, Throttle
from sksd.wire import messages
from sksd.wire.broker import LimitedBroker, Remote
from sksd.wire.handshake import channel_binding
from sksd.wire.names import METHOD_SSH_KEY, PROTOCOLS
from sksd.wire.sshkey import Attempt
from sksd.wire.who import account_of, guest_of

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


@frozen
class Mind:
    """What the Realm learns of a login besides its user: the client's reference that is told of events, and
    `record(event, **fields)` for what this login does (sksd.server.audit)."""

    reference: pb.RemoteReference | None
    record: Callable[..., None]


class LoginRoot(Remote):
    """One connection before login. `welcome()` makes the answer to `hello`; `visit` is told once it is over.

    Where the secret is `guessable`, an attempt waits for its turn before it is checked. Where it is not, only a
    refusal waits, so that nobody on this machine can keep its owner waiting.
    """

    def __init__(
        self,
        broker: LimitedBroker,
        clock: Any,
        portal: portal.Portal,
        welcome: Callable[[int], Awaitable[messages.Welcome]],
        visit: Visit,
        throttle: Throttle,
        audit: Audit,
        guessable: bool = True,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._portal = portal
        self._welcome = welcome
        self._visit = visit
        self._throttle = throttle
        self._audit = audit
        self._guessable = guessable
        # Nobody knows it who has not said hello.
        self._nonce = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
        self._failures = 0
        self._trying = False
        self._done = False

    async def remote_hello(self, request: dict[str, Any]) -> messages.Welcome:
        """Agree on a protocol version; raises ProtocolMismatch when there is none that both know."""
        hello = messages.read(messages.Hello, request)
        common = set(hello.protocols) & set(PROTOCOLS)
        if not common:
            raise _mismatch(hello.protocols)
        welcome = await self._welcome(max(common))
        self._nonce = welcome.nonce
        return welcome

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
        given = MethodCredentials(login.method, login.user, self._secret(login), self._visit.peer)
        identity = secrets.token_hex(8)
        record = partial(
            self._audit.record, login=identity, user=login.user, address=self._visit.address, method=login.method
        )
        wait = self._throttle.attempt(self._clock.seconds(), self._visit.address, login.user)
        try:
            if self._guessable:
                await self._turn(wait)
            _, made, logout = await self._portal.login(given, Mind(mind, record), IAvatar)
        except SksdError as error:
            record("login-refused", port=self._visit.port, reason=error.code)
            if isinstance(error, LoginRefused):
                await self._refused(login, 0.0 if self._guessable else CAP if wait is None else wait)
            raise
        if self._broker.disconnected:
            logout()
            raise NotAllowed(problem="the connection is gone")
        avatar: Any = made
        try:
            self._visit.welcome(account_of(avatar.user))
        except TooManyConnections:
            logout()
            raise
        self._done = True
        self._broker.logged_in()
        record("login", user=avatar.user, port=self._visit.port)
        self._broker.notifyOnDisconnect(logout)
        self._broker.notifyOnDisconnect(lambda: record("logout", user=avatar.user))
        return messages.LoggedIn(user=account_of(avatar.user), guest=bool(guest_of(avatar.user))), avatar

    def _secret(self, login: messages.Login) -> str:
        """What the gate is given to check."""
        if login.method != METHOD_SSH_KEY:
            return login.password
        channel = base64.b64encode(channel_binding(self._broker.transport)).decode("ascii")
        attempt = Attempt(channel=channel, nonce=self._nonce, address=self._visit.address, keys=login.keys)
        return msgspec.json.encode(attempt).decode()

    async def _turn(self, wait: float | None) -> None:
        """Wait until this attempt may be made; raises TooManyFailures."""
        if wait is None:
            raise TooManyFailures(seconds=round(2 * CAP))
        if wait:
            await task.deferLater(self._clock, wait)
            if self._broker.disconnected:
                raise NotAllowed(problem="the connection is gone")

    async def _refused(self, login: messages.Login, wait: float) -> None:
        self._failures += 1
        # A key cannot be guessed; and people's agents offer those of other hosts.
        if login.method != METHOD_SSH_KEY:
            self._throttle.failed(self._clock.seconds(), self._visit.address, login.user)
            # etc/fail2ban/sksd.conf reads this line. What a stranger chose comes last, as a repr: without line feeds.
            log.info(
                "failed login from {address} by {method} as {user!r}",
                address=self._visit.address,
                method=login.method,
                user=login.user,
            )
        await task.deferLater(self._clock, max(REFUSAL_DELAY, wait))
        if self._failures >= ATTEMPTS:
            self._clock.callLater(0.1, self._broker.hang_up)


def _mismatch(theirs: list[int]) -> ProtocolMismatch:
    # The sentence is read at the other end, where this host is `theirs`.
    return ProtocolMismatch(theirs=str(list(PROTOCOLS)), ours=str(theirs))


@implementer(portal.IRealm)
class Realm:
    """Makes avatars. `make(user, mind)` answers with an avatar that has `logout()`; `mind` is a `Mind`."""

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
