"""Holds a link to one engine and offers it to front ends as an ordinary Jupyter connection file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from twisted.internet import defer
from twisted.logger import Logger

from sksd import __version__, paths
from sksd.client.backoff import Backoff
from sksd.client.network import NetworkWatch
from sksd.client.session import CONNECT_TIMEOUT, Route, open_link
from sksd.client.state import Kept, RelayState
from sksd.errors import (
    CannotWrite,
    HostGone,
    LinkCut,
    NotSksd,
    ProxyFailed,
    ProxyLost,
    SksdError,
    TimedOut,
    Unreachable,
)
from sksd.link.core import CHANNELS
from sksd.link.hello import Hello, Replay, new_hello
from sksd.link.limits import FINISH_LIMIT, GOODBYE_LIMIT
from sksd.link.link import Link
from sksd.link.local import HEARTBEAT, Channels, LocalEnd
from sksd.link.protocol import LinkConnection
from sksd.link.restart import Before
from sksd.wire.messages import Ticket

log = Logger()

IPC: Final = "ipc"
TCP: Final = "tcp"
_FOLDERS: Final = "relay-"
#: The link is up to date when fewer bytes than `_TRICKLE` came in `_SETTLE` seconds.
_SETTLE: Final = 0.2
_TRICKLE: Final = 64 * 1024
#: Why a host may not be reached just now; anything else ends a link.
_PASSING: Final = (Unreachable, TimedOut, HostGone, LinkCut, NotSksd, ProxyFailed, ProxyLost, OSError)


class Status(msgspec.Struct, frozen=True):
    """What a person may be told of a link. `cut`: seconds since it was cut, None while it stands; `why`: what cut it.
    `settling`: it stands again, and is being brought up to date; `caught_up`: bytes that came meanwhile; `lost`: the
    host had forgotten the link, so that what was said meanwhile may be missing."""

    cut: float | None = None
    why: str = ""
    settling: bool = False
    caught_up: int = 0
    lost: bool = False


class Carrier:
    """One link that is connected again whenever it is cut, for as long as its engine lives.

    `told(status)` is called when the link is cut, when it stands again, and when it is up to date. With `before` it
    is a link whose relay was killed. Used by the relay, and by whoever speaks on a link without front ends.
    """

    def __init__(
        self,
        reactor: Any,
        route: Route,
        hello: Hello,
        told: Callable[[Status], None],
        before: Before | None = None,
    ) -> None:
        self.link = Link.opening(reactor, hello, before=before)
        #: The host is another one than it was: its link may still be there.
        self.mistrusts = False
        self.link.on_cut = self._cut
        self.link.on_resumed = self._resumed
        self._reactor = reactor
        self._route = route
        self._told = told
        self._backoff = Backoff(random.random)
        self._network: NetworkWatch | None = None
        self._retry: Any = None
        self._trying = False
        self._why = ""
        self._since = 0.0
        self._before = 0
        self._late: Any = None

    async def open(self, timeout: float) -> None:
        """The first connection. Raises what `connect` raises, TicketRefused, EngineEnded and NoSuchEngine. A link
        that goes on is connected again like any that was cut, and nothing is raised."""
        if self.link.core.is_cut:
            self._watch()
            self._cut("its relay was killed")
            return
        await self._connect(timeout)
        welcomed = self.link.when_welcomed()
        try:
            await welcomed.addTimeout(timeout, self._reactor)
        except defer.TimeoutError:
            raise TimedOut(host=self._route.name, seconds=f"{timeout:g}") from None
        self._backoff.connected(self._reactor.seconds())
        if not self.link.ended:
            self._watch()

    def _watch(self) -> None:
        self._network = NetworkWatch(self._reactor, self._changed)
        self.link.when_ended().addCallback(self._over)

    def _over(self, error: SksdError | None) -> SksdError | None:
        if self._network is not None:
            self._network.stop()
        for timer in (self._retry, self._late):
            if timer is not None and timer.active():
                timer.cancel()
        return error

    async def _connect(self, timeout: float) -> None:
        await open_link(self._reactor, self._route, lambda: LinkConnection(self.link), timeout)

    def _changed(self) -> None:
        """The network may be another."""
        if self.link.core.is_cut:
            self._backoff.now()
            self._again(0.0)
        else:
            self.link.probe()

    def _cut(self, problem: str) -> None:
        if not self._since:
            self._since, self._why = self._reactor.seconds(), problem
            self._before = self.link.core.received
            log.info("the link was cut: {why}", why=problem)
            self._told(Status(cut=0.0, why=problem))
        self._again(self._backoff.wait(self._reactor.seconds()))

    def _again(self, wait: float) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if not self._trying:
            self._retry = self._reactor.callLater(wait, lambda: defer.ensureDeferred(self._try()))

    async def _try(self) -> None:
        if self._trying or self.link.ended or not self.link.core.is_cut:
            return
        self._trying = True
        try:
            await self._connect(CONNECT_TIMEOUT)
        except _PASSING as error:
            log.info("not yet: {why}", why=str(error))
        except SksdError as error:
            # The certificate is another one: nothing more may be said to that host.
            self.mistrusts = True
            self.link.end(error)
        finally:
            self._trying = False
        if not self.link.ended and self.link.core.is_cut:
            self._told(Status(cut=self.cut_for, why=self._why))
            self._again(self._backoff.wait(self._reactor.seconds()))

    @property
    def cut_for(self) -> float | None:
        """Seconds since the link was cut; None while it stands."""
        return self._reactor.seconds() - self._since if self._since else None

    def _resumed(self) -> None:
        self._since = 0.0
        self._backoff.connected(self._reactor.seconds())
        self._told(Status(settling=True))
        # What the cut has held up comes within moments; then it is known how much that was.
        self._settle(self.link.core.received)

    def _settle(self, received: int) -> None:
        def look() -> None:
            now = self.link.core.received
            if self._since or self.link.ended:
                return
            if now - received > _TRICKLE:
                self._settle(now)
            else:
                self._told(Status(caught_up=now - self._before))

        self._late = self._reactor.callLater(_SETTLE, look)


class Relay:
    """Made by `open_relay`. `file` is the connection file, `engine` the engine's id."""

    def __init__(
        self,
        reactor: Any,
        route: Route,
        ticket: Ticket,
        file: Path | None,
        transport: str,
        replay: Replay,
        told: Callable[[Status], None],
        state: State | None,
    ) -> None:
        kept = state.files.kept if state is not None else None
        self.engine = ticket.engine
        self._reactor = reactor
        self._route = route
        self._ticket = ticket
        self._transport = transport if kept is None else kept.transport
        self._ports = {} if kept is None else kept.ports
        self._state = state
        # Front ends know the old place of the sockets.
        self._folder = _Folder("" if state is None else str(state.files.folder.resolve()))
        self.file = file or self._folder.path / "kernel.json"
        before = None
        if state is None or kept is None:
            hello = new_hello(ticket.ticket, f"sksd {__version__}", replay)
        else:
            hello, before = kept.hello, state.files.before()
        self._hello = hello
        self._carrier = Carrier(reactor, route, hello, told, before)
        self._carrier.link.keep = None if state is None else state.files
        #: What is kept is of use to nobody any more.
        self._forget = kept is None
        self._local: LocalEnd | None = None
        #: The inode of the connection file: another relay may have been given the same name since.
        self._written: int | None = None
        self._stopping = False

    async def _open(self, timeout: float) -> None:
        try:
            await self._carrier.open(timeout)
        except SksdError as error:
            raise self._named(error) from None
        channels = Channels(
            key=self._ticket.key,
            kernel_name=self._ticket.kernel_name,
            transport=self._transport,
            folder=self._folder.sockets,
            ports=self._ports,
        )
        local = LocalEnd(self._reactor, self._carrier.link, channels)
        info = local.start()
        self._local = local
        if self._state is not None:
            self._keep(self._state, info)
        try:
            paths.write_private(self.file, msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
        except OSError as error:
            raise CannotWrite(
                host="this machine", path=str(self.file), problem=error.strerror or str(error)
            ) from None
        self._written = os.stat(self.file).st_ino

    def _keep(self, state: State, info: dict[str, str | int]) -> None:
        ports = {name: int(info[f"{name}_port"]) for name in (*CHANNELS, HEARTBEAT)}
        if state.files.kept is None:
            state.files.begin(
                Kept(
                    hello=self._hello,
                    ticket=self._ticket,
                    transport=self._transport,
                    ports=ports if self._transport == TCP else {},
                    host=state.host,
                    wanted=state.wanted,
                    file=str(self.file),
                )
            )
        self._forget = True

    def _named(self, error: SksdError) -> SksdError:
        """`error` with what only this end knows: the person's name for the host, and the engine."""
        return type(error)(**{"engine": self.engine, **error.fields, "host": self._route.name})

    @property
    def cut_for(self) -> float | None:
        """Seconds since the link was cut; None while it stands."""
        return self._carrier.cut_for

    @property
    def past(self) -> int:
        """How many messages of `replay` come before those that are said now."""
        return self._carrier.link.past

    def when_ended(self) -> defer.Deferred[SksdError | None]:
        """Fires when the link is over: with why, as EngineEnded or LinkForgotten; None after `stop`."""

        def over(error: SksdError | None) -> SksdError | None:
            if self._stopping:
                return None
            return self._named(error or LinkCut(problem="the host ended it"))

        return self._carrier.link.when_ended().addCallback(over)

    async def stop(self) -> None:
        """End the link (the engine goes on) and remove connection file and sockets. Harmless when done before.

        Returns when everything is gone, after FINISH_LIMIT and GOODBYE_LIMIT seconds at the latest.
        """
        self._stopping = True
        link = self._carrier.link
        try:
            if self._local is not None:
                await self._local.stop()
            else:
                link.end()
            if not link.when_closed().called:
                # Shielded: a person who is in a hurry ends the waiting, not the protocol.
                with contextlib.suppress(defer.TimeoutError):
                    await link.when_closed().addTimeout(FINISH_LIMIT + GOODBYE_LIMIT + 1, self._reactor)
        finally:
            with contextlib.suppress(OSError):
                if self._written is not None and os.stat(self.file).st_ino == self._written:
                    self.file.unlink()
            self._written = None
            self._folder.remove()
            if self._state is not None and self._forget and not self._carrier.mistrusts:
                self._state.files.remove()
            elif self._state is not None:
                self._state.files.release()


class _Folder:
    """A private folder for one relay, locked for as long as it lives: what a killed one has left is removed.

    The same `name` is the same folder; no other relay that runs has it. An empty one is a name of its own.
    """

    def __init__(self, name: str = "") -> None:
        parent = paths.private(paths.runtime())
        _sweep(parent)
        try:
            if name:
                self.path = parent / f"{_FOLDERS}{hashlib.sha256(name.encode()).hexdigest()[:10]}"
                while not self._take():
                    pass
            else:
                self.path = Path(tempfile.mkdtemp(prefix=_FOLDERS, dir=parent))
                self._take()
            self.sockets = self.path / "s"
            self.sockets.mkdir(mode=0o700)
        except OSError as error:
            raise CannotWrite(host="this machine", path=str(parent), problem=error.strerror or str(error)) from None

    def _take(self) -> bool:
        """Make and lock it; False when another relay, which takes it for a dead one's, was quicker to remove it."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == os.fstat(self._lock).st_ino:
                return True
        os.close(self._lock)
        return False

    def remove(self) -> None:
        """Harmless when done before."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_FOLDERS}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Empty: it may have been made this instant, and not be locked yet.
                if any(folder.iterdir()):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _silent(_: Status) -> None:
    pass


class State(NamedTuple):
    """Where a relay keeps what the next one needs when it is killed. `host` and `wanted`: what the person named."""

    files: RelayState
    host: str
    wanted: str


async def open_relay(
    reactor: Any,
    route: Route,
    ticket: Ticket,
    *,
    file: Path | None = None,
    transport: str = IPC,
    timeout: float = CONNECT_TIMEOUT,
    replay: Replay = "missed",
    told: Callable[[Status], None] = _silent,
    state: State | None = None,
) -> Relay:
    """Open the link and listen; front ends can connect when this returns.

    `file`: where to write the connection file (None: in a private folder); its folder exists. `transport`: IPC or
    TCP (on 127.0.0.1, for front ends that know nothing else). `replay`: what the first front end gets of what was
    said before (sksd.link.hello). `told` is called when the link is cut and when it is back. With a `state`
    that has something in it the link, its transport and its sockets are those of the relay that was killed; it is
    removed when the relay or the engine ends, and left when this raises. Called by the command line and the Spyder
    plugin. Raises what `connect` raises, and TicketRefused, EngineEnded, CannotListen,
    CannotWrite.
    """
    relay = Relay(reactor, route, ticket, file, transport, replay, told, state)
    try:
        await relay._open(timeout)
    except BaseException:
        await relay.stop()
        raise
    return relay
