"""Holds a link to one engine and offers it to front ends as an ordinary Jupyter connection file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
from twisted.internet import defer
from twisted.internet.error import ConnectionLost

from sksd import __version__, paths
from sksd.client.session import CONNECT_TIMEOUT, Route, open_link
from sksd.errors import CannotWrite, LinkCut, SksdError, TimedOut
from sksd.link.hello import new_hello
from sksd.link.limits import FINISH_LIMIT, GOODBYE_LIMIT
from sksd.link.link import Link
from sksd.link.local import Channels, LocalEnd
from sksd.link.protocol import LinkConnection
from sksd.wire.messages import Ticket

IPC: Final = "ipc"
TCP: Final = "tcp"
_FOLDERS: Final = "relay-"


class _Connection(LinkConnection):
    """Tells when its transport is gone, so that the last word has left."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.gone: defer.Deferred[None] = defer.Deferred()

    def connectionLost(self, reason: Any = None) -> None:
        """Called by the transport, last."""
        if reason.check(ConnectionLost) is not None:
            # Twisted's own words are for programmers.
            self.link.disconnected("the connection broke off")
        else:
            super().connectionLost(reason)
        self.gone.callback(None)


class Relay:
    """Made by `open_relay`. `file` is the connection file, `engine` the engine's id."""

    def __init__(self, reactor: Any, route: Route, ticket: Ticket, file: Path | None, transport: str) -> None:
        self.engine = ticket.engine
        self._reactor = reactor
        self._route = route
        self._ticket = ticket
        self._transport = transport
        self._folder = _Folder()
        self.file = file or self._folder.path / "kernel.json"
        self._link = Link.opening(reactor, new_hello(ticket.ticket, f"sksd {__version__}"))
        self._connection: _Connection | None = None
        self._local: LocalEnd | None = None
        #: The inode of the connection file: another relay may have been given the same name since.
        self._written: int | None = None
        self._stopping = False

    async def _open(self, timeout: float) -> None:
        self._connection = await open_link(self._reactor, self._route, lambda: _Connection(self._link), timeout)
        welcomed = self._link.when_welcomed()
        try:
            await welcomed.addTimeout(timeout, self._reactor)
        except defer.TimeoutError:
            raise TimedOut(host=self._route.name, seconds=f"{timeout:g}") from None
        except SksdError as error:
            raise self._named(error) from None
        channels = Channels(
            key=self._ticket.key,
            kernel_name=self._ticket.kernel_name,
            transport=self._transport,
            folder=self._folder.sockets,
        )
        self._local = LocalEnd(self._reactor, self._link, channels)
        info = self._local.start()
        try:
            paths.write_private(self.file, msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
        except OSError as error:
            raise CannotWrite(
                host="this machine", path=str(self.file), problem=error.strerror or str(error)
            ) from None
        self._written = os.stat(self.file).st_ino

    def _named(self, error: SksdError) -> SksdError:
        """`error` with what only this end knows: the person's name for the host, and the engine."""
        return type(error)(**{"engine": self.engine, **error.fields, "host": self._route.name})

    def when_ended(self) -> defer.Deferred[SksdError | None]:
        """Fires when the link is over: with why, as EngineEnded or LinkCut; None after `stop`."""

        def over(error: SksdError | None) -> SksdError | None:
            if self._stopping:
                return None
            return self._named(error or LinkCut(problem="the host ended it"))

        return self._link.when_ended().addCallback(over)

    async def stop(self) -> None:
        """End the link (the engine goes on) and remove connection file and sockets. Harmless when done before.

        Returns when everything is gone, after FINISH_LIMIT and GOODBYE_LIMIT seconds at the latest.
        """
        self._stopping = True
        try:
            if self._local is not None:
                await self._local.stop()
            else:
                self._link.end()
            if self._connection is not None and not self._connection.gone.called:
                # Shielded: a person who is in a hurry ends the waiting, not the protocol.
                leaving: defer.Deferred[None] = defer.Deferred()
                self._connection.gone.addCallback(lambda _: None if leaving.called else leaving.callback(None))
                limit = FINISH_LIMIT + GOODBYE_LIMIT + 1
                with contextlib.suppress(defer.TimeoutError):
                    await leaving.addTimeout(limit, self._reactor)
        finally:
            with contextlib.suppress(OSError):
                if self._written is not None and os.stat(self.file).st_ino == self._written:
                    self.file.unlink()
            self._written = None
            self._folder.remove()


class _Folder:
    """A private folder for one relay, locked for as long as it lives: what a killed one has left is removed."""

    def __init__(self) -> None:
        parent = paths.private(paths.runtime())
        _sweep(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_FOLDERS, dir=parent))
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.sockets = self.path / "s"
            self.sockets.mkdir(mode=0o700)
        except OSError as error:
            raise CannotWrite(host="this machine", path=str(parent), problem=error.strerror or str(error)) from None

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


async def open_relay(
    reactor: Any,
    route: Route,
    ticket: Ticket,
    *,
    file: Path | None = None,
    transport: str = IPC,
    timeout: float = CONNECT_TIMEOUT,
) -> Relay:
    """Open the link and listen; front ends can connect when this returns.

    `file`: where to write the connection file (None: in a private folder); its folder exists. `transport`: IPC or
    TCP (on 127.0.0.1, for front ends that know nothing else). Called by the command line and the Spyder plugin.
    Raises what `connect` raises, and TicketRefused, EngineEnded, CannotListen, CannotWrite.
    """
    relay = Relay(reactor, route, ticket, file, transport)
    try:
        await relay._open(timeout)
    except BaseException:
        await relay.stop()
        raise
    return relay
