"""Discovery with the real zeroconf on the loopback interface, and as Avahi sees it."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.utils import getProcessOutput
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase
from zeroconf import ServiceInfo, Zeroconf

from sksd.client.discovery import Browser, Found, alive, browse, read, resolve_name
from sksd.errors import NoSuchHost
from sksd.server.publisher import Publisher
from sksd.wire.announcement import Announcement, encode
from sksd.wire.fingerprint import fingerprint
from sksd.wire.names import SERVICE_TYPE

#: Seconds that anything may take here.
LIMIT = 10


def loopback() -> Zeroconf:
    return Zeroconf(interfaces=["127.0.0.1"])


def unique(name: str) -> str:
    """Other tests, and other daemons, may share this loopback interface."""
    return f"{name} {uuid.uuid4().hex[:8]}"


def said(name: str) -> Announcement:
    return Announcement(
        version="0.1",
        protocol=1,
        name=name,
        hostname=f"box-{name[-8:]}",
        fingerprint=fingerprint(name.encode()),
        running=0,
        maximum=4,
        methods=("password",),
        environments=("ml, 日本",),
    )


class Watching(TestCase):
    """A browser, and waiting for what it sees."""

    timeout = 60

    def setUp(self) -> None:
        self.waiting: list[tuple[Callable[[list[Found]], bool], Deferred[list[Found]]]] = []
        self.browser = Browser(reactor, self.changed, loopback)

    def changed(self, found: list[Found]) -> None:
        for condition, ready in list(self.waiting):
            if condition(found):
                self.waiting.remove((condition, ready))
                ready.callback(found)

    async def until(self, condition: Callable[[list[Found]], bool]) -> list[Found]:
        if condition(self.browser.found):
            return self.browser.found
        ready: Deferred[list[Found]] = Deferred()
        self.waiting.append((condition, ready))
        return await ready.addTimeout(LIMIT, reactor)

    async def named(self, name: str, condition: Callable[[Found], bool] = lambda found: True) -> Found:
        def here(found: list[Found]) -> bool:
            return any(host.name == name and condition(host) for host in found)

        return next(host for host in await self.until(here) if host.name == name)

    async def published(self, name: str, port: int = 8443) -> Publisher:
        publisher = Publisher(said(name), port, reactor, listen="127.0.0.1")
        await publisher.start()
        self.addCleanup(publisher.stop)
        self.assertIsNot(publisher.instance, None)
        return publisher


class LifeTests(Watching):
    """A host comes, changes and goes."""

    async def test_seen_updated_withdrawn(self) -> None:
        await self.browser.start()
        self.addCleanup(self.browser.stop)
        name = unique("Ada's Lab.é")
        publisher = await self.published(name)
        found = await self.named(name)
        record = said(name)
        self.assertEqual(
            found,
            Found(
                name=name,
                instance=name.replace(".", "-"),
                hostname=record.hostname,
                addresses=("127.0.0.1",),
                port=8443,
                fingerprint=record.fingerprint,
                version="0.1",
                protocol=1,
                running=0,
                maximum=4,
                methods=("password",),
                environments=("ml, 日本",),
            ),
        )
        publisher.update(running=3)
        await self.named(name, lambda host: host.running == 3)
        await publisher.stop()
        await self.until(lambda hosts: all(host.name != name for host in hosts))

    async def test_late_browser_and_name(self) -> None:
        name = unique("late")
        await self.published(name)
        before = reactor.seconds()  # type: ignore[attr-defined]
        found = await resolve_name(reactor, name.upper(), LIMIT, loopback)
        self.assertEqual(found.name, name)
        self.assertLess(reactor.seconds() - before, 3)  # type: ignore[attr-defined]
        self.assertEqual(await resolve_name(reactor, found.hostname + ".", LIMIT, loopback), found)
        self.assertIn(found, await browse(reactor, LIMIT, loopback))
        self.assertLess(reactor.seconds() - before, LIMIT)  # type: ignore[attr-defined]
        with self.assertRaises(NoSuchHost):
            await resolve_name(reactor, unique("nobody"), 0.2, loopback)

    async def test_same_name_twice(self) -> None:
        name = unique("twin")
        first = await self.published(name, 1111)
        second = await self.published(name, 2222)
        self.assertEqual(first.instance, name)
        self.assertEqual(second.instance, f"{name}-2")
        await self.browser.start()
        self.addCleanup(self.browser.stop)
        one, two = await self.named(name), await self.named(f"{name}-2")
        self.assertEqual((one.port, two.port), (1111, 2222))

    async def test_stop_at_once(self) -> None:
        started = self.browser.start()
        await self.browser.stop()
        await started

    async def test_stop_without_start(self) -> None:
        await self.browser.stop()


class AliveTests(TestCase):
    """A record is a hint: the host itself is asked."""

    timeout = 30

    def found(self, addresses: tuple[str, ...], port: int) -> Found:
        return Found("x", "x", "x", addresses, port, "", "", 1, None, None, (), ())

    async def test_alive(self) -> None:
        port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")  # type: ignore
        number = port.getHost().port
        self.assertEqual(await alive(reactor, self.found(("127.0.0.1",), number)), "127.0.0.1")
        some = self.found(("127.0.0.9", "::1", "127.0.0.1", "fe80::1%lo"), number)
        self.assertEqual(await alive(reactor, some), "127.0.0.1")
        await port.stopListening()
        self.assertIs(await alive(reactor, some), None)
        self.assertIs(await alive(reactor, self.found((), number)), None)

    async def test_silent(self) -> None:
        # A full backlog drops what comes next, as a host that is switched off does.
        listening = socket.socket()
        self.addCleanup(listening.close)
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(2):
            taken = socket.socket()
            self.addCleanup(taken.close)
            taken.setblocking(False)
            taken.connect_ex(listening.getsockname())
        number = listening.getsockname()[1]
        self.assertIs(await alive(reactor, self.found(("127.0.0.1",), number), 0.2), None)


class RecordTests(TestCase):
    """What strangers may register."""

    def info(
        self, name: str = "x", addresses: tuple[str, ...] = ("192.0.2.7",), port: int = 1
    ) -> ServiceInfo:
        return ServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            port=port,
            properties=dict(encode(said("x"))),
            parsed_addresses=list(addresses),
        )

    def test_order_of_addresses(self) -> None:
        found = read(self.info(addresses=("fd00::1", "0.0.0.0", "fe80::1", "224.0.0.1", "192.0.2.7")))
        assert found is not None
        self.assertEqual(found.addresses, ("192.0.2.7", "fd00::1"))
        many = read(self.info(addresses=tuple(f"10.0.0.{n}" for n in range(1, 200))))
        assert many is not None
        self.assertEqual(len(many.addresses), 16)

    def test_useless(self) -> None:
        self.assertIs(read(self.info(addresses=())), None)
        self.assertIs(read(self.info(port=0)), None)
        self.assertIs(read(ServiceInfo(SERVICE_TYPE, f"x.{SERVICE_TYPE}", port=1)), None)

    def test_no_escape_reaches_a_terminal(self) -> None:
        info = self.info()
        info.name = f"a\x1b[2Jb\u202e.{SERVICE_TYPE}"
        found = read(info)
        assert found is not None
        self.assertEqual((found.name, found.instance), ("a [2Jb", "a [2Jb"))


class Running(ProcessProtocol):
    """A program; `ready` fires when it has written `word`."""

    def __init__(self, word: bytes) -> None:
        self.word = word
        self.output = b""
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data
        if self.word in self.output and not self.ready.called:
            self.ready.callback(None)

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        if not self.ready.called:
            self.ready.errback(reason if not reason.check(ProcessDone) else OSError(self.output))
        self.ended.callback(None)


BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={folder}/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
<allow user="*"/></policy></busconfig>
"""
AVAHI = "[server]\nallow-interfaces=lo\nuse-ipv4=yes\nuse-ipv6=no\nenable-dbus=yes\n"


class AvahiTests(Watching):
    """What other programs see.

    Needs root, avahi-daemon, avahi-browse and dbus-daemon, and that no Avahi runs: it is started on a bus of
    its own and on the loopback interface alone.
    """

    async def run_program(self, word: bytes, *command: str, environment: dict[str, str]) -> Running:
        running = Running(word)
        path = shutil.which(command[0])
        assert path is not None
        process = reactor.spawnProcess(  # type: ignore[attr-defined]
            running, path, list(command), env=environment
        )

        def stop() -> Deferred[None]:
            if process.pid:
                process.signalProcess("TERM")
            return running.ended

        self.addCleanup(stop)
        await running.ready.addTimeout(LIMIT, reactor)
        return running

    async def test_avahi_browse(self) -> None:
        programs = ("avahi-daemon", "avahi-browse", "dbus-daemon")
        if os.geteuid() or not all(map(shutil.which, programs)):
            raise SkipTest("needs root, avahi-daemon, avahi-browse and dbus-daemon")
        if os.path.exists("/run/avahi-daemon/pid"):
            raise SkipTest("an Avahi daemon runs here already")
        # The path of a socket is short, and trial's folders are not.
        folder = Path(f"/tmp/sksd-test-{uuid.uuid4().hex[:8]}")
        folder.mkdir(0o700)
        self.addCleanup(shutil.rmtree, folder)
        (folder / "bus.conf").write_text(BUS.format(folder=folder))
        (folder / "avahi.conf").write_text(AVAHI)
        environment = dict(os.environ, DBUS_SYSTEM_BUS_ADDRESS=f"unix:path={folder}/bus", LC_ALL="C.UTF-8")
        await self.run_program(
            b"unix:path", "dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork", "--print-address",
            environment=environment,
        )  # fmt: skip
        await self.run_program(
            b"Server startup complete", "avahi-daemon", "--no-drop-root", "--no-rlimits", "--no-chroot",
            "-f", f"{folder}/avahi.conf", environment=environment,
        )  # fmt: skip
        name = unique("Avahi")
        publisher = await self.published(name)
        program = shutil.which("avahi-browse")
        assert program is not None

        async def lines() -> list[str]:
            listing = getProcessOutput(program, ["-rpt", "_sksd._tcp"], env=environment, errortoo=True)
            text = (await listing.addTimeout(LIMIT, reactor)).decode()
            return [line for line in text.splitlines() if name.replace(" ", "\\032") in line]

        resolved = [line for line in await lines() if line.startswith("=")]
        self.assertEqual(len(resolved), 1, resolved)
        for word in (
            "127.0.0.1;8443;",
            f'"fingerprint={said(name).fingerprint}"',
            '"txtvers=1"',
            '"running=0"',
        ):
            self.assertIn(word, resolved[0])
        await publisher.stop()
        # Avahi keeps what was withdrawn for another second (RFC 6762, section 10.1).
        for _ in range(LIMIT):
            last = await lines()
            if not last or last[-1].startswith("-"):
                return
        self.fail("still there")
