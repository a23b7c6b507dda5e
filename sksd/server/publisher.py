"""Tells the local network that this host is here (zeroconf: RFC 6762 and 6763), as long as the daemon runs.

Nothing that the network does wrong reaches the daemon: it is written to the log, once, and tried again later.
Needs the asyncio reactor.
"""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zeroconf import InterfaceChoice, IPVersion, ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from sksd.server.certificate import own_addresses
from sksd.server.configuration import Configuration
from sksd.wire.announcement import Announcement, encode, instance
from sksd.wire.names import SERVICE_TYPE

#: Seconds between two updates of the record (RFC 6762, section 6, asks for one).
INTERVAL: Final = 1.0
#: Seconds until a failed registration is tried again.
RETRY: Final = 30.0
#: Seconds that saying goodbye may take.
PATIENCE: Final = 5.0


class Zeroconf(Protocol):
    """What is used of AsyncZeroconf. Each call's answer is awaited twice: for its start, and for its end."""

    async def async_register_service(
        self, info: ServiceInfo, *, allow_name_change: bool
    ) -> Awaitable[Any]: ...

    async def async_update_service(self, info: ServiceInfo) -> Awaitable[Any]: ...

    async def async_unregister_service(self, info: ServiceInfo) -> Awaitable[Any]: ...

    async def async_close(self) -> None: ...


def _awaited(coroutine: Coroutine[Any, Any, None]) -> Deferred[None]:
    return Deferred.fromFuture(asyncio.ensure_future(coroutine))


@attrs.frozen
class Network:
    """Where to announce: `interfaces` and `version` as zeroconf takes them, and the addresses to tell."""

    interfaces: list[str] | InterfaceChoice
    version: IPVersion
    addresses: tuple[str, ...]


def network(listen: str, addresses: Iterable[str]) -> Network:
    """Where a daemon that listens on `listen` (empty: all) of a machine with `addresses` is to be announced.

    Never where it cannot be reached: a daemon on the loopback interface is announced on that alone.
    """
    if listen:
        address = ipaddress.ip_address(listen)
        told = (str(address).partition("%")[0],)
        if address.is_loopback:
            # zeroconf cannot multicast on ::1; the record may be carried by IPv4 all the same.
            return Network(["127.0.0.1"], IPVersion.V4Only, told)
        return Network(list(told), IPVersion.V4Only if address.version == 4 else IPVersion.V6Only, told)
    found = [ipaddress.ip_address(address) for address in addresses]
    reachable = [address for address in found if not address.is_loopback]
    if not reachable:
        return Network(["127.0.0.1"], IPVersion.V4Only, tuple(str(address) for address in found))
    six = any(address.version == 6 for address in reachable)
    ordered = sorted(reachable, key=lambda address: (address.version, address.is_link_local))
    return Network(
        InterfaceChoice.All,
        IPVersion.All if six else IPVersion.V4Only,
        tuple(str(address) for address in ordered),
    )


def _zeroconf(where: Network) -> Zeroconf:
    return AsyncZeroconf(interfaces=where.interfaces, ip_version=where.version)


class NullPublisher:
    """For `announce = no`: the same calls, and nothing happens."""

    def start(self) -> Deferred[None]:
        """See Publisher."""
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def update(
        self,
        *,
        running: int | None = None,
        environments: Iterable[str] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """See Publisher."""

    def stop(self) -> Deferred[None]:
        """See Publisher."""
        return self.start()


class Publisher:
    """Registers one service and keeps its record up to date.

    The service makes one (`publisher`), starts it when it knows its port, tells it what changes, and stops it
    before the reactor ends. `zeroconf`, `run` and `addresses` are arguments for the tests.
    """

    _log = Logger()

    def __init__(
        self,
        announcement: Announcement,
        port: int,
        clock: IReactorTime,
        *,
        listen: str = "",
        tell_environments: bool = False,
        zeroconf: Callable[[Network], Zeroconf] = _zeroconf,
        run: Callable[[Coroutine[Any, Any, None]], Deferred[None]] = _awaited,
        addresses: Callable[[], Iterable[str]] = own_addresses,
    ) -> None:
        self._wanted = announcement
        self._port = port
        self._clock = clock
        self._listen = listen
        self._tell_environments = tell_environments
        self._make = zeroconf
        self._run = run
        self._addresses = addresses
        # Hosts that share a host name must not share a record of addresses (RFC 6763, section 4.1.1).
        self._server = f"{uuid.uuid4()}.local."
        self._zeroconf: Zeroconf | None = None
        self._info: ServiceInfo | None = None
        self._said: Announcement | None = None
        self._said_at = 0.0
        self._timer: IDelayedCall | None = None
        self._busy: Deferred[None] | None = None
        self._stopped = False
        self._complained = False

    @property
    def instance(self) -> str | None:
        """The name under which the network knows this host, None while it does not. It differs from the
        pretty name when that was taken."""
        return None if self._info is None else self._info.name.removesuffix(f".{SERVICE_TYPE}")

    def start(self) -> Deferred[None]:
        """Register; fires when the network was told, or could not be. Never fails. Call it in a running
        reactor."""
        return self._do(self._register())

    def update(
        self,
        *,
        running: int | None = None,
        environments: Iterable[str] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """The number of engines that run, the names of the environments, or the certificate have changed.

        Returns at once. The record follows within a second, and never more often than once a second.
        """
        if running is not None:
            self._wanted = attrs.evolve(self._wanted, running=running)
        if environments is not None and self._tell_environments:
            self._wanted = attrs.evolve(self._wanted, environments=tuple(environments))
        if fingerprint is not None:
            self._wanted = attrs.evolve(self._wanted, fingerprint=fingerprint)
        self._plan()

    def stop(self) -> Deferred[None]:
        """Withdraw the record (goodbye); fires when that is done, after 5 s at the latest. Never fails."""
        self._stopped = True
        self._cancel()
        done: Deferred[None] = Deferred()
        if self._busy is not None:
            self._busy.addCallback(lambda _: self._do(self._withdraw())).chainDeferred(done)
        else:
            self._do(self._withdraw()).chainDeferred(done)
        return done.addTimeout(PATIENCE, self._clock).addErrback(self._complain)

    def _complain(self, failure: Any) -> None:
        if not self._complained:
            self._complained = True
            self._log.warn(
                "This host cannot be announced on the local network ({problem}): it can still be reached"
                " by its address.",
                problem=failure.getErrorMessage() or failure.type.__name__,
            )

    def _cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> Deferred[None]:
        """Run one conversation with the network; only ever one at a time."""
        done: Deferred[None] = Deferred()
        self._busy = done

        def ended(_: object) -> None:
            self._busy = None
            self._said_at = self._clock.seconds()
            self._plan()
            done.callback(None)

        self._run(coroutine).addErrback(self._complain).addCallback(ended)
        return done

    def _plan(self) -> None:
        if self._stopped or self._busy is not None or self._timer is not None:
            return
        if self._said is None:
            self._timer = self._clock.callLater(RETRY, self._due, self._register)
        elif self._said != self._wanted:
            wait = max(0.0, self._said_at + INTERVAL - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._due, self._tell)

    def _due(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._timer = None
        self._do(step())

    def _service(self, name: str, addresses: Iterable[str], announcement: Announcement) -> ServiceInfo:
        return ServiceInfo(
            SERVICE_TYPE,
            name,
            port=self._port,
            properties=dict(encode(announcement)),
            server=self._server,
            parsed_addresses=list(addresses),
        )

    async def _register(self) -> None:
        wanted = self._wanted
        where = network(self._listen, self._addresses())
        info = self._service(f"{instance(wanted.name)}.{SERVICE_TYPE}", where.addresses, wanted)
        zeroconf = self._make(where)
        try:
            await (await zeroconf.async_register_service(info, allow_name_change=True))
        except BaseException:
            await zeroconf.async_close()
            raise
        self._zeroconf, self._info, self._said = zeroconf, info, wanted
        self._complained = False

    async def _tell(self) -> None:
        assert self._zeroconf is not None and self._info is not None
        # What failed once is not tried again until the next change: a record is a hint.
        self._said = wanted = self._wanted
        where = network(self._listen, self._addresses())
        info = self._service(self._info.name, where.addresses, wanted)
        await (await self._zeroconf.async_update_service(info))
        self._info = info

    async def _withdraw(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        info, self._info, self._said = self._info, None, None
        if zeroconf is None or info is None:
            return
        try:
            await (await zeroconf.async_unregister_service(info))
        finally:
            await zeroconf.async_close()


def publisher(
    configuration: Configuration,
    announcement: Announcement,
    port: int,
    clock: IReactorTime,
) -> Publisher | NullPublisher:
    """The publisher that the configuration asks for. `announcement`: what is known at the start."""
    if not configuration.announce:
        return NullPublisher()
    tell = configuration.announce_environments
    if not tell:
        announcement = attrs.evolve(announcement, environments=())
    return Publisher(announcement, port, clock, listen=configuration.listen, tell_environments=tell)
