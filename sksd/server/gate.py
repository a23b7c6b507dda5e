"""The gate of user mode: the local token opens the one account there is, and the proxy is a child of the daemon."""

from __future__ import annotations

import base64
import hmac
import os
import pwd
import secrets
from collections.abc import Callable
from typing import Any

from twisted.internet import endpoints
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from zope.interface import implementer

from sksd import paths
from sksd.errors import LoginMethod, LoginRefused
from sksd.interfaces import IGate
from sksd.server import token
from sksd.wire import authorized_keys, reaching, sshkey
from sksd.wire.names import METHOD_PASSWORD, METHOD_SSH_KEY
from sksd.wire.tickets import Tickets

log = Logger()


def account() -> str:
    """The name of the account this process runs as."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@implementer(IGate)
class UserGate:
    """`own_token` is the local login token; `environ` what the proxy inherits, less what is sksd's own business.
    `ssh_keys`: the keys of ~/.ssh/authorized_keys open the account, too."""

    #: 32 random bytes are not.
    guessable = False

    def __init__(
        self,
        reactor: Any,
        own_token: str,
        tickets: Tickets,
        environ: dict[str, str] | None = None,
        ssh_keys: bool = True,
    ) -> None:
        self._ssh_keys = ssh_keys
        self._reactor = reactor
        self._token = own_token
        self._tickets = tickets
        self._environ = dict(os.environ if environ is None else environ)
        self.own_user = account()

    def begin(self, door: Any, gone: Callable[[], None]) -> None:
        """Nothing: this gate has no privileges beyond the user's, and ends with the daemon."""

    def methods(self) -> list[str]:
        """The token, given as a password, and SSH keys where the account has any."""
        keys = self._ssh_keys and authorized_keys.place(paths.home()).exists()
        return [METHOD_PASSWORD, METHOD_SSH_KEY] if keys else [METHOD_PASSWORD]

    async def nonce(self) -> str:
        """Random."""
        return base64.b64encode(secrets.token_bytes(32)).decode("ascii")

    async def check(self, method: str, user: str, password: str, peer: IAddress | None) -> str:
        """The account of this daemon, for its token or an SSH key; an empty user means that account."""
        if method not in (methods := self.methods()):
            raise LoginMethod(method=method[:40], methods=", ".join(methods))
        # Both are compared, always, so that the time tells nothing.
        if method == METHOD_SSH_KEY:
            right = authorized_keys.admits(paths.home(), user, sshkey.read_attempt(password))
        else:
            right = token.matches(password, self._token)
        known = hmac.compare_digest(user.encode(), self.own_user.encode()) or not user
        if not (right and known):
            raise LoginRefused()
        return self.own_user

    def leave(self, user: str) -> None:
        """Nothing: the proxy is the daemon's own user's."""

    def ticket(self, user: str, engine: str) -> str:
        """Signed with the daemon's secret."""
        return self._tickets.issue(user, engine)

    async def admit(self, ticket: str) -> tuple[str, str, None]:
        """What the ticket says, if it is the daemon's own."""
        return (*self._tickets.check(ticket), None)

    async def endpoint(self, user: str) -> endpoints.UNIXClientEndpoint:
        """The running proxy's socket; starts one where none answers."""
        # Each time: a folder under /tmp may have been cleared away, and made again by somebody else.
        paths.private(paths.runtime())
        path = paths.proxy_socket()
        if not reaching.answers(path):
            await reaching.start(self._reactor, "sksd.proxy", self.own_user, self._environ)
        return endpoints.UNIXClientEndpoint(self._reactor, str(path), timeout=10)
