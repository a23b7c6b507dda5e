"""The daemon's end of the gate of a shared host (docs/security.md, "The gate's contract")."""

from __future__ import annotations

import ctypes.util
import json
import os
import pwd
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from twisted.internet import abstract, defer, protocol
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sksd import paths
from sksd.errors import (
    AccountRefused,
    CannotListen,
    GateGone,
    LoginMethod,
    LoginRefused,
    NoPAM,
    NotAllowed,
    ProxyFailed,
    TicketRefused,
)
from sksd.interfaces import IGate
from sksd.server import privileges, token
from sksd.server.configuration import Configuration
from sksd.wire import gate as wire
from sksd.wire import sshkey

log = Logger()

#: Seconds the gate has for an answer; it ends what takes longer itself.
LIMIT: Final = 40.0
#: SSH keys that are checked at once: each has a process for a while, and who offers keys is not slowed down.
KEYS_AT_ONCE: Final = 8

Answer = tuple[dict[str, Any], int | None]


@implementer(IAddress)
class LocalPeer:
    """Somebody on this machine, whom the gate knows by the socket's credentials. `said` is the gate's answer, until a
    login has made use of it."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said: dict[str, Any] | None = said
        self.host = f"this machine ({said.get('account', 'nobody')})"


@implementer(IStreamClientEndpoint)
class Connected:
    """The endpoint of a connection that is there already; it is good for one `connect`."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._socket = socket.socket(fileno=descriptor)

    def connect(self, factory: Any) -> defer.Deferred[Any]:
        """Fires with the protocol at once."""
        return defer.succeed(_adopt(self._reactor, self._socket, factory).protocol)


def _adopt(reactor: Any, connected: socket.socket, factory: Any) -> Any:
    with connected:
        connected.setblocking(False)
        return reactor.adoptStreamConnection(connected.fileno(), socket.AF_UNIX, factory)


class _Local:
    """Builds the protocol of one connection. (One of twisted's factories would put itself in the place of TLS's.)"""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress) -> Any:
        return self._build()


class _Readable(abstract.FileDescriptor):
    """Calls `readable` while there is something to read from `source`."""

    def __init__(self, reactor: Any, source: socket.socket, readable: Callable[[], None]) -> None:
        super().__init__(reactor)
        self.source = source
        self._readable = readable
        source.setblocking(False)
        self.startReading()

    def fileno(self) -> int:
        return self.source.fileno()

    def doRead(self) -> None:
        self._readable()


class _Channel(_Readable):
    """Messages that wait until the gate takes them."""

    def __init__(self, reactor: Any, source: socket.socket, readable: Callable[[], None]) -> None:
        self._waiting: deque[dict[str, Any]] = deque()
        super().__init__(reactor, source, readable)

    def send(self, message: dict[str, Any]) -> None:
        self._waiting.append(message)
        self.startWriting()

    def doWrite(self) -> None:
        try:
            while self._waiting:
                wire.send(self.source, self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._waiting.clear()
        self.stopWriting()


class _GateProcess(protocol.ProcessProtocol):
    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    def errReceived(self, data: bytes) -> None:
        for line in data.decode(errors="replace").splitlines():
            log.info("{line}", line=line)

    def processEnded(self, reason: Failure) -> None:
        self._ended()


@implementer(IGate)
class SystemGate:
    """`account`: whom the daemon goes on as; `order`: the gate's (sksd.gate.gate.Gate); `local`: the UNIX socket for
    this machine; `ssh_keys`: the keys of people's ~/.ssh/authorized_keys open their accounts, too."""

    own_user = None
    #: Passwords are.
    guessable = True

    def __init__(
        self,
        reactor: Any,
        account: pwd.struct_passwd,
        order: dict[str, Any],
        local: socket.socket,
        ssh_keys: bool = True,
    ) -> None:
        self._ssh_keys = ssh_keys
        self._keys_at_once = defer.DeferredSemaphore(KEYS_AT_ONCE)
        self._reactor = reactor
        self._account = account
        self._order = order
        self._local = local
        self._grants: dict[str, list[str]] = {}
        self._asked: dict[int, defer.Deferred[Answer]] = {}
        self._number = 0
        self._channel: _Channel | None = None
        self._gone: Callable[[], None] = lambda: None

    def begin(self, door: Any, gone: Callable[[], None]) -> None:
        """Starts the gate, then gives up root's rights."""
        self._gone, self._door = gone, door
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.devnull, "rb+") as nothing:
            null, local = nothing.fileno(), self._local.fileno()
            self._reactor.spawnProcess(
                _GateProcess(self._ended),
                sys.executable,
                [sys.executable, "-I", "-m", "sksd.gate", json.dumps(self._order)],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": self._order["lang"]},
                path="/",
                childFDs={0: null, 1: null, 2: "r", 3: theirs.fileno(), 4: local},
            )
        privileges.give_up(self._account)
        self._channel = _Channel(self._reactor, ours, self._answered)
        self._waiting = _Readable(self._reactor, self._local, self._accept)

    def methods(self) -> list[str]:
        """The account's own password and SSH keys, and guests. On this machine nothing is needed, which no list has
        to tell."""
        keys = [wire.SSH_KEY] if self._ssh_keys else []
        return [wire.PASSWORD, *keys, *([wire.GUEST] if self._order["guest"] else [])]

    async def nonce(self) -> str:
        """The gate's own, so that no daemon can use a signature twice."""
        return str((await self._ask(wire.NONCE))[0]["nonce"]) if self._ssh_keys else ""

    async def check(self, method: str, user: str, password: str, peer: IAddress | None) -> str:
        """By password, through PAM; by SSH key; `local` for a peer on this machine; `guest` with a token in the
        password's place. A guest is answered as `sksd.wire.who.guest_name` has it."""
        if method == wire.LOCAL and isinstance(peer, LocalPeer):
            said, peer.said = peer.said, None
            if said is None:
                raise NotAllowed(problem="this connection has logged in already")
        elif method in (wire.PASSWORD, wire.GUEST) and method in self.methods():
            rhost = "localhost" if isinstance(peer, LocalPeer) else str(getattr(peer, "host", ""))
            said, _ = await self._ask(wire.CHECK, method=method, user=user, secret=password, rhost=rhost)
        elif method in self.methods():
            said, _ = await self._check_key(user, password)
        else:
            raise LoginMethod(method=method[:40], methods=", ".join(self.methods()))
        account, grant = _entered(said, user)
        self._grants.setdefault(account, []).append(grant)
        return account

    async def _check_key(self, user: str, attempt: str) -> Answer:
        # What cannot be right costs the machine no process; the gate looks for itself.
        if not sshkey.proven(user, sshkey.read_attempt(attempt)):
            raise LoginRefused()
        await self._keys_at_once.acquire()
        try:
            return await self._ask(wire.CHECK, method=wire.SSH_KEY, user=user, secret=json.loads(attempt))
        finally:
            self._keys_at_once.release()

    def leave(self, user: str) -> None:
        """Gives one of the user's grants back: they are alike."""
        self._end(self._grants[user].pop())
        if not self._grants[user]:
            del self._grants[user]

    async def endpoint(self, user: str) -> Connected:
        """By the grant of any login of the user's."""
        if user not in self._grants:
            raise ProxyFailed(user=user, problem="nobody is logged in as that user")
        return await self._reach(user, self._grants[user][-1])

    def ticket(self, user: str, engine: str) -> str:
        """Only proxies make tickets here."""
        raise ProxyFailed(user=user, problem="it made no ticket")

    async def admit(self, ticket: str) -> tuple[str, str, Callable[[], Awaitable[Connected]]]:
        """The gate reads the ticket, and lets one link through for it."""
        said, _ = await self._ask(wire.CHECK, method=wire.TICKET, secret=ticket)
        account, grant = _entered(said, "")
        return account, str(said["engine"]), partial(self._reach, account, grant)

    async def _reach(self, user: str, grant: str) -> Connected:
        said, descriptor = await self._ask(wire.PROXY, grant=grant)
        if descriptor is None:
            problem = said.get("problem") or "the login has grown too old: log in again"
            raise ProxyFailed(user=user, problem=problem)
        return Connected(self._reactor, descriptor)

    # -- the channel ------------------------------------------------------------------------------------------------

    async def _ask(self, ask: str, **request: Any) -> Answer:
        if self._channel is None:
            raise GateGone(problem="its gate does not run")
        self._number += 1
        number, waiting = self._number, defer.Deferred[Answer]()
        self._asked[number] = waiting
        self._channel.send({"id": number, "ask": ask, **request})
        try:
            return await waiting.addTimeout(LIMIT, self._reactor)
        except defer.TimeoutError:
            raise GateGone(problem="its gate does not answer") from None
        finally:
            self._asked.pop(number, None)

    def _end(self, grant: str) -> None:
        if self._channel is not None:
            self._channel.send({"ask": wire.PROXY, "grant": grant, "end": True})

    def _answered(self) -> None:
        assert self._channel is not None
        try:
            found = wire.receive(self._channel.source, 1)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            found = None
        if found is None:
            return self._ended()
        said, descriptor = found
        waiting = self._asked.get(said.get("id", 0))
        if waiting is not None and not waiting.called:
            waiting.callback((said, descriptor))
        elif descriptor is not None:
            os.close(descriptor)

    def _ended(self) -> None:
        if self._channel is None:
            return
        log.error("the gate has ended: nobody can log in, and the daemon ends")
        for reader in (self._channel, self._waiting):
            reader.stopReading()
            reader.stopWriting()
        self._channel.source.close()
        self._channel = None
        for waiting in list(self._asked.values()):
            waiting.errback(GateGone(problem="its gate has ended"))
        self._gone()

    # -- people on this machine -------------------------------------------------------------------------------------

    def _accept(self) -> None:
        # The gate takes one from the queue; until it has, the socket goes on being readable.
        self._waiting.stopReading()
        taken = defer.ensureDeferred(self._ask(wire.CHECK, method=wire.LOCAL))
        taken.addCallback(self._accepted)
        taken.addErrback(lambda failure: log.info("{why}", why=failure.getErrorMessage()))
        taken.addBoth(lambda _: self._channel and self._waiting.startReading())

    def _accepted(self, answer: Answer) -> None:
        said, descriptor = answer
        if descriptor is None:
            return
        _adopt(self._reactor, socket.socket(fileno=descriptor), _Local(partial(self._visitor, LocalPeer(said))))

    def _visitor(self, peer: LocalPeer) -> Any:
        made = self._door.buildProtocol(peer)
        if made is None:
            self._unused(peer)
            return None
        lost = made.connectionLost

        def connection_lost(reason: Failure) -> None:
            lost(reason)
            self._unused(peer)

        made.connectionLost = connection_lost
        return made

    def _unused(self, peer: LocalPeer) -> None:
        if peer.said is not None and "grant" in peer.said:
            self._end(peer.said["grant"])


def _entered(said: dict[str, Any], user: str) -> tuple[str, str]:
    """The account and the grant of a CHECK; raises why not."""
    if "account" in said:
        return str(said["account"]), str(said["grant"])
    reason, problem = said.get("reason"), str(said.get("problem", "?"))
    if reason == wire.ACCOUNT:
        raise AccountRefused(user=user or "you", problem=problem)
    if reason == wire.BAD_TICKET:
        raise TicketRefused()
    if reason == wire.REFUSED:
        raise LoginRefused()
    raise GateGone(problem=problem)


def prepare(reactor: Any, configuration: Configuration, account: pwd.struct_passwd) -> SystemGate:
    """All that the gate needs, as root, before it is started. Raises an SksdError for each thing that is missing."""
    privileges.check_guest(configuration)
    privileges.check_installation(account)
    if ctypes.util.find_library("pam") is None:
        raise NoPAM()
    privileges.folder(paths.system_state(), 0o711)
    closed = privileges.folder(paths.system_state() / "gate", 0o700)
    token.secret(closed / "secret")
    path = paths.system_socket()
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        local.bind(str(path))
        os.chmod(path, 0o666)
        local.listen(64)
    except OSError as error:
        local.close()
        raise CannotListen(address=str(path), problem=error.strerror or str(error)) from None
    limits = {
        "RLIMIT_AS": configuration.memory,
        "RLIMIT_NPROC": configuration.processes,
        "RLIMIT_NOFILE": configuration.open_files,
    }
    order = {
        "secret": str(closed / "secret"),
        "closed": [account.pw_uid] + [0] * (not configuration.allow_root),
        "rules": {
            "allow_users": configuration.allow_users,
            "deny_users": configuration.deny_users,
            "allow_groups": configuration.allow_groups,
        },
        "guest": configuration.guest_account,
        "cast": bool(configuration.guest_account) and configuration.guest_unknown,
        "lang": os.environ.get("LANG", "C.UTF-8"),
        "limits": {name: value for name, value in limits.items() if value},
    }
    return SystemGate(reactor, account, order, local, configuration.ssh_keys)
