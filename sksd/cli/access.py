"""From HOST and the shared options to a session: the one place that knows where passwords come from."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sksd import paths
from sksd.cli.options import Access
from sksd.cli.running import Scope, asking, finished
from sksd.client.hosts import LOOKUP, Target, target
from sksd.client.session import Connection, Session, connect
from sksd.errors import LoginMethod, NoKeyring, NoPassword
from sksd.wire.names import METHOD_LOCAL

#: The service under which passwords are in the keyring; the account is `USER@HOST`.
SERVICE = "sksd"
_METHOD_GUEST = "guest"


async def reach(scope: Scope, access: Access) -> Target:
    """The host that `access` names."""
    with scope.output.waiting(scope.reactor, f"Looking for {access.host}"):
        return await target(
            scope.reactor,
            access.host,
            accept_new=access.accept_new,
            ca=access.ca,
            seconds=min(access.timeout, LOOKUP),
        )


async def say_hello(scope: Scope, access: Access, host: Target) -> Connection:
    """Connect without logging in."""
    with scope.output.waiting(scope.reactor, f"Connecting to {host.name}"):
        return await connect(scope.reactor, host, access.timeout)


def account(access: Access, host: Target) -> str:
    """Whom to log in as. Empty: the one user whom the daemon of this very user serves."""
    if access.user is not None:
        return access.user
    return "" if host.own else getpass.getuser()


def is_known(access: Access, host: Any) -> bool:
    """Whether the host knows by itself who this is: the daemon of this machine, unless for another account."""
    return bool(host.socket) and not access.guest and access.user in (None, getpass.getuser())


def given_password(access: Access, host: Target) -> str | None:
    """The password that nobody has to be asked for: stdin, SKSD_PASSWORD, the local token."""
    if access.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if "SKSD_PASSWORD" in os.environ:
        return os.environ["SKSD_PASSWORD"]
    if host.own:
        try:
            return paths.token().read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
    return None


def prompted_password(user: str, host: Target) -> str:
    """Ask at the terminal; raises NoPassword where there is none. No connection should wait meanwhile."""
    if not sys.stdin.isatty():
        raise NoPassword(user=user or "you", host=host.name)
    with asking():
        try:
            return getpass.getpass(f"Password of {user or 'the local user'} on {host.name}: ")
        except EOFError:
            raise NoPassword(user=user or "you", host=host.name) from None


def kept_password(user: str, host: Target) -> str | None:
    """The password in the keyring, None when there is none, or no keyring."""
    try:
        import keyring

        return keyring.get_password(SERVICE, f"{user}@{host.key}")
    except Exception:
        # Its backends raise whatever they like; a keyring that does not work is none.
        return None


def keep_password(user: str, host: Target, password: str | None) -> bool:
    """Put the password into the keyring; None takes it out: False when there was none. Raises NoKeyring."""
    try:
        import keyring
        from keyring.errors import PasswordDeleteError

        if password is not None:
            keyring.set_password(SERVICE, f"{user}@{host.key}", password)
            if keyring.get_password(SERVICE, f"{user}@{host.key}") != password:
                raise RuntimeError("the one that is set up keeps nothing")
            return True
        try:
            keyring.delete_password(SERVICE, f"{user}@{host.key}")
        except PasswordDeleteError:
            return False
        return True
    except Exception as error:
        first = (str(error) or type(error).__name__).split(". ")[0].splitlines()[0]
        raise NoKeyring(problem=first.rstrip(".")) from None


@asynccontextmanager
async def session_on(scope: Scope, access: Access) -> AsyncIterator[Session]:
    """Logged in on the host, for as long as the block lasts; engines go on afterwards."""
    host = await reach(scope, access)
    user = account(access, host)
    password: str | None = ""
    if not access.guest and not is_known(access, host):
        password = given_password(access, host)
        if password is None:
            password = kept_password(user, host)
    if password is None:
        # The certificate first, and no connection that waits for a person.
        await (await say_hello(scope, access, host)).close()
        password = prompted_password(user, host)
    connection = await say_hello(scope, access, host)
    try:
        session = await log_in(scope, access, connection, user, password)
        yield session
    finally:
        await finished(connection.close())


async def log_in(scope: Scope, access: Access, connection: Connection, user: str, password: str) -> Session:
    """Log in, with a clear refusal where guests are not taken."""
    if is_known(access, connection.route):
        return await connection.login(user, "", METHOD_LOCAL)
    if access.guest:
        if _METHOD_GUEST not in connection.welcome.methods:
            offered = ", ".join(connection.welcome.methods) or "nothing"
            raise LoginMethod(host=connection.route.name, method=_METHOD_GUEST, methods=offered)
        return await connection.login(user, "", _METHOD_GUEST)
    with scope.output.waiting(scope.reactor, f"Logging in on {connection.route.name}"):
        return await connection.login(user, password)
