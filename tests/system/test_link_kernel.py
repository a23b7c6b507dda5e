"""A real Spyder kernel behind a link joined by TCP on loopback; the front end is jupyter_client's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from sksd.link.remote import RemoteEnd
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from sksd.errors import EngineEnded, LinkCut, NoSuchEngine
from sksd.link import limits
from sksd.link.hello import Hello, new_hello
from sksd.link.link import Link
from sksd.link.local import Channels, LocalEnd
from sksd.link.protocol import LinkConnection

KEY = "0123456789abcdef"
LIMIT = 30.0


class Joined:
    """A remote end at `info` and a local end at `channels`."""

    def __init__(self, info: dict[str, Any], channels: Channels, is_alive: Callable[[], bool] = lambda: True) -> None:
        self.info = info
        self.is_alive = is_alive
        self.hello: Hello | None = None
        self.remote: RemoteEnd | None = None
        self.near = Link.opening(reactor, new_hello("ticket"))
        self.far = Link.accepting(reactor, self._greet)
        self.local = LocalEnd(reactor, self.near, channels)

    def _greet(self, link: Link, hello: Hello) -> None:
        self.hello = hello
        self.remote = RemoteEnd(reactor, link, self.info, lambda: self.is_alive())

    @inlineCallbacks
    def start(self) -> Any:
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        self.port = yield endpoint.listen(Factory.forProtocol(lambda: LinkConnection(self.far)))
        local = self.local.start()
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        self.connection = yield connectProtocol(endpoint, LinkConnection(self.near))
        yield self.near.when_welcomed().addTimeout(LIMIT, reactor)
        return local

    @inlineCallbacks
    def stop(self) -> Any:
        yield self.local.stop()
        self.near.end()
        yield self.near.when_ended()
        yield self.far.when_ended().addTimeout(LIMIT, reactor)
        for link in (self.near, self.far):
            for tap in list(link.taps.values()):
                tap.abort()
        yield self.port.stopListening()
        yield self.far.when_closed().addTimeout(LIMIT, reactor)
        yield until(lambda: not self.near.taps and not self.far.taps)
        # Aborted sockets are taken out of the reactor in its next turn.
        yield turn()


def turn() -> Deferred[None]:
    later: Deferred[None] = Deferred()
    reactor.callLater(0, later.callback, None)
    return later


@inlineCallbacks
def until(done: Callable[[], object]) -> Any:
    """Wait until `done()`, looking again in each turn of the reactor."""
    end = time.monotonic() + LIMIT
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(done)
        later: Deferred[None] = Deferred()
        reactor.callLater(0.01, later.callback, None)
        yield later


def client(info: dict[str, Any]) -> BlockingKernelClient:
    """A front end on `info`, its kernel answered."""
    front = BlockingKernelClient()
    front.load_connection_info({name: value for name, value in info.items() if name != "kernel_name"})
    front.start_channels()
    front.wait_for_ready(timeout=LIMIT)
    return front


def run(front: BlockingKernelClient, code: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run `code`; answers the reply's content and every iopub message of it."""
    said: list[dict[str, Any]] = []
    reply = front.execute_interactive(code, timeout=LIMIT, output_hook=said.append)
    return reply["content"], said


def printed(said: list[dict[str, Any]]) -> str:
    """What of `said` was written to stdout."""
    streams = (m["content"] for m in said if m["msg_type"] == "stream")
    return "".join(content["text"] for content in streams if content["name"] == "stdout")


def _end(kernel: subprocess.Popen[bytes]) -> None:
    kernel.kill()
    kernel.wait()


class KernelTests(TestCase):
    timeout = 120.0

    def setUp(self) -> Any:
        self.folder = Path(tempfile.mkdtemp(prefix="sk-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        (self.folder / "near").mkdir(mode=0o700)
        self.info: dict[str, Any] = {
            "transport": "ipc",
            "ip": str(self.folder / "e"),
            "key": KEY,
            "signature_scheme": "hmac-sha256",
            "kernel_name": "",
        }
        for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1):
            self.info[f"{name}_port"] = number
        file = self.folder / "connection.json"
        file.write_text(json.dumps(self.info))
        self.start_kernel()
        # The link is joined while the kernel is still starting: the remote end tries again until it answers.
        channels = Channels(KEY, "spyder", folder=self.folder / "near")
        self.joined = Joined(self.info, channels, lambda: self.kernel.poll() is None)
        return self.joined.start().addCallback(self._started)

    def start_kernel(self) -> None:
        file = self.folder / "connection.json"
        environment = {k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"}
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT, 0o600)
        self.addCleanup(os.close, log)
        self.kernel = subprocess.Popen(
            [sys.executable, "-m", "spyder_kernels.console", "-f", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=self.folder,
            start_new_session=True,
        )
        self.addCleanup(_end, self.kernel)

    def _started(self, local: dict[str, Any]) -> None:
        self.local = local
        self.addCleanup(self.joined.stop)

    def test_result(self) -> Any:
        """Code runs, its result and its errors come back, and input is asked and answered."""

        def front() -> None:
            one = client(self.local)
            try:
                reply, said = run(one, "x = 6 * 7; x")
                self.assertEqual(reply["status"], "ok")
                results = [m["content"]["data"] for m in said if m["msg_type"] == "execute_result"]
                self.assertEqual([data["text/plain"] for data in results], ["42"])
                self.assertEqual(run(one, "1/0")[0]["ename"], "ZeroDivisionError")
                one.execute("y = input('? ')", allow_stdin=True)
                asked = one.get_stdin_msg(timeout=LIMIT)
                self.assertEqual(asked["content"]["prompt"], "? ")
                one.input("answer")
                said = run(one, "print(y)")[1]
                self.assertIn("answer\n", [m["content"].get("text") for m in said])
                control = one.session.msg("interrupt_request", {})
                one.control_channel.send(control)
                self.assertEqual(one.get_control_msg(timeout=LIMIT)["msg_type"], "interrupt_reply")
                self.assertTrue(one.hb_channel.is_beating())
            finally:
                one.stop_channels()

        return deferToThread(front)

    def test_two_front_ends(self) -> Any:
        """Two front ends at once on one link: each has its own replies, both see the output."""

        def front() -> None:
            one, two = client(self.local), client(self.local)
            try:
                run(one, "shared = 'seen'")
                for number in range(20):
                    _, said = run(two if number % 2 else one, f"print(shared, {number})")
                    self.assertEqual(printed(said), f"seen {number}\n")
                heard = []
                # `two` hears what `one` runs.
                run(one, "print('last')")
                while "last\n" not in heard:
                    message = two.get_iopub_msg(timeout=LIMIT)
                    heard.append(message["content"].get("text", ""))
            finally:
                one.stop_channels()
                two.stop_channels()

        return deferToThread(front)

    def test_bulk(self) -> Any:
        """50 MB of random bytes in a comm's buffers, and 10 MB back, arrive as they are."""

        def front() -> None:
            one = client(self.local)
            try:
                _, said = run(
                    one,
                    "import os, hashlib\n"
                    "from ipykernel.comm import Comm\n"
                    "blobs = [os.urandom(10_000_000) for _ in range(5)]\n"
                    "Comm(target_name='t', buffers=blobs)\n"
                    "print(hashlib.sha256(b''.join(blobs)).hexdigest())",
                )
                buffers = [bytes(b) for m in said if m["msg_type"] == "comm_open" for b in m["buffers"]]
                self.assertEqual(sum(map(len, buffers)), 50_000_000)
                self.assertEqual(hashlib.sha256(b"".join(buffers)).hexdigest(), printed(said).strip())
                blob = "é\\x00" * 2_000_000
                _, said = run(one, f"print(hashlib.sha256('''{blob}'''.encode()).hexdigest())")
                plain = blob.replace("\\x00", "\x00").encode()
                self.assertEqual(printed(said).strip(), hashlib.sha256(plain).hexdigest())
            finally:
                one.stop_channels()

        return deferToThread(front)

    @inlineCallbacks
    def test_killed(self) -> Any:
        """A killed kernel: the link ends with the reason, the heartbeat stops, the sockets are gone."""
        one = yield deferToThread(client, self.local)
        self.addCleanup(one.stop_channels)
        self.assertTrue(one.hb_channel.is_beating())
        os.kill(self.kernel.pid, signal.SIGKILL)
        yield deferToThread(self.kernel.wait)
        assert self.joined.remote
        self.joined.remote.end(EngineEnded(engine="e", how="killed by SIGKILL"))
        error = yield self.joined.near.when_ended().addTimeout(limits.FINISH_LIMIT - 1, reactor)
        self.assertIsInstance(error, EngineEnded)
        self.assertIn("killed by SIGKILL", str(error))
        yield until(lambda: not one.hb_channel.is_beating())
        self.assertEqual(list((self.folder / "near").iterdir()), [])

    @inlineCallbacks
    def test_restarted(self) -> Any:
        """A kernel that is started anew at the same place: the front end goes on, on the same link."""
        one = yield deferToThread(client, self.local)
        self.addCleanup(one.stop_channels)
        self.joined.is_alive = lambda: True
        yield deferToThread(_end, self.kernel)
        self.start_kernel()
        yield deferToThread(one.wait_for_ready, timeout=LIMIT)
        reply, said = yield deferToThread(run, one, "print('again')")
        self.assertEqual((reply["execution_count"], printed(said)), (1, "again\n"))
        self.assertFalse(self.joined.near.ended)

    @inlineCallbacks
    def test_cut(self) -> Any:
        """A cut ends the link at both ends, in words."""
        self.joined.connection.transport.abortConnection()
        for link in (self.joined.near, self.joined.far):
            error = yield link.when_ended().addTimeout(LIMIT, reactor)
            self.assertIsInstance(error, LinkCut)


class SocketTests(TestCase):
    """The ends alone, with a plain socket in the kernel's place."""

    timeout = 120.0

    @inlineCallbacks
    def setUp(self) -> Any:
        self.folder = Path(tempfile.mkdtemp(prefix="sk-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.engine = socket.socket(socket.AF_UNIX)
        self.engine.bind(str(self.folder / "e-2"))
        self.engine.listen()
        self.engine.settimeout(LIMIT)
        self.addCleanup(self.engine.close)
        self.info = {"transport": "ipc", "ip": str(self.folder / "e")}
        self.info |= {f"{n}_port": i for i, n in enumerate(("shell", "iopub", "stdin", "control"), 1)}
        self.joined = Joined(self.info, Channels(KEY, transport="tcp"))
        self.local = yield self.joined.start()
        self.addCleanup(self.joined.stop)

    @inlineCallbacks
    def connect(self) -> Any:
        front = socket.create_connection(("127.0.0.1", self.local["iopub_port"]))
        front.settimeout(LIMIT)
        self.addCleanup(front.close)
        engine, _ = yield deferToThread(self.engine.accept)
        engine.settimeout(LIMIT)
        self.addCleanup(engine.close)
        return front, engine

    @inlineCallbacks
    def test_fast_sender_slow_reader(self) -> Any:
        """64 MiB for a reader that first takes nothing: what both ends hold stays within window and queue,
        the sender is stopped, another stream is quick meanwhile, and all arrives in the end."""
        front, engine = yield self.connect()
        other_front, other_engine = yield self.connect()
        size = 64 * 1024 * 1024
        blob = os.urandom(1024 * 1024)
        most = [0]

        def watch() -> int:
            held = max(self.joined.near.core.held, self.joined.far.core.held)
            most[0] = max(most[0], held)
            return self.joined.near.core.held

        def send() -> None:
            for _ in range(size // len(blob)):
                engine.sendall(blob)
            engine.close()

        def receive() -> tuple[int, str]:
            digest, count = hashlib.sha256(), 0
            while data := front.recv(1 << 20):
                digest.update(data)
                count += len(data)
            return count, digest.hexdigest()

        sending = deferToThread(send)
        yield until(lambda: watch() >= limits.WINDOW // 2)
        self.assertFalse(sending.called)
        began = time.monotonic()
        other_engine.sendall(b"quick")
        self.assertEqual((yield deferToThread(other_front.recv, 100)), b"quick")
        self.assertLess(time.monotonic() - began, 1.0)
        receiving = deferToThread(receive)
        yield until(lambda: (watch(), receiving.called)[1])
        count, digest = yield receiving
        yield sending
        self.assertEqual(count, size)
        self.assertEqual(digest, hashlib.sha256(blob * (size // len(blob))).hexdigest())
        bound = 2 * (limits.WINDOW + limits.LOCAL_QUEUE + 65536) + limits.MAX_BODY
        self.assertLessEqual(most[0], bound)

    @inlineCallbacks
    def test_closing(self) -> Any:
        """What was said before a close arrives before it, in both directions; the streams are forgotten."""
        for closer in (0, 1):
            pair = yield self.connect()
            one, other = pair[closer], pair[1 - closer]
            said = os.urandom(3_000_000)

            def say(one: socket.socket = one, said: bytes = said) -> None:
                one.sendall(said)
                one.close()

            def hear(other: socket.socket = other) -> bytes:
                heard = b""
                while data := other.recv(1 << 20):
                    heard += data
                other.close()
                return heard

            saying = deferToThread(say)
            self.assertEqual((yield deferToThread(hear)), said)
            yield saying
        yield until(lambda: not self.joined.near.core.streams and not self.joined.far.core.streams)
        self.assertEqual((self.joined.near.taps, self.joined.far.taps), ({}, {}))

    @inlineCallbacks
    def test_goodbye_beside_bulk(self) -> Any:
        """The reason arrives though this end was sending with all its might."""
        front, engine = yield self.connect()

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    front.sendall(bytes(1 << 20))

        sending = deferToThread(send)
        yield until(lambda: self.joined.far.core.held > limits.WINDOW // 2)
        self.joined.far.end(EngineEnded(engine="e", how="exit code 1"))
        error = yield self.joined.near.when_ended().addTimeout(LIMIT, reactor)
        self.assertIsInstance(error, EngineEnded)
        for link in (self.joined.near, self.joined.far):
            yield link.when_closed().addTimeout(LIMIT, reactor)
            # The front end goes on sending into a socket that nobody reads.
            for tap in list(link.taps.values()):
                tap.abort()
        yield sending
        engine.close()

    @inlineCallbacks
    def test_refused(self) -> Any:
        """A proxy that does not know the engine: the reason arrives, nothing listens any more."""

        def refuse(link: Link, hello: Hello) -> None:
            raise NoSuchEngine(engine="e", host="h")

        joined = Joined(self.info, Channels(KEY, transport="tcp"))
        joined.far._on_hello = refuse
        error = yield self.assertFailure(joined.start(), NoSuchEngine)
        self.assertIn("no engine e on h", str(error))
        yield joined.stop()

    @inlineCallbacks
    def test_dead_engine(self) -> Any:
        """An engine that is not alive is not tried again: the stream closes."""
        self.joined.remote._is_alive = lambda: False
        self.engine.close()
        front = socket.create_connection(("127.0.0.1", self.local["iopub_port"]))
        self.addCleanup(front.close)
        front.settimeout(LIMIT)
        self.assertEqual((yield deferToThread(front.recv, 10)), b"")
