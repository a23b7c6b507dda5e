"""The proxy's process: one a user. It listens on a UNIX socket, and ends when nobody is connected and no engine is
left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from functools import partial
from typing import Any, Final

from sksd import reactor as choose_reactor

choose_reactor.install()

from twisted.internet import error, protocol  # noqa: E402
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver  # noqa: E402
from twisted.python.failure import Failure  # noqa: E402

from sksd import paths  # noqa: E402
from sksd.errors import CannotWrite, ProxyFailed, SksdError  # noqa: E402
from sksd.link.hello import Hello  # noqa: E402
from sksd.link.link import Link  # noqa: E402
from sksd.link.protocol import LinkConnection  # noqa: E402
from sksd.link.remote import RemoteEnd  # noqa: E402
from sksd.proxy import shell  # noqa: E402
from sksd.proxy.activation import Activations  # noqa: E402
from sksd.proxy.catalogue import Catalogue  # noqa: E402
from sksd.proxy.changing import Changes  # noqa: E402
from sksd.proxy.engine import Engine  # noqa: E402
from sksd.proxy.engines import Engines  # noqa: E402
from sksd.proxy.log import BoundedLogs  # noqa: E402
from sksd.proxy.root import Listeners, ProxyRoot  # noqa: E402
from sksd.proxy.spin_up import SpinningUp  # noqa: E402
from sksd.proxy.workers import Workers  # noqa: E402
from sksd.wire.broker import BrokerFactory, LimitedBroker  # noqa: E402
from sksd.wire.messages import Settings  # noqa: E402
from sksd.wire.names import DEAD, PREAMBLE_LINK, PREAMBLE_PB  # noqa: E402

log = Logger()

#: Seconds without connection and engine after which the proxy ends; one that was just started has longer.
LINGER: Final = 1.0
FIRST_LINGER: Final = 20.0
#: Seconds that a proxy which is starting waits for one that is ending.
LOCK_LIMIT: Final = 5.0


class Proxy:
    """What the parts of the process share."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.connections = 0
        self.listeners = Listeners()
        self.logs = BoundedLogs(reactor, Settings().log_size)
        self.engines = Engines(reactor, self.logs, self._changed)
        login = dict(os.environ)
        changed = self.listeners.environments_changed
        self.catalogue = Catalogue(reactor, login, sys.prefix, changed)
        self.workers = Workers(reactor, self.rest, login)
        self.changes = Changes(self.catalogue, self.workers, changed, self.engines.running_in)
        activations = Activations(partial(shell.run, reactor))
        self.spinning = SpinningUp(self.engines, self.catalogue, self.changes, activations, login)
        self.brokers = BrokerFactory()
        self._leaving = reactor.callLater(FIRST_LINGER, self._leave)

    def _changed(self, engine: Engine) -> None:
        self.listeners.changed(engine)
        if engine.state == DEAD:
            self.rest()

    def rest(self) -> None:
        """Something has ended: with nothing left, so does the proxy, soon."""
        if self._leaving is not None and self._leaving.active():
            self._leaving.cancel()
        self._leaving = None
        if not self._needed():
            self._leaving = self.reactor.callLater(LINGER, self._leave)

    def _needed(self) -> int:
        return self.connections or self.engines.living() or self.workers.busy()

    def _leave(self) -> None:
        self._leaving = None
        if not self._needed():
            log.info("nobody is left: the proxy ends")
            self.reactor.stop()

    def broker(self) -> LimitedBroker:
        """For a daemon's connection. Whoever can open the socket is this user, or root: no login."""
        broker = self.brokers.build(False, trusted=True)
        root = ProxyRoot(
            self.engines, self.catalogue, self.changes, self.spinning, self._set, self.listeners.add, os.getpid()
        )
        broker.setNameForLocal("root", root)
        return broker

    def _set(self, settings: Settings) -> None:
        self.catalogue.settings = settings
        self.logs.resize(settings.log_size)

    def link(self) -> LinkConnection:
        """For a link that a daemon passes on."""
        return LinkConnection(Link.accepting(self.reactor, self._greeted))

    def _greeted(self, link: Link, hello: Hello) -> None:
        engine = self.engines.get(hello.engine)
        end = RemoteEnd(self.reactor, link, engine.record.connection, engine.expects)
        engine.attach(end)

        def over(_: SksdError | None) -> None:
            engine.detach(end)

        link.when_ended().addCallback(over)


class Entrance(protocol.Protocol):
    """One connection: its first line says which protocol follows, as ALPN does on the daemon's port."""

    transport: Any

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._said = b""
        self._inner: protocol.Protocol | None = None

    def connectionMade(self) -> None:
        """Counts."""
        self._proxy.connections += 1

    def dataReceived(self, data: bytes) -> None:
        """Reads the line, then hands on."""
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._said += data
        for preamble, build in ((PREAMBLE_PB, self._proxy.broker), (PREAMBLE_LINK, self._proxy.link)):
            if self._said.startswith(preamble):
                self._inner = build()
                self._inner.makeConnection(self.transport)
                rest, self._said = self._said[len(preamble) :], b""
                if rest:
                    self._inner.dataReceived(rest)
                return
        if len(self._said) >= max(len(PREAMBLE_PB), len(PREAMBLE_LINK)):
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Counts."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
        self._proxy.connections -= 1
        self._proxy.rest()


def _answer(said: dict[str, Any]) -> None:
    """Tell the gate how the start went, then let go of its pipe: the proxy outlives it."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(said).encode() + b"\n")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


def _lock() -> int:
    path = paths.runtime() / "proxy.lock"
    end = time.monotonic() + LOCK_LIMIT
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                # One that is just ending still holds it, for a moment.
                if time.monotonic() > end:
                    raise ProxyFailed(user="this user", problem="another one holds its lock") from None
            time.sleep(0.02)
    except OSError as failed:
        raise CannotWrite(path=str(path), problem=failed.strerror or str(failed)) from None


def main() -> None:
    """Run until nobody needs it. Says {"ready": true} or {"error": sentence} on stdout."""
    from twisted.internet import reactor

    running: Any = reactor
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    try:
        paths.private(paths.runtime())
        paths.private(paths.state())
        lock = _lock()
        proxy = Proxy(running)
        proxy.engines.adopt()
        path = paths.proxy_socket()
        path.unlink(missing_ok=True)
        factory = protocol.Factory.forProtocol(lambda: Entrance(proxy))
        factory.noisy = False
        running.listenUNIX(str(path), factory, mode=0o600)
    except (SksdError, OSError, error.CannotListenError) as failed:
        _answer({"error": str(failed)})
        raise SystemExit(1) from None
    running.callWhenRunning(_answer, {"ready": True})
    running.callWhenRunning(proxy.changes.repair_at_start)
    running.addSystemEventTrigger("before", "shutdown", proxy.engines.release)
    running.run()
    path.unlink(missing_ok=True)
    os.close(lock)
