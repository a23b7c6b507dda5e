"""Finds hosts on the local network (zeroconf: RFC 6762 and 6763).

Runs under any reactor, Qt's included: zeroconf has threads of its own, and everything here that is not marked
otherwise happens in the reactor's. A record is a hint that anybody may have sent and that may outlive its
host by minutes: `alive` asks the host itself, and trust begins with its certificate.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zeroconf import InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from sksd.errors import NoSuchHost
from sksd.wire.announcement import LONGEST_INSTANCE, decode, instance, printable
from sksd.wire.names import SERVICE_TYPE

#: Hosts that are listed, and addresses of one that are tried; more are ignored.
MOST_HOSTS: Final = 512
MOST_ADDRESSES: Final = 16
#: Milliseconds that a host has to tell the details of a record.
_DETAILS: Final = 3000
#: Threads that wait for details at once.
_AT_ONCE: Final = 4
#: Seconds without news after which `browse` takes the list for complete. Answers come within 0.12 s (RFC
#: 6762, section 6), and are asked for again after 1 s.
_QUIET: Final = 0.7


@attrs.frozen
class Found:
    """One host, as its record tells. Every text is safe to print.

    `name`: what to call it: the pretty name, or the name of the record where several hosts share the pretty
    one. `addresses`: IPv4 first, link-local ones last and with their scope. `fingerprint` is empty, `running`
    and `maximum` None where the record does not tell.
    """

    name: str
    instance: str
    hostname: str
    addresses: tuple[str, ...]
    port: int
    fingerprint: str
    version: str
    protocol: int
    running: int | None
    maximum: int | None
    methods: tuple[str, ...]
    environments: tuple[str, ...]

    def called(self, name: str) -> bool:
        """Whether a person who says `name` may mean this host; case does not matter."""
        wanted = name.strip().rstrip(".").casefold()
        return wanted in {self.name.casefold(), self.instance.casefold(), self.hostname.casefold()}


def _usable(texts: Sequence[str]) -> tuple[str, ...]:
    found: dict[ipaddress.IPv4Address | ipaddress.IPv6Address, None] = {}
    for text in texts:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(text)
            scopeless = isinstance(address, ipaddress.IPv6Address) and not address.scope_id
            if address.is_unspecified or address.is_multicast or (scopeless and address.is_link_local):
                continue
            found[address] = None
    ordered = sorted(found, key=lambda address: (address.is_link_local, address.version))
    return tuple(str(address) for address in ordered[:MOST_ADDRESSES])


def read(info: ServiceInfo) -> Found | None:
    """The host that a resolved record describes; None when it is none of ours, or cannot be reached."""
    said = decode(info.properties)
    addresses = _usable(info.parsed_scoped_addresses(IPVersion.All))
    if said is None or not addresses or not info.port:
        return None
    label = printable(info.name.removesuffix(f".{SERVICE_TYPE}"), LONGEST_INSTANCE)
    name = said.name if said.name and instance(said.name) == label else label
    if not name:
        return None
    return Found(
        name=name,
        instance=label,
        hostname=said.hostname,
        addresses=addresses,
        port=info.port,
        fingerprint=said.fingerprint,
        version=said.version,
        protocol=said.protocol,
        running=said.running,
        maximum=said.maximum,
        methods=said.methods,
        environments=said.environments,
    )


def _zeroconf() -> Zeroconf:
    try:
        return Zeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.All)
    except OSError:
        return Zeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.V4Only)


class Browser:
    """Keeps a list of the hosts on the network.

    `on_change` is called in the reactor's thread with the whole list, by name, after each change. `zeroconf`
    is called in a thread and makes the network's end, for tests.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        on_change: Callable[[list[Found]], object],
        zeroconf: Callable[[], Zeroconf] = _zeroconf,
    ) -> None:
        self._reactor = reactor
        self._on_change = on_change
        self._make = zeroconf
        self._zeroconf: Zeroconf | None = None
        self._starting: Deferred[None] | None = None
        self._stopped = False
        self._limit = DeferredSemaphore(_AT_ONCE)
        # For each record's name: what it says, and the number of the latest news about it.
        self._found: dict[str, Found] = {}
        self._news: dict[str, int] = {}
        self._count = 0

    @property
    def found(self) -> list[Found]:
        """The hosts known by now, by name."""
        return sorted(self._found.values(), key=lambda found: (found.name.casefold(), found.instance))

    def _thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)

    def start(self) -> Deferred[None]:
        """Begin to listen; fires when that is under way. Fails with OSError when this machine has no
        network."""

        def begin() -> Zeroconf:
            # Not in the reactor's thread: under asyncio zeroconf would take over the reactor's own loop.
            made = self._make()
            ServiceBrowser(made, SERVICE_TYPE, handlers=[self._heard])
            return made

        def begun(made: Zeroconf) -> None:
            self._zeroconf = made

        done = self._thread(begin).addCallback(begun)
        self._starting = done
        return done

    def stop(self) -> Deferred[None]:
        """End; fires when no thread is left. `on_change` is not called any more."""
        self._stopped = True

        def close(_: object) -> Deferred[None] | None:
            made, self._zeroconf = self._zeroconf, None
            return None if made is None else self._thread(made.close)

        waiting: Deferred[None] = Deferred()
        if self._starting is None:
            waiting.callback(None)
        else:
            self._starting.addBoth(lambda _: waiting.callback(None))
        return waiting.addCallback(close)

    def _heard(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        # In a thread of zeroconf.
        self._reactor.callFromThread(self._changed, zeroconf, name, state_change)

    def _changed(self, zeroconf: Zeroconf, name: str, change: ServiceStateChange) -> None:
        if self._stopped:
            return
        if change is ServiceStateChange.Removed:
            self._news.pop(name, None)
            if self._found.pop(name, None) is not None:
                self._on_change(self.found)
            return
        if name not in self._news and len(self._news) >= MOST_HOSTS:
            return
        self._count += 1
        self._news[name] = news = self._count

        def ask() -> Found | None:
            if self._stopped:
                return None
            info = ServiceInfo(SERVICE_TYPE, name)
            return read(info) if info.request(zeroconf, _DETAILS) else None

        def answered(found: Found | None) -> None:
            # Meanwhile it may have changed again, or be gone.
            if self._stopped or self._news.get(name) != news:
                return
            if found is None:
                self._found.pop(name, None)
            elif self._found.get(name) == found:
                return
            else:
                self._found[name] = found
            self._on_change(self.found)

        def failed(failure: Any) -> None:
            self._log.debug(
                "A record on the network cannot be read: {problem}", problem=failure.getErrorMessage()
            )

        self._limit.run(self._thread, ask).addCallbacks(answered, failed)


async def _until(
    reactor: Any,
    seconds: float,
    enough: Callable[[list[Found]], bool],
    quiet: float | None,
    zeroconf: Callable[[], Zeroconf],
) -> list[Found]:
    """The list as it is when `enough` says so, or after `quiet` seconds without a change to a list that is
    not empty, or after `seconds`."""
    ended: Deferred[None] = Deferred()
    timers: list[IDelayedCall] = []

    def end() -> None:
        if not ended.called:
            ended.callback(None)

    def changed(found: list[Found]) -> None:
        if enough(found):
            end()
        elif quiet is not None and found:
            for timer in timers[1:]:
                timer.cancel()
            timers[1:] = [reactor.callLater(quiet, settled)]

    def settled() -> None:
        del timers[1:]
        end()

    def expired() -> None:
        del timers[:1]
        end()

    browser = Browser(reactor, changed, zeroconf)
    try:
        await browser.start()
        timers.insert(0, reactor.callLater(seconds, expired))
        await ended
        return browser.found
    finally:
        for timer in timers:
            if timer.active():
                timer.cancel()
        await browser.stop()


async def browse(reactor: Any, seconds: float, zeroconf: Callable[[], Zeroconf] = _zeroconf) -> list[Found]:
    """The hosts on the network, by name: after `seconds`, or sooner when the answers have ceased to come."""
    return await _until(reactor, seconds, lambda found: False, _QUIET, zeroconf)


async def resolve_name(
    reactor: Any, name: str, seconds: float = 3.0, zeroconf: Callable[[], Zeroconf] = _zeroconf
) -> Found:
    """The host with the pretty name or host name `name`, as soon as it is found.

    Raises NoSuchHost after `seconds`.
    """

    def named(found: list[Found]) -> list[Found]:
        matching = [host for host in found if host.called(name)]
        wanted = name.strip().casefold()
        # Its own name goes before a host name, which several daemons of one machine share.
        return sorted(matching, key=lambda host: host.name.casefold() != wanted)

    found = named(await _until(reactor, seconds, lambda found: bool(named(found)), None, zeroconf))
    if not found:
        raise NoSuchHost(host=name)
    return found[0]


async def alive(reactor: Any, found: Found, timeout: float = 2.0) -> str | None:
    """Which of the host's addresses takes a TCP connection first; None when none does within `timeout`
    seconds.

    It says that something listens there: who it is, TLS tells.
    """
    first: Deferred[str | None] = Deferred()
    attempts: list[Deferred[Any]] = []
    left = len(found.addresses)

    def connected(protocol: Any, address: str) -> None:
        protocol.transport.abortConnection()
        if not first.called:
            first.callback(address)

    def failed(_: object) -> None:
        nonlocal left
        left -= 1
        if not left and not first.called:
            first.callback(None)

    for address in found.addresses:
        endpoint = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        attempt: Deferred[Any] = endpoint(reactor, address, found.port, timeout=timeout).connect(
            Factory.forProtocol(Protocol)
        )
        attempt.addCallback(connected, address).addErrback(failed)
        attempts.append(attempt)
    timer = reactor.callLater(timeout, lambda: None if first.called else first.callback(None))
    try:
        return await first if attempts else None
    finally:
        if timer.active():
            timer.cancel()
        for attempt in attempts:
            attempt.cancel()
