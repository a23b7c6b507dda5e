"""A real Spyder kernel of a real engine, behind a link by TCP on loopback; the front end is jupyter_client's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import time
from typing import Any

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from sksd.errors import EngineEnded
from sksd.keeper import records
from sksd.link import limits, zmtp
from sksd.wire.names import DEAD
from tests.system.daemon import until
from tests.system.engines import LIMIT, MIB, EngineCase, client, printed, run


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
        code = "import os, time\nos.write(2, b'last words\\n')\nprint('the end', flush=True)\n"
        front.execute(f"{code}time.sleep(600)")
        # What its ZeroMQ holds still is lost with it.
        await until(lambda: self.has_said(b"the end"), "it has said so")
        os.kill(self.pid(), signal.SIGKILL)
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

    def has_said(self, words: bytes) -> bool:
        """They are among the newest in the journal."""
        journal = self.one.journal()
        assert journal is not None
        return words in journal.read(max(journal.start, journal.end - 4096), 4096)

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
        await until(lambda: self.has_said(b"done\\n"), "it has said all")
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
