"""The gate of user mode: the local token opens the one account there is, and the proxy is a child of the daemon."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import pwd
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec
from twisted.internet import defer, endpoints, error, protocol
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sksd import paths
from sksd.errors import CannotWrite, LoginMethod, LoginRefused, ProxyFailed
from sksd.interfaces import IGate
from sksd.server import token
from sksd.wire import authorized_keys, sshkey
from sksd.wire.names import METHOD_PASSWORD, METHOD_SSH_KEY
from sksd.wire.tickets import Tickets

log = Logger()

#: Seconds a proxy has from its start until it listens.
START_TIMEOUT: Final = 20.0

#: Never handed on to a user's processes.
_OWN_VARIABLES: Final = ("SKSD_PASSWORD", "SKSD_CONF", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID")


def account() -> str:
    """The name of the account this process runs as."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


class ProxyProcess(protocol.ProcessProtocol):
    """The daemon's end of a proxy it has started.

    `ready` fires when the proxy says on its stdout that it listens (a JSON line, {"ready": true} or {"error":
    sentence}), and fails with ProxyFailed when it ends before. The proxy outlives the daemon, so nothing else goes
    over the pipe.
    """

    def __init__(self, user: str, log_path: str) -> None:
        self.ready: defer.Deferred[None] = defer.Deferred()
        self._user = user
        self._log_path = log_path
        self._said = b""

    def outReceived(self, data: bytes) -> None:
        """Called with what the proxy says while it starts."""
        self._said = (self._said + data)[:4096]
        if self.ready.called or b"\n" not in self._said:
            return
        try:
            said = json.loads(self._said.partition(b"\n")[0])
            problem = None if said.get("ready") else str(said["error"])
        except (ValueError, KeyError, AttributeError):
            problem = f"it said something strange (see {self._log_path})"
        if problem is None:
            self.ready.callback(None)
        else:
            self.ready.errback(ProxyFailed(user=self._user, problem=problem))

    def processEnded(self, reason: Failure) -> None:
        """Called once the proxy has ended and was waited for."""
        how = describe_end(reason)
        log.info("the proxy of {user} ended: {how}", user=self._user, how=how)
        if not self.ready.called:
            problem = f"it ended with {how} (see {self._log_path})"
            self.ready.errback(ProxyFailed(user=self._user, problem=problem))


def describe_end(reason: Failure) -> str:
    """"exit code 1" or "signal 9", from what Twisted tells of an ended process."""
    ended: Any = reason.value
    if isinstance(ended, error.ProcessTerminated) and ended.signal:
        return f"signal {ended.signal}"
    return f"exit code {ended.exitCode}"


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

    async def check(self, method: str, user: str, password: str, peer: IAddress | None) -> str:
        """The account of this daemon, for its token or an SSH key; an empty user means that account."""
        if method not in (methods := self.methods()):
            raise LoginMethod(method=method[:40], methods=", ".join(methods))
        # Both are compared, always, so that the time tells nothing.
        if method == METHOD_SSH_KEY:
            attempt = msgspec.json.decode(password, type=sshkey.Attempt)
            right = authorized_keys.admits(paths.home(), user, attempt)
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
        path = str(paths.proxy_socket())
        if not _answers(path):
            await self._start()
        return endpoints.UNIXClientEndpoint(self._reactor, path, timeout=10)

    async def _start(self) -> None:
        try:
            log_path, log_file = paths.open_proxy_log()
        except CannotWrite as failed:
            raise ProxyFailed(user=self.own_user, problem=str(failed).rstrip(".")) from None
        process = ProxyProcess(self.own_user, str(log_path))
        environ = {name: value for name, value in self._environ.items() if name not in _OWN_VARIABLES}
        with open(os.devnull, "rb") as nothing, os.fdopen(log_file, "ab") as log_end:
            self._reactor.spawnProcess(
                process,
                sys.executable,
                # -P: the working directory is the person's home, whose files must not be imported.
                [sys.executable, "-P", "-m", "sksd.proxy"],
                env=environ,
                # Without a home there is still a proxy to say so.
                path=str(paths.home()) if paths.home().is_dir() else "/",
                childFDs={0: nothing.fileno(), 1: "r", 2: log_end.fileno()},
            )
        try:
            await process.ready.addTimeout(START_TIMEOUT, self._reactor)
        except defer.TimeoutError:
            with contextlib.suppress(error.ProcessExitedAlready):
                process.transport.signalProcess("KILL")  # type: ignore[union-attr]
            raise ProxyFailed(user=self.own_user, problem=f"it did not listen within {START_TIMEOUT:.0f} s") from None


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A proxy that hangs takes nobody from its queue: waiting for it would hang the daemon, too.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
