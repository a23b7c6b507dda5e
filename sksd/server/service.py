"""The daemon as a Twisted service: what it is made of, and the order in which it starts and stops."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import resource
import signal
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
from twisted.application import service
from twisted.cred.portal import Portal
from twisted.internet import defer, task
from twisted.logger import Logger

from sksd import __version__, paths
from sksd.errors import AlreadyRunning, CannotWrite, SksdError, TooManyGuests
from sksd.interfaces import IGate
from sksd.server import audit, certificate, listening, privileges, system, token
from sksd.server.avatar import Avatar, Room
from sksd.server.configuration import Configuration
from sksd.server.door import CONNECTIONS, DoorFactory, TLSDoor, Visit
from sksd.server.gate import UserGate
from sksd.server.links import LinkDoor, Reach
from sksd.server.login import GateChecker, LoginRoot, Mind, Realm
from sksd.server.proxies import UserProxy
from sksd.server.publisher import publisher
from sksd.server.renewal import Renewed
from sksd.server.throttle import Throttle
from sksd.wire import messages
from sksd.wire.announcement import Announcement
from sksd.wire.broker import BrokerFactory, LimitedBroker
from sksd.wire.local import Note, read_note
from sksd.wire.names import DEAD, FEATURES, PROTOCOL
from sksd.wire.tickets import Tickets
from sksd.wire.who import account_of, guest_of

log = Logger()

#: Seconds after which the environments are looked at again, for the announcement.
LOOK_AGAIN: Final = 300.0
#: Seconds from the end of the gate to that of the daemon, so that those who are logging in are told.
LAST_WORDS: Final = 1.0


class Daemon(service.Service):
    """One daemon. Made by `prepare`, before the process goes into the background; started by twistd."""

    def __init__(
        self,
        reactor: Any,
        configuration: Configuration,
        identity: certificate.Identity,
        gate: IGate,
        bound: socket.socket,
        lock: int,
        note: Path,
        state: Path,
    ) -> None:
        self.setName("sksd")
        self.port: int = bound.getsockname()[1]
        self._reactor = reactor
        self._configuration = configuration
        self._tls = Renewed(
            reactor, identity, partial(_identity, configuration, state), self._renewed, configuration.client_ca
        )
        self._throttle = Throttle()
        self._audit = audit.Audit(audit.sink(configuration.audit, state))
        self._gate = gate
        self._note = note
        self._bound = bound
        self._lock = lock
        self._proxies: dict[str, UserProxy] = {}
        self._listening: Any = None
        self._brokers = BrokerFactory()
        self._portal = Portal(Realm(self._avatar), [GateChecker(gate)])
        self._door = DoorFactory(reactor, self._broker, self._link)
        self._publisher: Any = None
        self._looking = task.LoopingCall(self._announce_environments)
        self._looking.clock = reactor
        self._room = Room(configuration.max_kernels, self._running_by_account)

    # -- what the service is asked by twistd ------------------------------------------------------------------------

    def startService(self) -> None:
        """Listen, announce, and tell clients on this machine where."""
        super().startService()
        self._leave_note()
        tls = TLSDoor(self._tls, False, self._door, self._reactor)
        self._gate.begin(tls, lambda: self._reactor.callLater(LAST_WORDS, self._reactor.stop))
        _descriptors()
        self._listening = self._reactor.adoptStreamPort(self._bound.fileno(), self._bound.family, tls)
        self._bound.close()
        self._tls.start()
        announcement = Announcement(
            version=__version__,
            protocol=PROTOCOL,
            name=self._configuration.name,
            hostname=socket.gethostname(),
            fingerprint=self._tls.identity.fingerprint,
            running=0,
            maximum=self._configuration.max_kernels,
            methods=tuple(self._gate.methods()),
        )
        self._publisher = publisher(self._configuration, announcement, self.port, self._reactor)
        self._reactor.callWhenRunning(_end_once)
        self._reactor.callWhenRunning(_upon_hangup, self._reactor, self._tls.reload)
        # Registering needs the running event loop.
        self._reactor.callWhenRunning(self._publisher.start)
        if self._configuration.announce and self._configuration.announce_environments:
            self._reactor.callWhenRunning(self._look)
        log.info("sksd {version} listens on port {port}", version=__version__, port=self.port)
        log.info("fingerprint {fingerprint}", fingerprint=self._tls.identity.fingerprint)
        self._audit.record("daemon-started", fingerprint=self._tls.identity.fingerprint)
        # Engines of an earlier daemon count from the start, and their proxy is listened to.
        if self._gate.own_user is not None and paths.proxy_socket().exists():
            reached = defer.ensureDeferred(self._proxy(self._gate.own_user).reach())
            reached.addErrback(lambda failure: log.info("{why}", why=failure.getErrorMessage()))

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        """Withdraw the announcement, hang up on everybody; engines and their proxies go on."""
        super().stopService()
        with contextlib.suppress(OSError):
            self._note.unlink()
        if self._listening is not None:
            yield self._listening.stopListening()
        self._door.close_all()
        self._tls.stop()
        self._audit.record("daemon-stopped")
        if self._looking.running:
            self._looking.stop()
        for proxy in self._proxies.values():
            proxy.disconnect()
        if self._publisher is not None:
            yield self._publisher.stop()
        os.close(self._lock)

    # -- what a connection needs ------------------------------------------------------------------------------------

    def _broker(self, visit: Visit) -> LimitedBroker:
        broker = self._brokers.build(False)
        root = LoginRoot(
            broker, self._reactor, self._portal, self._welcome, visit, self._throttle, self._audit,
            self._gate.guessable,
        )
        broker.setNameForLocal("root", root)
        return broker

    def _link(self, visit: Visit) -> LinkDoor:
        return LinkDoor(self._admit, visit, self._audit)

    async def _admit(self, ticket: str) -> tuple[str, str, Reach]:
        user, engine, reach = await self._gate.admit(ticket)
        return user, engine, reach or self._proxy(user).link_endpoint

    def _leave_note(self) -> None:
        """Tell clients on this machine where the daemon is."""
        note = Note(
            pid=os.getpid(),
            address=listening.reachable_address(self._configuration),
            port=self.port,
            fingerprint=self._tls.identity.fingerprint,
            name=self._configuration.name,
            version=__version__,
            socket="" if self._gate.own_user is not None else str(paths.system_socket()),
        )
        paths.write_private(self._note, msgspec.json.encode(note))
        if self._gate.own_user is None:
            os.chmod(self._note, 0o644)

    def _renewed(self, identity: certificate.Identity) -> None:
        self._audit.record("certificate-loaded", fingerprint=identity.fingerprint)
        self._publisher.update(fingerprint=identity.fingerprint)
        try:
            self._leave_note()
        except OSError as error:
            log.error("clients on this machine cannot be told: {why}", why=error.strerror or str(error))

    async def _welcome(self, protocol: int) -> messages.Welcome:
        return messages.Welcome(
            protocol=protocol,
            version=__version__,
            name=self._configuration.name,
            hostname=socket.gethostname(),
            methods=self._gate.methods(),
            features=list(FEATURES),
            nonce=await self._gate.nonce(),
        )

    def _avatar(self, user: str, mind: Mind) -> Avatar:
        account = account_of(user)
        if guest_of(user):
            self._admit_guest(user)
        return Avatar(
            user,
            mind.reference,
            self._proxy(user),
            self._describe,
            partial(self._room.taken, account, self._configuration.of(account).max_kernels_per_user),
            self._gate.ticket,
            self._over,
            partial(mind.record, user=user),
        )

    def _admit_guest(self, user: str) -> None:
        """Raises TooManyGuests: each has processes."""
        self._proxies = {name: each for name, each in self._proxies.items() if not (guest_of(name) and each.over)}
        others = sum(bool(guest_of(name)) for name in self._proxies if name != user)
        if others >= self._configuration.max_guests:
            self._gate.leave(user)
            raise TooManyGuests(limit=self._configuration.max_guests)

    def _over(self, user: str) -> None:
        self._gate.leave(user)
        if self._gate.own_user is None:
            self._proxies[user].rest()

    def _proxy(self, user: str) -> UserProxy:
        if user not in self._proxies:
            told = self._configuration.of(account_of(user))
            settings = messages.Settings(
                exclude=list(told.exclude_environments),
                paths=list(told.paths),
                log_size=told.log_size,
                journal_size=told.journal_size,
                buffer_size=told.buffer_size,
                idle_timeout=told.idle_timeout,
                backend=told.backend,
                backend_executable=told.backend_executable,
                channels=list(told.channels),
                allow_channels=list(told.allow_channels),
                offline=told.offline,
                may_create=told.may_create and (not guest_of(user) or told.guest_can_manage_environments),
            )
            proxy = UserProxy(self._reactor, self._gate, user, settings, self._count)
            proxy.on_event = partial(self._ended, user)
            self._proxies[user] = proxy
        return self._proxies[user]

    def _ended(self, user: str, event: messages.Event) -> None:
        if event.engine is not None and event.engine.state == DEAD:
            self._audit.record("engine-ended", user=user, engine=event.engine.id, reason=event.engine.reason)

    def _running(self) -> int:
        return self._running_by_account().total()

    def _running_by_account(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for user, proxy in self._proxies.items():
            found[account_of(user)] += len(proxy.running)
        return found

    def _count(self) -> None:
        if self._publisher is not None:
            self._publisher.update(running=self._running())

    def _look(self) -> None:
        if self._gate.own_user is None:
            log.info("announce_environments: nobody's environments are everybody's where mode = system")
            return
        self._looking.start(LOOK_AGAIN).addErrback(
            lambda failure: log.failure("the environments are no longer looked at", failure=failure)
        )

    @defer.inlineCallbacks
    def _announce_environments(self) -> Any:
        assert self._gate.own_user is not None
        query = messages.EnvironmentsQuery()
        try:
            found = yield defer.ensureDeferred(
                self._proxy(self._gate.own_user).call("environments", query, messages.Environments)
            )
        except SksdError as error:
            log.info("the environments are not announced: {why}", why=str(error))
        else:
            self._publisher.update(environments=[each.name for each in found.environments])

    def _describe(self, user: str) -> messages.Host:
        memory = psutil.virtual_memory()
        return messages.Host(
            name=self._configuration.name,
            hostname=socket.gethostname(),
            description=self._configuration.description,
            version=__version__,
            mode=self._configuration.mode,
            user=user,
            platform=platform.platform(terse=True),
            python=platform.python_version(),
            cores=len(os.sched_getaffinity(0)),
            load=list(os.getloadavg()),
            memory_total=memory.total,
            memory_available=memory.available,
            running=self._running(),
            maximum=self._configuration.max_kernels,
            fingerprint=self._tls.identity.fingerprint,
            methods=self._gate.methods(),
            features=list(FEATURES),
        )


def prepare(reactor: Any, configuration: Configuration) -> Daemon:
    """All that can fail before the daemon runs: certificate, token, lock, port. Raises an SksdError for each."""
    configuration.check_enabled()
    if configuration.mode == "system":
        return _prepare_system(reactor, configuration)
    state = paths.private(paths.state())
    paths.private(paths.runtime())
    lock = _lock(paths.runtime(), paths.daemon_note())
    try:
        identity = _identity(configuration, state)
        tickets = Tickets(token.secret(state / "secret"))
        gate = UserGate(reactor, token.local(), tickets, ssh_keys=configuration.ssh_keys)
        bound = listening.bind(configuration, state)
    except BaseException:
        os.close(lock)
        raise
    return Daemon(reactor, configuration, identity, gate, bound, lock, paths.daemon_note(), state)


def _prepare_system(reactor: Any, configuration: Configuration) -> Daemon:
    """As root. What the daemon keeps is its own account's, and written as that account: it may have been led astray
    there by whoever took an earlier daemon over."""
    account = privileges.daemon_account(configuration)
    lock = _lock(privileges.folder(paths.system_runtime(), 0o755), paths.system_note())
    try:
        gate = system.prepare(reactor, configuration, account)
        state = privileges.folder(paths.system_state() / "daemon", 0o700, account)
        identity = _given(configuration)
        bound = listening.bind(configuration, state, privileges.acting_as(account))
        if identity is None:
            with privileges.acting_as(account):
                identity = _identity(configuration, state)
    except BaseException:
        os.close(lock)
        raise
    return Daemon(reactor, configuration, identity, gate, bound, lock, paths.system_note(), state)


def _given(configuration: Configuration) -> certificate.Identity | None:
    if configuration.certificate is None or configuration.key is None:
        return None
    return certificate.load(configuration.certificate, configuration.key, client_ca=configuration.client_ca)


def _descriptors() -> None:
    """Room for as many connections as the door takes, each with one to the proxy, where the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _identity(configuration: Configuration, state: Path) -> certificate.Identity:
    return _given(configuration) or certificate.own(state, client_ca=configuration.client_ca)


def _upon_hangup(reactor: Any, reload: Callable[[], None]) -> None:
    """SIGHUP reads the certificate anew; but at a terminal it ends the daemon, and under nohup it does nothing."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL and not os.isatty(0):
        signal.signal(signal.SIGHUP, lambda number, frame: reactor.callFromThread(reload))


def _end_once() -> None:
    """Once ending has begun, further SIGINTs and SIGTERMs change nothing; the reactor would complain of each."""
    turns = [True]

    def once(twisted: Any, number: int, frame: Any) -> None:
        # Popping is one step: a signal that arrives within this handler finds nothing left.
        with contextlib.suppress(IndexError):
            turns.pop()
            twisted(number, frame)

    for each in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(each)
        if callable(handler):
            signal.signal(each, partial(once, handler))


def _lock(folder: Path, note_path: Path) -> int:
    """One daemon a user: held for as long as the process lives, also through going into the background."""
    path = folder / "daemon.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotWrite(path=str(path), problem=error.strerror or str(error)) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        note = read_note(note_path)
        raise AlreadyRunning(pid=note.pid if note else "?", port=note.port if note else "?") from None
    return lock
