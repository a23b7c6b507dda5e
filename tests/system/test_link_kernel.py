"""A real Spyder kernel of a real engine, behind a link by TCP on loopback; the front end is jupyter_client's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from sksd.errors import EngineEnded, KernelDied
from sksd.keeper import records
from sksd.keeper.engine import Engine, Sizes
from sksd.keeper.engines import Engines
from sksd.keeper.links import Links
from sksd.keeper.log import BoundedLogs
from sksd.link import limits, zmtp
from sksd.link.hello import new_hello
from sksd.link.link import Link
from sksd.link.local import Channels, LocalEnd
from sksd.link.protocol import LinkConnection
from sksd.proxy.kernels import BOOT
from sksd.wire import messages
from sksd.wire.names import CONNECTION_FILE, DEAD, RUNNING
from tests.system.daemon import until

LIMIT = 30.0
MIB = 1024 * 1024


class Joined:
    """A relay's end, joined to the keeper's `links`."""

    def __init__(self, links: Links, engine: Engine, folder: Path | None, **hello: Any) -> None:
        self.links = links
        self.near = Link.opening(reactor, msgspec.structs.replace(new_hello("", **hello), engine=engine.record.id))
        key = str(engine.record.connection["key"])
        transport = "tcp" if folder is None else "ipc"
        self.local = LocalEnd(reactor, self.near, Channels(key, "spyder", transport=transport, folder=folder))

    async def start(self) -> dict[str, Any]:
        """Listen and connect; answers the connection info for front ends."""
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        self.port = await endpoint.listen(Factory.forProtocol(self.links.door))
        self.info = self.local.start()
        await self.connect()
        await self.near.when_welcomed().addTimeout(LIMIT, reactor)
        return self.info

    async def connect(self) -> None:
        """For the first time, or again."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        self.connection = await connectProtocol(endpoint, LinkConnection(self.near))

    async def cut(self) -> None:
        """The connection breaks."""
        self.connection.transport.abortConnection()
        await until(lambda: self.near.core.is_cut or self.near.ended, "it is cut")

    async def stop(self) -> None:
        """Leave nothing."""
        await self.local.stop()
        self.near.end()
        for tap in list(self.near.taps.values()):
            tap.abort()  # type: ignore[attr-defined]
        await self.port.stopListening()
        await until(lambda: not self.near.taps, "the front ends are gone")


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


class EngineCase(TestCase):
    """A keeper's engines and links in this process, in folders of their own."""

    timeout = 120.0
    sizes = Sizes(journal=256 * MIB, buffer=1024 * MIB, memory=4 * MIB)

    async def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sk-", dir="/tmp"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        for variable, name in (("XDG_STATE_HOME", "s"), ("XDG_RUNTIME_DIR", "r")):
            (self.folder / name).mkdir(mode=0o700)
            self.patch(os, "environ", {**os.environ, variable: str(self.folder / name)})
        self.joins: list[Joined] = []
        self.fronts: list[BlockingKernelClient] = []
        self.logs = BoundedLogs(reactor, MIB)
        self.events: list[str] = []
        self.engines = Engines(reactor, self.logs, lambda engine: self.events.append(engine.state))
        self.engines.sizes = self.sizes
        self.links = Links(reactor, self.engines, lambda: None)
        self.addCleanup(lambda: ensureDeferred(self.end()))

    async def end(self) -> None:
        """Leave nothing."""
        for front in self.fronts:
            front.stop_channels()
        engines = self.engines.all()
        for engine in engines:
            await engine.stop(0.0)
        for joined in self.joins:
            await joined.stop()
        for engine in engines:
            await until(lambda engine=engine: engine.closed, "the engine is closed")
        self.engines.release()
        await until(lambda: not self.links.waiting(), "no link is left")
        self.links._looking.stop()
        if self.logs._notifier is not None:
            self.logs._notifier.loseConnection()
        later: Deferred[None] = Deferred()
        reactor.callLater(0, later.callback, None)
        await later

    async def engine(self, *command: str, **wish: Any) -> Engine:
        """One that runs; `command` is run by this Python."""
        variables = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
        command = command or ("-Xfrozen_modules=off", "-c", BOOT, "spyder_kernels.console")
        start = messages.StartEngine(
            environment="e",
            prefix=sys.prefix,
            python=sys.executable,
            kernel=messages.Kernel(package="spyder-kernels", version="3"),
            arguments=[sys.executable, *command, "-f", CONNECTION_FILE],
            variables=variables,
            cwd=str(self.folder),
            **wish,
        )
        return await self.engines.start(start)

    async def join(self, engine: Engine, transport: str = "ipc", **hello: Any) -> Joined:
        """A relay."""
        folder = None
        if transport == "ipc":
            folder = self.folder / f"near{len(self.joins)}"
            folder.mkdir(mode=0o700)
        joined = Joined(self.links, engine, folder, **hello)
        self.joins.append(joined)
        await joined.start()
        return joined

    async def client(self, joined: Joined) -> BlockingKernelClient:
        """A front end at a relay."""
        front = await deferToThread(client, joined.info)
        self.fronts.append(front)
        return front


class KernelTests(EngineCase):
    """A front end and its kernel."""

    async def setUp(self) -> None:
        await super().setUp()
        self.one = await self.engine()
        self.joined = await self.join(self.one)

    def pid(self) -> int:
        """The kernel's."""
        assert self.one.record.identity is not None
        return self.one.record.identity.pid

    def test_result(self) -> Any:
        """Code runs, its result and its errors come back, and input is asked and answered."""

        def front() -> None:
            one = client(self.joined.info)
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
            one, two = client(self.joined.info), client(self.joined.info)
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
            one = client(self.joined.info)
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

    async def test_killed(self) -> None:
        """The rest of the output, then the reason with the last words; the heartbeat stops, the sockets are gone."""
        front = await self.client(self.joined)
        self.assertTrue(front.hb_channel.is_beating())
        reader = self.hear(front)
        code = "import os\nos.write(2, b'last words\\n')\nprint('the end', flush=True)\n"
        front.execute(f"{code}os.kill(os.getpid(), 9)")
        error = await self.joined.near.when_ended().addTimeout(LIMIT, reactor)
        assert isinstance(error, EngineEnded)
        self.assertIn("killed by SIGKILL", str(error))
        self.assertIn("last words", str(error.fields["log"]))
        await until(lambda: not front.hb_channel.is_beating(), "the heart has stopped")
        self.assertEqual(list((self.folder / "near0").iterdir()), [])
        self.assertIn("the end\n", await reader)
        # Nobody has missed anything.
        record = records.record_path(self.one.record.id)
        await until(lambda: self.one.closed and not record.exists(), "it is forgotten")

    def hear(self, front: BlockingKernelClient) -> Deferred[str]:
        """What is printed until nothing more comes for 1 s after the link's end."""

        def listen() -> str:
            text = []
            while not self.joined.near.ended or front.iopub_channel.socket.poll(1000):
                if front.iopub_channel.socket.poll(100):
                    message = front.iopub_channel.get_msg()
                    if message["msg_type"] == "stream":
                        text.append(message["content"]["text"])
            return "".join(text)

        return deferToThread(listen)

    async def test_killed_while_cut(self) -> None:
        """On return the rest, then the reason, within 2 s."""
        front = await self.client(self.joined)
        code = "import os\nfor n in range(20000): print(n)\nprint('done', flush=True)\nopen('printed', 'w').close()"
        await self.joined.cut()
        front.execute(code)
        await self.joined.connect()
        await until((self.folder / "printed").exists, "it prints")
        await self.joined.cut()
        os.kill(self.pid(), signal.SIGKILL)
        await until(lambda: self.one.state == DEAD, "it is dead")
        reader = self.hear(front)
        began = time.monotonic()
        await self.joined.connect()
        error = await self.joined.near.when_ended().addTimeout(LIMIT, reactor)
        self.assertLess(time.monotonic() - began, 2.0)
        self.assertIsInstance(error, EngineEnded)
        heard = await reader
        self.assertTrue(heard == "".join(f"{n}\n" for n in range(20000)) + "done\n", len(heard))

    async def test_restarted(self) -> None:
        """On the same link: the front end goes on."""
        front = await self.client(self.joined)
        before = self.pid()
        await self.one.restart(5.0)
        self.assertNotEqual(self.pid(), before)
        await deferToThread(front.wait_for_ready, timeout=LIMIT)
        reply, said = await deferToThread(run, front, "print('again')")
        self.assertEqual((reply["execution_count"], printed(said)), (1, "again\n"))
        self.assertFalse(self.joined.near.ended)

    async def test_cut(self) -> None:
        """What was asked and said meanwhile comes when the link goes on."""
        front = await self.client(self.joined)
        for number in range(5):
            await self.joined.cut()
            self.assertTrue(front.hb_channel.is_beating())
            running = deferToThread(run, front, f"print({number})")
            await self.joined.connect()
            reply, said = await running
            self.assertEqual((reply["status"], printed(said)), ("ok", f"{number}\n"))

    async def test_two_links_and_a_burst(self) -> None:
        """5,000 messages at once while the keeper is busy: both front ends hear each."""
        other = await self.join(self.one, replay="now")
        fronts = [await self.client(joined) for joined in (self.joined, other)]
        code = (
            "from comm import create_comm\nc = create_comm(target_name='t')\n"
            "for n in range(5000): c.send({'n': n})\nprint('sent', flush=True)"
        )

        def numbers(front: BlockingKernelClient) -> list[int]:
            found = []
            while True:
                message = front.get_iopub_msg(timeout=LIMIT)
                if message["msg_type"] == "comm_msg":
                    found.append(message["content"]["data"]["n"])
                if message["content"].get("text") == "sent\n":
                    return found

        listening = [deferToThread(numbers, front) for front in fronts]
        fronts[0].execute(code)
        # Busy: the reactor does nothing else for a while.
        for _ in range(3):
            time.sleep(0.3)
            later: Deferred[None] = Deferred()
            reactor.callLater(0, later.callback, None)
            await later
        for each in listening:
            self.assertTrue(await each == list(range(5000)))

    async def test_slow_reader(self) -> None:
        """32 MiB for a reader that first takes nothing: what both ends hold is bounded, another is quick meanwhile,
        and all arrives in the end."""
        quick = await self.client(self.joined)
        near = await self.join(self.one, "tcp", replay="now")
        slow = socket.create_connection(("127.0.0.1", near.info["iopub_port"]))
        self.addCleanup(slow.close)
        slow.sendall(zmtp.Peer("SUB").greeting() + zmtp.subscribe(b""))
        journal = self.one.journal()
        assert journal is not None
        await until(lambda: len(near.near.taps) == 1, "it is there")
        begin = journal.end
        code = "import os\nfrom comm import create_comm\nc = create_comm(target_name='t')\n"
        code += "for n in range(32): c.send({}, buffers=[os.urandom(1024 * 1024)])\n"
        reply, _ = await deferToThread(run, quick, code)
        self.assertEqual(reply["status"], "ok")
        bound = limits.WINDOW + limits.LOCAL_QUEUE + 65536 + limits.MAX_BODY
        for link in (near.near, *self.one.links):
            self.assertLess(link.core.held + link.core.unacknowledged, bound)
        end = journal.end

        def read() -> bytes:
            slow.settimeout(LIMIT)
            skipped = len(zmtp.Peer("PUB").greeting())
            data = bytearray()
            while len(data) < skipped + end - begin:
                data += slow.recv(1 << 20)
            return bytes(data[skipped:])

        data = await deferToThread(read)
        expected = b"".join(message for _, message in journal.messages(begin))
        self.assertTrue(data[: end - begin] == expected[: end - begin])

    async def test_goodbye_beside_bulk(self) -> None:
        """The reason arrives though this end is sending with all its might."""
        near = await self.join(self.one, "tcp")
        front = socket.create_connection(("127.0.0.1", near.info["shell_port"]))
        self.addCleanup(front.close)
        front.sendall(zmtp.Peer("DEALER", identity=b"bulk").greeting())

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    front.sendall(zmtp.join([bytes(MIB)]))

        processes = psutil.Process(self.pid())
        processes.suspend()
        sending = deferToThread(send)
        await until(lambda: near.near.core.held > limits.LOCAL_QUEUE, "nobody takes more")
        os.kill(self.pid(), signal.SIGKILL)
        error = await near.near.when_ended().addTimeout(LIMIT, reactor)
        self.assertIsInstance(error, EngineEnded)
        for tap in list(near.near.taps.values()):
            tap.abort()  # type: ignore[attr-defined]
        await sending


class StallTests(EngineCase):
    """A kernel that says more than may wait."""

    sizes = Sizes(journal=MIB, buffer=MIB, memory=256 * 1024)

    async def test_buffer(self) -> None:
        """20 MB printed while the link is cut: the kernel is stopped, says why, and all of it comes."""
        engine = await self.engine()
        joined = await self.join(engine)
        front = await self.client(joined)
        await until(lambda: engine.state == RUNNING and not engine.stalled, "it runs")
        await joined.cut()
        line = "x" * 99
        code = f"for n in range(2000): print('\\n'.join(['{line}'] * 100), flush=True)"
        running = deferToThread(run, front, code)
        await joined.connect()
        await joined.cut()
        if not engine.stalled:
            # The request may not have left in that moment.
            await joined.connect()
            await until(lambda: len(joined.near.core.streams) and joined.near.core.received > 2 * MIB, "it prints")
            await joined.cut()
        await until(lambda: engine.stalled, "it is stopped")
        self.assertIn("fills the buffer", str(engine.describe().reason))
        assert engine.record.identity is not None
        process = psutil.Process(engine.record.identity.pid)
        await until(lambda: process.status() == psutil.STATUS_STOPPED, "SIGSTOP has come", 3)
        await joined.connect()
        reply, said = await running
        self.assertEqual(reply["status"], "ok")
        text = printed(said)
        self.assertTrue(text == f"{line}\n" * 200_000, len(text))
        await until(lambda: engine.stalled is None, "it goes on")

    async def test_restarted_while_stopped(self) -> None:
        """And interrupted: what is stopped can be ended, too."""
        engine = await self.engine()
        joined = await self.join(engine)
        front = await self.client(joined)
        front.execute("while True: print('x' * 1000)")
        await until(lambda: joined.near.core.received > MIB, "it prints")
        await joined.cut()
        await until(lambda: engine.stalled, "it is stopped")
        engine.interrupt()
        await engine.restart(1.0)
        self.assertEqual((engine.state, engine.describe().state), (RUNNING, RUNNING))
        await engine.stop(5.0)
        self.assertEqual(engine.state, DEAD)
        # Who comes back is told.
        await joined.connect()
        self.assertIsInstance(await joined.near.when_ended().addTimeout(LIMIT, reactor), EngineEnded)

    async def test_full_disk(self) -> None:
        """Stopped, told, and when there is room it goes on; nothing is lost."""
        if os.getuid():
            raise SkipTest("only root can mount a small disk")
        small = self.folder / "s" / "sksd" / "engines"
        small.mkdir(mode=0o700, parents=True)
        mounted = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(small)]
        subprocess.run(mounted, check=True, capture_output=True)
        self.addCleanup(subprocess.run, ["umount", "-l", str(small)], check=True)
        engine = await self.engine()
        joined = await self.join(engine)
        front = await self.client(joined)
        with contextlib.suppress(OSError), open(small / "full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        running = deferToThread(run, front, "for n in range(3000): print(str(n) * 50, flush=True)")
        await until(lambda: engine.stalled, "it is stopped")
        self.assertIn("No space", str(engine.describe().reason))
        (small / "full").unlink()
        _, said = await running
        text = printed(said)
        self.assertTrue(text == "".join(str(n) * 50 + "\n" for n in range(3000)), len(text))
        self.assertIsNone(engine.describe().reason)


SILENT = """
import json, sys, zmq
from jupyter_client.session import Session
info = json.load(open(sys.argv[-1]))
session = Session(key=info["key"].encode(), check_pid=False)
shell = zmq.Context.instance().socket(zmq.ROUTER)
shell.bind(f"ipc://{info['ip']}-{info['shell_port']}")
count = 0
while True:
    names, request = session.recv(shell, mode=0)
    count += 1
    open("asked", "w").write(str(count))
    session.send(shell, "kernel_info_reply", {"status": "ok"}, parent=request, ident=names)
"""


class StartTests(EngineCase):
    """Kernels of another kind."""

    async def test_one_that_publishes_nothing(self) -> None:
        """It is ready soon all the same, and is not asked without end."""
        began = time.monotonic()
        engine = await self.engine("-c", SILENT)
        self.assertEqual(engine.state, RUNNING)
        self.assertLess(time.monotonic() - began, 10)
        self.assertLess(int((self.folder / "asked").read_text()), 60)

    async def test_one_that_dies(self) -> None:
        """Nothing is left of it."""
        with self.assertRaises(KernelDied):
            await self.engine("-c", "raise SystemExit(3)")
        self.assertEqual(list(records.folder().iterdir()), [])
        self.assertEqual(self.engines.all(), [])
