"""The link's end beside the engine: connects each stream to the engine's own channel (used by the proxy)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from sksd.errors import SksdError
from sksd.link.core import CHANNELS
from sksd.link.limits import CONNECT_LIMIT, CONNECT_RETRY
from sksd.link.link import Link
from sksd.link.tap import Tap


class RemoteEnd:
    """Connects the streams of `link` to the engine with the connection info `info`.

    `info` is the content of the engine's connection file (`transport`, `ip`, `shell_port`, ...).
    `is_alive()` says whether the engine runs or is about to (again): as long as it does, a channel that
    does not answer is tried again every CONNECT_RETRY seconds, for CONNECT_LIMIT seconds; what the front
    end says meanwhile waits.
    """

    def __init__(self, reactor: Any, link: Link, info: Mapping[str, str | int], is_alive: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._link = link
        self._endpoints = {channel: _endpoint(reactor, info, channel) for channel in CHANNELS}
        self._is_alive = is_alive
        self._over = False
        link.on_opened = self._opened

    def end(self, error: SksdError | None = None) -> None:
        """The engine is gone for good: what it had said still goes out, then the other end is told why, as by
        EngineEnded (sksd.errors); None: the link is ended without a reason."""
        self._over = True
        self._link.finish(error)

    # ----------------------------------------------------------------------------------------------

    def _opened(self, stream: int, channel: str) -> None:
        tap = Tap(self._link, stream)
        self._link.taps[stream] = tap
        _Dial(self._reactor, self._endpoints[channel], tap, self._may_dial)

    def _may_dial(self) -> bool:
        return not self._over and not self._link.ended and self._is_alive()


def _endpoint(reactor: Any, info: Mapping[str, str | int], channel: str) -> IStreamClientEndpoint:
    ip, port = str(info["ip"]), int(info[f"{channel}_port"])
    if info["transport"] == "ipc":
        endpoint: IStreamClientEndpoint = UNIXClientEndpoint(reactor, f"{ip}-{port}", timeout=5)
    else:
        endpoint = TCP4ClientEndpoint(reactor, ip, port, timeout=5)
    return endpoint


class _Dial:
    """Tries to connect `tap` until it works, `may_dial` says no, or the time is over."""

    def __init__(self, reactor: Any, endpoint: IStreamClientEndpoint, tap: Tap, may_dial: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._tap = tap
        self._may_dial = may_dial
        self._factory = Factory.forProtocol(lambda: tap)
        self._factory.noisy = False
        self._until = reactor.seconds() + CONNECT_LIMIT
        self._retry: IDelayedCall | None = None
        tap.on_lost = self._tap_lost
        self._try()

    def _try(self) -> None:
        self._retry = None
        if not self._may_dial():
            self._tap.connectionLost()
            return
        self._endpoint.connect(self._factory).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if self._tap.lost:
            return
        if not self._may_dial() or self._reactor.seconds() >= self._until:
            self._tap.connectionLost()
        else:
            self._retry = self._reactor.callLater(CONNECT_RETRY, self._try)

    def _tap_lost(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
