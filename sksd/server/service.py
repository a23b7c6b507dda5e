"""The daemon as a Twisted service: what it is made of, and the order in which it starts and stops."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import signal
import socket
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
from sksd.errors import AlreadyRunning, CannotWrite, SksdError
from sksd.interfaces import IGate
from sksd.server import certificate, listening, token
from sksd.server.avatar import Avatar, Room
from sksd.server.configuration import Configuration
from sksd.server.door import DoorFactory, TLSDoor
from sksd.server.gate import UserGate
from sksd.server.links import LinkDoor
from sksd.server.login import GateChecker, LoginRoot, Realm
from sksd.server.proxies import UserProxy
from sksd.server.publisher import publisher
from sksd.server.tickets import Tickets
from sksd.wire import messages
from sksd.wire.announcement import Announcement
from sksd.wire.broker import BrokerFactory, LimitedBroker
from sksd.wire.local import Note, read_note
from sksd.wire.names import FEATURES, PROTOCOL

log = Logger()

#: Seconds after which the environments are looked at again, for the announcement.
LOOK_AGAIN: Final = 300.0


class Daemon(service.Service):
    """One daemon. Made by `prepare`, before the process goes into the background; started by twistd."""

    def __init__(
        self,
        reactor: Any,
        configuration: Configuration,
        identity: certificate.Identity,
        gate: IGate,
        tickets: Tickets,
        bound: socket.socket,
        lock: int,
    ) -> None:
        self.setName("sksd")
        self.port: int = bound.getsockname()[1]
        self._reactor = reactor
        self._configuration = configuration
        self._identity = identity
        self._gate = gate
        self._tickets = tickets
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
        self._room = Room(configuration.max_kernels, self._running)

    # -- what the service is asked by twistd ------------------------------------------------------------------------

    def startService(self) -> None:
        """Listen, announce, and tell clients on this machine where."""
        super().startService()
        tls = TLSDoor(certificate.context_factory(self._identity), False, self._door, self._reactor)
        self._listening = self._reactor.adoptStreamPort(self._bound.fileno(), self._bound.family, tls)
        self._bound.close()
        note = Note(
            pid=os.getpid(),
            address=listening.reachable_address(self._configuration),
            port=self.port,
            fingerprint=self._identity.fingerprint,
            name=self._configuration.name,
            version=__version__,
        )
        paths.write_private(paths.daemon_note(), msgspec.json.encode(note))
        announcement = Announcement(
            version=__version__,
            protocol=PROTOCOL,
            name=self._configuration.name,
            hostname=socket.gethostname(),
            fingerprint=self._identity.fingerprint,
            running=0,
            maximum=self._configuration.max_kernels,
            methods=tuple(self._gate.methods()),
        )
        self._publisher = publisher(self._configuration, announcement, self.port, self._reactor)
        self._reactor.callWhenRunning(_end_once)
        # Registering needs the running event loop.
        self._reactor.callWhenRunning(self._publisher.start)
        if self._configuration.announce and self._configuration.announce_environments:
            self._reactor.callWhenRunning(self._look)
        log.info("sksd {version} listens on port {port}", version=__version__, port=self.port)
        log.info("fingerprint {fingerprint}", fingerprint=self._identity.fingerprint)
        # Engines of an earlier daemon count from the start, and their proxy is listened to.
        if paths.proxy_socket().exists():
            reached = defer.ensureDeferred(self._proxy(self._own_user()).reach())
            reached.addErrback(lambda failure: log.info("{why}", why=failure.getErrorMessage()))

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        """Withdraw the announcement, hang up on everybody; engines and their proxies go on."""
        super().stopService()
        with contextlib.suppress(OSError):
            paths.daemon_note().unlink()
        if self._listening is not None:
            yield self._listening.stopListening()
        self._door.close_all()
        if self._looking.running:
            self._looking.stop()
        for proxy in self._proxies.values():
            proxy.disconnect()
        if self._publisher is not None:
            yield self._publisher.stop()
        os.close(self._lock)

    # -- what a connection needs ------------------------------------------------------------------------------------

    def _broker(self, on_login: Any) -> LimitedBroker:
        broker = self._brokers.build(False)
        broker.setNameForLocal("root", LoginRoot(broker, self._reactor, self._portal, self._welcome, on_login))
        return broker

    def _link(self, on_login: Any) -> LinkDoor:
        return LinkDoor(self._tickets.check, lambda user: self._proxy(user).link_endpoint(), on_login)

    def _welcome(self, protocol: int) -> messages.Welcome:
        return messages.Welcome(
            protocol=protocol,
            version=__version__,
            name=self._configuration.name,
            hostname=socket.gethostname(),
            methods=self._gate.methods(),
            features=list(FEATURES),
        )

    def _avatar(self, user: str, mind: Any) -> Avatar:
        return Avatar(user, mind, self._proxy(user), self._describe, self._room, self._tickets.issue)

    def _proxy(self, user: str) -> UserProxy:
        if user not in self._proxies:
            settings = messages.Settings(
                exclude=list(self._configuration.exclude_environments),
                paths=list(self._configuration.paths),
                log_size=self._configuration.log_size,
                backend=self._configuration.backend,
                backend_executable=self._configuration.backend_executable,
                channels=list(self._configuration.channels),
                allow_channels=list(self._configuration.allow_channels),
                offline=self._configuration.offline,
                may_create=self._configuration.may_create,
            )
            self._proxies[user] = UserProxy(self._reactor, self._gate, user, settings, self._count)
        return self._proxies[user]

    def _own_user(self) -> str:
        return self._gate.user if isinstance(self._gate, UserGate) else ""

    def _running(self) -> int:
        return sum(len(proxy.running) for proxy in self._proxies.values())

    def _count(self) -> None:
        if self._publisher is not None:
            self._publisher.update(running=self._running())

    def _look(self) -> None:
        self._looking.start(LOOK_AGAIN).addErrback(
            lambda failure: log.failure("the environments are no longer looked at", failure=failure)
        )

    @defer.inlineCallbacks
    def _announce_environments(self) -> Any:
        query = messages.EnvironmentsQuery()
        try:
            found = yield defer.ensureDeferred(
                self._proxy(self._own_user()).call("environments", query, messages.Environments)
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
            fingerprint=self._identity.fingerprint,
            methods=self._gate.methods(),
            features=list(FEATURES),
        )


def prepare(reactor: Any, configuration: Configuration) -> Daemon:
    """All that can fail before the daemon runs: certificate, token, lock, port. Raises an SksdError for each."""
    configuration.check_enabled()
    paths.private(paths.state())
    paths.private(paths.runtime())
    lock = _lock()
    try:
        if configuration.certificate is not None and configuration.key is not None:
            identity = certificate.load(configuration.certificate, configuration.key)
        else:
            identity = certificate.own()
        gate = UserGate(reactor, token.local())
        tickets = Tickets(token.secret(paths.state() / "secret"))
        bound = listening.bind(configuration)
    except BaseException:
        os.close(lock)
        raise
    return Daemon(reactor, configuration, identity, gate, tickets, bound, lock)


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


def _lock() -> int:
    """One daemon a user: held for as long as the process lives, also through going into the background."""
    path: Path = paths.runtime() / "daemon.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotWrite(path=str(path), problem=error.strerror or str(error)) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        note = read_note(paths.daemon_note())
        raise AlreadyRunning(pid=note.pid if note else "?", port=note.port if note else "?") from None
    return lock
