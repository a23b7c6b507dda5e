"""The link's end on the user's machine: what a Jupyter front end connects to (used by the relay)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory

from sksd.errors import CannotListen
from sksd.link.core import CHANNELS
from sksd.link.link import Link
from sksd.link.tap import KeptTap
from sksd.link.zmqsocket import ZmqSocket

HEARTBEAT: Final = "hb"
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class Channels:
    """Where to offer the channels.

    `transport` "ipc": UNIX sockets `k-1` to `k-5` in `folder`, which exists, is closed to others and holds
    nothing else; its path has at most 100 bytes. "tcp": 127.0.0.1, with the ports given by channel
    (`shell`, `iopub`, `stdin`, `control`, `hb`), free ones where none is given. `key` and `kernel_name`
    come with the ticket.
    """

    key: str
    kernel_name: str = ""
    transport: str = "ipc"
    folder: Path | None = None
    ports: Mapping[str, int] = field(default_factory=dict)


class LocalEnd:
    """Listens for front ends and gives each connection a stream of `link`.

    The heartbeat is echoed here, and stops when the link has ended: that is how a front end learns of the
    kernel's death. `reactor` is any of Twisted's with TCP, UNIX sockets, descriptors and time.
    """

    def __init__(
        self,
        reactor: Any,
        link: Link,
        channels: Channels,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._reactor = reactor
        self._link = link
        self._channels = channels
        self._context = context or zmq.Context.instance()
        self._listening: list[Any] = []
        self._ports: dict[str, int] = {}
        self._heartbeat: ZmqSocket | None = None
        self._stopped: Deferred[None] | None = None

    def start(self) -> dict[str, str | int]:
        """Listen; answers `connection_info()`. Front ends may connect before the link is welcomed.

        Raises CannotListen, and listens on nothing then.
        """
        try:
            for channel in CHANNELS:
                self._listen(channel)
            self._beat()
        except Exception as error:
            self._leave()
            if isinstance(error, CannotListen):
                raise
            raise CannotListen(address=self._ip(), problem=str(error)) from error
        self._link.when_ended().addCallback(lambda _: self._leave())
        return self.connection_info()

    def connection_info(self) -> dict[str, str | int]:
        """The content of a Jupyter connection file, once started."""
        info: dict[str, str | int] = {f"{name}_port": self._ports[name] for name in (*CHANNELS, HEARTBEAT)}
        info |= {"ip": self._ip(), "key": self._channels.key, "transport": self._channels.transport}
        info |= {"signature_scheme": "hmac-sha256", "kernel_name": self._channels.kernel_name}
        return info

    def stop(self) -> Deferred[None]:
        """End the link (its engine goes on), stop listening, and remove the sockets.

        What front ends have sent so far still leaves. Fires when the ports and the link's connection are
        closed, at the latest after FINISH_LIMIT + GOODBYE_LIMIT seconds: wait for it before the reactor
        stops.
        """
        for tap in list(self._link.taps.values()):
            tap.finish()
        self._link.finish()
        return self._leave().addCallback(lambda _: self._link.when_closed())

    # ----------------------------------------------------------------------------------------------

    def _ip(self) -> str:
        if self._channels.transport == "ipc":
            assert self._channels.folder is not None
            return str(self._channels.folder / "k")
        return _LOOPBACK

    def _listen(self, channel: str) -> None:
        factory = _Front(self._link, channel)
        if self._channels.transport == "ipc":
            self._ports[channel] = len(self._ports) + 1
            port = self._reactor.listenUNIX(self._path(channel), factory, mode=0o600)
        else:
            wanted = self._channels.ports.get(channel, 0)
            port = self._reactor.listenTCP(wanted, factory, interface=_LOOPBACK)
            self._ports[channel] = port.getHost().port
        self._listening.append(port)

    def _path(self, channel: str) -> str:
        path = f"{self._ip()}-{self._ports[channel]}"
        # A relay that was killed leaves its sockets.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return path

    def _beat(self) -> None:
        # ROUTER and not REP: a front end that vanishes between question and answer blocks nobody.
        socket = self._context.socket(zmq.ROUTER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            if self._channels.transport == "ipc":
                self._ports[HEARTBEAT] = len(self._ports) + 1
                socket.bind(f"ipc://{self._path(HEARTBEAT)}")
            elif HEARTBEAT in self._channels.ports:
                self._ports[HEARTBEAT] = self._channels.ports[HEARTBEAT]
                socket.bind(f"tcp://{_LOOPBACK}:{self._ports[HEARTBEAT]}")
            else:
                self._ports[HEARTBEAT] = int(socket.bind_to_random_port(f"tcp://{_LOOPBACK}"))
        except BaseException:
            socket.close(0)
            raise
        beat = self._heartbeat = ZmqSocket(self._reactor, socket, lambda frames: None)
        beat.on_message = beat.send

    def _leave(self) -> Deferred[None]:
        """Stop listening; harmless when done before."""
        if self._stopped is None:
            if self._heartbeat is not None:
                self._heartbeat.close()
            closing = DeferredList([maybeDeferred(port.stopListening) for port in self._listening])
            self._stopped = closing.addCallback(lambda _: self._tidy())
        waiting: Deferred[None] = Deferred()
        self._stopped.addCallback(_tell, waiting)
        return waiting

    def _tidy(self) -> None:
        if self._channels.transport == "ipc":
            for number in self._ports.values():
                # ZeroMQ closes in a thread of its own, and may be quicker.
                with contextlib.suppress(OSError):
                    os.unlink(f"{self._ip()}-{number}")


def _tell(value: None, waiting: Deferred[None]) -> None:
    waiting.callback(None)


class _Front(ServerFactory):
    """Accepts front ends on one channel."""

    noisy = False

    def __init__(self, link: Link, channel: str) -> None:
        self._link = link
        self._channel = channel

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """A stream for the new connection; none is to be had: it is dropped, and ZeroMQ tries again later."""
        keep = self._link.keep
        return self._link.open_tap(self._channel) if keep is None else KeptTap(self._link, keep, self._channel)
