"""From HOST and the shared options to a session: the one place that knows where passwords come from."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import threads

from sksd import paths
from sksd.cli.options import Access
from sksd.cli.running import Scope, asking, finished
from sksd.client import guests, sshkeys
from sksd.client.hosts import LOOKUP, Target, target
from sksd.client.session import Connection, Session, connect
from sksd.client.sshkeys import Signer
from sksd.errors import LoginMethod, NoKeyring, NoPassword, SshKeyRefused, SshKeyUnusable
from sksd.wire.names import METHOD_LOCAL, METHOD_SSH_KEY

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
            client=access.client,
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


async def signers(scope: Scope, access: Access) -> list[Signer]:
    """The SSH keys to try: that of --ssh-key, whose passphrase is asked for, else the agent's."""
    if access.ssh_key is not None:
        return [sshkeys.of_file(access.ssh_key, lambda: _passphrase(str(access.ssh_key)))]
    pool = scope.reactor.getThreadPool()
    return await threads.deferToThreadPool(scope.reactor, pool, sshkeys.of_agent)


def _passphrase(file: str) -> str:
    if not sys.stdin.isatty():
        problem = "it has a passphrase: run this at a terminal, or add it to your agent with `ssh-add`"
        raise SshKeyUnusable(file=file, problem=problem)
    with asking():
        try:
            return getpass.getpass(f"Passphrase of {file}: ")
        except EOFError:
            raise SshKeyUnusable(file=file, problem="it has a passphrase") from None


async def enter(
    scope: Scope, access: Access, host: Target, user: str, password: str | None
) -> tuple[Connection, Session, str | None]:
    """Log in: with `password`, or where that is None with an SSH key, or with a password that is asked for.

    Answers the connection, which the caller closes, the session, and the password that did it.
    """
    keys: list[Signer] = []
    if not access.guest and (password is None or access.ssh_key is not None):
        keys = await signers(scope, access)
        # Before anybody is asked the certificate was checked, and no connection waits for a person.
        connection = await say_hello(scope, access, host)
        try:
            if keys and METHOD_SSH_KEY in connection.welcome.methods:
                with scope.output.waiting(scope.reactor, f"Logging in on {host.name} with an SSH key"):
                    return connection, await connection.login_by_key(user, keys), None
            if access.ssh_key is not None:
                offered = ", ".join(connection.welcome.methods)
                raise LoginMethod(host=host.name, method=METHOD_SSH_KEY, methods=offered)
        except BaseException as error:
            await finished(connection.close())
            if access.ssh_key is not None or not isinstance(error, SshKeyRefused):
                raise
        await finished(connection.close())
        password = prompted_password(user, host)
    connection = await say_hello(scope, access, host)
    try:
        return connection, await log_in(scope, access, connection, user, password or ""), password
    except BaseException:
        await finished(connection.close())
        raise


@asynccontextmanager
async def session_on(scope: Scope, access: Access) -> AsyncIterator[Session]:
    """Logged in on the host, for as long as the block lasts; engines go on afterwards."""
    host = await reach(scope, access)
    user = account(access, host)
    password: str | None = ""
    if not access.guest and not is_known(access, host):
        password = given_password(access, host)
        if password is None and access.ssh_key is None:
            password = kept_password(user, host)
    connection, session, _ = await enter(scope, access, host, user, password)
    try:
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
        return await connection.login("", guests.token(access.host), _METHOD_GUEST)
    with scope.output.waiting(scope.reactor, f"Logging in on {connection.route.name}"):
        return await connection.login(user, password)
