"""The cuts that other tests rely on, proved on a plain TCP echo; and that a change of the network is noticed."""

from __future__ import annotations

import sys
import time
from typing import Any

from twisted.internet import reactor
from twisted.trial import unittest

from tests.system.daemon import LIMIT, DaemonCase, Process, until
from tests.system.network import MISSING, Network, ip

PORT = 5555
SERVER = f"""
import socket, threading
def echo(peer):
    try:
        while data := peer.recv(100):
            peer.sendall(data)
        print("ended", flush=True)
    except OSError as error:
        print("server", error.strerror, flush=True)
listening = socket.create_server(("", {PORT}))
print("listens", flush=True)
while True:
    threading.Thread(target=echo, args=(listening.accept()[0],), daemon=True).start()
"""
# One letter after the other, each waited for; a dot for each tenth.
CLIENT = f"""
import socket, sys
peer = socket.create_connection((sys.argv[1], {PORT}), timeout=20)
peer.settimeout(None)
try:
    while True:
        for _ in range(10):
            peer.sendall(b"x")
            assert peer.recv(1) == b"x"
        print(".", end="", flush=True)
        sys.stdin.buffer.raw.read(1)
except OSError as error:
    print("client", error.strerror, flush=True)
"""
WATCHER = """
import importlib, sys
importlib.import_module("twisted.internet." + sys.argv[1]).install()
from twisted.internet import reactor
from sksd.client.network import NetworkWatch
watch = NetworkWatch(reactor, lambda: print("changed", flush=True))
reactor.callWhenRunning(print, "watches", flush=True)
reactor.run()
"""


class Cuts(DaemonCase):
    """Each kind of cut does what it says, and is healed."""

    def setUp(self) -> None:
        if MISSING:
            raise unittest.SkipTest(MISSING)
        super().setUp()
        self.network = Network(3)
        self.addCleanup(self.network.close)

    async def python(self, host: int, code: str, *arguments: str, first: bytes) -> Process:
        """A program on a machine, that has said its first word."""
        process = self.run_process(*self.network.on(host, sys.executable, "-c", code, *arguments))
        await process.says(first)
        return process

    async def echoes(self, client: Process) -> None:
        """Ten letters more come back."""
        before = client.output.count(b".")
        client.transport.write(b"\n")  # type: ignore[union-attr]
        await until(lambda: client.output.count(b".") > before, "letters come back")

    async def silent(self, client: Process, cut: Any, *arguments: Any) -> None:
        """Nothing comes back after `cut`; it does when it is healed, and all the while nobody is told anything."""
        await self.echoes(client)
        cut(*arguments)
        before = client.output
        client.transport.write(b"\n")  # type: ignore[union-attr]
        # That nothing happens can only be seen by waiting.
        end = time.monotonic() + 0.5
        await until(lambda: time.monotonic() > end, "half a second passes")
        self.assertEqual(client.output, before)
        self.network.heal(arguments[0])
        await until(lambda: client.output != before, "it goes on")
        await self.echoes(client)

    async def test_drop_and_link_down(self) -> None:
        server = await self.python(1, SERVER, first=b"listens")
        client = await self.python(2, CLIENT, self.network.address(1), first=b".")
        other = await self.python(3, CLIENT, self.network.address(1), first=b".")
        for host in (1, 2):
            await self.silent(client, self.network.cut_by_drop, host)
            await self.silent(client, self.network.cut_by_link_down, host)
        self.network.cut_by_drop(2)
        await self.echoes(other)
        self.network.heal(2)
        await self.echoes(client)
        self.assertNotIn(b"server", server.output)

    async def test_reset(self) -> None:
        server = await self.python(1, SERVER, first=b"listens")
        other = await self.python(3, CLIENT, self.network.address(1), first=b".")
        for host, said, heard in ((1, b"software caused", b"reset by"), (2, b"reset by", b"software caused")):
            client = await self.python(2, CLIENT, self.network.address(1), first=b".")
            if host == 1:
                # All of the server's connections end, the other machine's, too.
                self.network.reset_connections(host, PORT)
                other.transport.write(b"\n")  # type: ignore[union-attr]
                await other.says(b"client")
            else:
                self.network.reset_connections(host, PORT)
            client.transport.write(b"\n")  # type: ignore[union-attr]
            await client.ended.addTimeout(LIMIT, reactor)
            self.assertIn(heard, client.output.lower())
            await until(lambda said=said: said in server.output.lower(), "the server was told")
        await self.python(2, CLIENT, self.network.address(1), first=b".")

    async def test_changes_are_noticed(self) -> None:
        """Under three reactors, link, address, route."""
        name = self.network.namespace(2)
        changes: list[Any] = [lambda: self.network.cut_by_link_down(2), lambda: self.network.heal(2)]
        more = ("addr add 10.79.0.1/24", "addr del 10.79.0.1/24", "route add 10.80.0.0/24", "-6 addr add fd00::1/64")
        changes += [lambda what=what: ip("-n", name, *what.split(), "dev", "lan") for what in more]
        for kind in ("asyncioreactor", "epollreactor", "selectreactor"):
            watcher = await self.python(2, WATCHER, kind, first=b"watches")
            for change in changes:
                before = watcher.output.count(b"changed")
                began = time.monotonic()
                change()
                await until(lambda b=before, w=watcher: w.output.count(b"changed") > b, f"{kind} notices")
                self.assertLess(time.monotonic() - began, 2.0)
                await self.settled(watcher)
            # The other reactors get their messages by the same calls.
            del changes[2:]
            watcher.kill(9)
            await watcher.over

    async def settled(self, watcher: Process) -> None:
        """Until half a second has passed without a word: IPv6 makes changes of its own after each."""
        seen = [watcher.output, time.monotonic()]

        def quiet() -> bool:
            if watcher.output != seen[0]:
                seen[:] = [watcher.output, time.monotonic()]
            return time.monotonic() - seen[1] > 0.5  # type: ignore[operator]

        await until(quiet, "it is quiet")
