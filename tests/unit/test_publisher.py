"""The publisher: what it tells the network and when, whatever the network does."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zeroconf import InterfaceChoice, IPVersion, ServiceInfo

from sksd.server.configuration import Machine, read
from sksd.server.publisher import (
    INTERVAL,
    PATIENCE,
    RETRY,
    Network,
    NullPublisher,
    Publisher,
    network,
    publisher,
)
from sksd.wire.announcement import Announcement, decode

SAID = Announcement(version="1", protocol=1, name="Lab.1", hostname="box", running=0, maximum=4)


class FakeZeroconf:
    """Notes what it is asked. `fail` is raised; `hold`, when set, must fire before a call ends."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ServiceInfo | None]] = []
        self.fail: Exception | None = None
        self.hold: Deferred[None] | None = None

    async def _do(self, what: str, info: ServiceInfo | None) -> Awaitable[Any]:
        self.calls.append((what, info))
        if self.fail:
            raise self.fail
        return self.hold or succeed(None)

    async def async_register_service(self, info: ServiceInfo, *, allow_name_change: bool) -> Awaitable[Any]:
        assert allow_name_change
        return await self._do("register", info)

    async def async_update_service(self, info: ServiceInfo) -> Awaitable[Any]:
        return await self._do("update", info)

    async def async_unregister_service(self, info: ServiceInfo) -> Awaitable[Any]:
        return await self._do("unregister", info)

    async def async_close(self) -> None:
        self.calls.append(("close", None))

    @property
    def words(self) -> list[str]:
        return [what for what, _ in self.calls]

    def said(self) -> Announcement:
        """The record as it was told last."""
        info = next(info for _, info in reversed(self.calls) if info is not None)
        found = decode(info.properties)
        assert found is not None
        return found


class PublisherTests(SynchronousTestCase):
    """One publisher on a network that does as it is told."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.net = FakeZeroconf()
        self.made: list[Network] = []
        self.publisher = self.make()
        self.warned: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: dict[str, Any]) -> None:
        if "cannot be announced" in (event.get("log_format") or ""):
            self.warned.append(event["problem"])

    def make(self, **options: Any) -> Publisher:
        def zeroconf(where: Network) -> FakeZeroconf:
            self.made.append(where)
            return self.net

        return Publisher(
            SAID,
            8443,
            self.clock,
            zeroconf=zeroconf,
            run=lambda coroutine: ensureDeferred(coroutine),
            addresses=lambda: ["127.0.0.1", "192.0.2.7"],
            **options,
        )

    def test_registers(self) -> None:
        self.assertIs(self.publisher.instance, None)
        self.successResultOf(self.publisher.start())
        ((_, info),) = self.net.calls
        assert info is not None
        self.assertEqual(info.name, "Lab-1._sksd._tcp.local.")
        self.assertEqual((info.port, info.parsed_addresses()), (8443, ["192.0.2.7"]))
        self.assertRegex(info.server, r"^[0-9a-f-]{36}\.local\.$")
        self.assertEqual(self.net.said(), SAID)
        self.assertEqual(self.publisher.instance, "Lab-1")
        self.assertNotEqual(info.server, self.make()._server)

    def test_updates_at_most_once_a_second(self) -> None:
        self.publisher.start()
        for running in range(1, 100):
            self.publisher.update(running=running)
        self.clock.advance(INTERVAL - 0.01)
        self.assertEqual(self.net.words, ["register"])
        self.clock.advance(0.02)
        self.assertEqual(self.net.words, ["register", "update"])
        self.assertEqual(self.net.said().running, 99)
        self.publisher.update(running=1)
        self.clock.pump([0.1] * 9)
        self.assertEqual(self.net.said().running, 99)
        self.clock.advance(0.2)
        self.assertEqual(self.net.said().running, 1)
        self.clock.advance(60)
        self.publisher.update(running=2)
        self.clock.advance(0)
        self.assertEqual(self.net.said().running, 2)
        self.assertEqual(self.net.words, ["register"] + ["update"] * 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_news(self) -> None:
        self.publisher.start()
        self.publisher.update(running=0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_change_during_an_update(self) -> None:
        self.publisher.start()
        self.clock.advance(5)
        self.net.hold = hold = Deferred()
        self.publisher.update(running=1)
        self.clock.advance(0)
        self.publisher.update(running=2)
        self.clock.advance(5)
        self.assertEqual(self.net.said().running, 1)
        self.net.hold = None
        hold.callback(None)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.net.said().running, 2)

    def test_environments_are_private(self) -> None:
        self.publisher.start()
        self.publisher.update(environments=["secret"])
        self.clock.advance(5)
        self.assertEqual(self.net.words, ["register"])
        told = self.make(tell_environments=True)
        told.start()
        told.update(environments=["shared"])
        self.clock.advance(5)
        self.assertEqual(self.net.said().environments, ("shared",))

    def test_withdraws(self) -> None:
        self.publisher.start()
        self.publisher.update(running=1)
        self.successResultOf(self.publisher.stop())
        self.assertEqual(self.net.words, ["register", "unregister", "close"])
        self.publisher.update(running=2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIs(self.publisher.instance, None)

    def test_stop_during_the_registration(self) -> None:
        self.net.hold = hold = Deferred()
        self.publisher.start()
        stopped = self.publisher.stop()
        self.assertNoResult(stopped)
        self.net.hold = None
        hold.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.net.words, ["register", "unregister", "close"])

    def test_stop_has_patience_but_not_for_ever(self) -> None:
        self.publisher.start()
        self.net.hold = Deferred()
        stopped = self.publisher.stop()
        self.assertNoResult(stopped)
        self.clock.advance(PATIENCE)
        self.successResultOf(stopped)

    def test_stop_before_start(self) -> None:
        self.successResultOf(self.publisher.stop())
        self.assertEqual(self.net.words, [])

    def test_network_fails(self) -> None:
        self.net.fail = OSError(101, "Network is unreachable")
        self.successResultOf(self.publisher.start())
        self.publisher.update(running=3)
        self.clock.advance(RETRY)
        self.clock.advance(RETRY)
        self.assertEqual(self.net.words, ["register", "close"] * 3)
        self.assertEqual(len(self.warned), 1)
        self.net.fail = None
        self.clock.advance(RETRY)
        self.assertEqual(self.net.said().running, 3)
        self.net.fail = OSError(101, "Network is unreachable")
        self.publisher.update(running=4)
        self.clock.advance(INTERVAL)
        self.assertEqual(len(self.warned), 2)
        self.successResultOf(self.publisher.stop())
        self.assertEqual(self.net.words[-1], "close")


class NetworkTests(SynchronousTestCase):
    """Where a daemon is announced."""

    ALL = ("127.0.0.1", "::1", "fe80::1", "192.0.2.7", "fd00::7")

    def test_everywhere(self) -> None:
        found = network("", self.ALL)
        self.assertEqual(found.interfaces, InterfaceChoice.All)
        self.assertEqual(found.version, IPVersion.All)
        self.assertEqual(found.addresses, ("192.0.2.7", "fd00::7", "fe80::1"))
        self.assertEqual(network("", ("192.0.2.7",)).version, IPVersion.V4Only)

    def test_loopback_stays_there(self) -> None:
        for listen in ("127.0.0.1", "::1"):
            found = network(listen, self.ALL)
            self.assertEqual((found.interfaces, found.addresses), (["127.0.0.1"], (listen,)))
        found = network("", ("127.0.0.1", "::1"))
        self.assertEqual((found.interfaces, found.addresses), (["127.0.0.1"], ("127.0.0.1", "::1")))

    def test_one_address(self) -> None:
        self.assertEqual(
            network("192.0.2.7", self.ALL), Network(["192.0.2.7"], IPVersion.V4Only, ("192.0.2.7",))
        )
        self.assertEqual(network("fd00::7", self.ALL), Network(["fd00::7"], IPVersion.V6Only, ("fd00::7",)))


class ConfiguredTests(SynchronousTestCase):
    """The publisher that the configuration asks for."""

    def made(self, text: str) -> Publisher | NullPublisher:
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(text)
        return publisher(read(path, {}, Machine()), SAID, 1, Clock())  # type: ignore[arg-type]

    def test_announce(self) -> None:
        self.assertIsInstance(self.made(""), Publisher)
        silent = self.made("[sksd]\nannounce = no\n")
        self.assertIsInstance(silent, NullPublisher)
        self.successResultOf(silent.start())
        silent.update(running=1, environments=["x"])
        self.successResultOf(silent.stop())
