"""`sksd log`: what an engine said, without a front end."""

from __future__ import annotations

import os
import signal
import sys

from twisted.internet import reactor

from tests.system.cli import Command, CommandCase
from tests.system.daemon import LIMIT, until

#: Says something once the one who asked for it is gone.
LATER = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(1), print('to nobody'))).start()"
DRAW = "import matplotlib.pyplot as p; p.plot([1, 2]); p.show(); 6*7"


class Log(CommandCase):
    """Of engines that live, and of dead ones."""

    async def engine(self, *codes: str) -> str:
        """One that has run `codes`."""
        engine = str((await self.answer("start", "local", sys.prefix))["engine"]["id"])
        for code in codes:
            await self.sksd("run", "local", "--engine", engine, "-c", code, code=None)
        return engine

    async def missed(self, engine: str) -> int:
        """Bytes that nobody has had."""
        [found] = [each for each in await self.answer("engines", "local") if each["id"] == engine]
        return int(found["missed"])

    async def dies(self, engine: str) -> None:
        """Its process is killed."""
        [found] = [each for each in await self.answer("engines", "local") if each["id"] == engine]
        os.kill(found["pid"], signal.SIGKILL)
        while (await self.answer("engines", "local"))[0]["state"] != "dead":
            pass

    def follow(self, engine: str, *options: str) -> Command:
        """Goes on."""
        return self.begin("log", "local", engine, "--follow", *options)

    async def test_outputs_figures_and_the_processs_own(self) -> None:
        engine = await self.engine("print('one')\n1/0", DRAW)
        with open(next(self.top.glob(f"s/sksd/engines/{engine}.log")), "ab") as file:
            file.write(b"its own\n")
        shown = await self.sksd("log", "local", engine, "--figures", "f", "-n", "1")
        self.assertEqual(shown.out, "its own\none\n42\n")
        self.assertIn("ZeroDivisionError", shown.err)
        self.assertTrue((self.home / "f" / "figure-1.png").read_bytes().startswith(b"\x89PNG"))
        shown = await self.sksd("log", "local", engine, "--outputs")
        self.assertTrue(shown.out.startswith("one\n<Figure"), shown.out)
        self.assertEqual((await self.sksd("log", "local", engine, "--process", "-n", "1")).out, "its own\n")
        told = await self.answer("log", "local", engine, "-n", "1")
        kinds = [each["kind"] for each in told["outputs"]]
        self.assertEqual((told["text"], told["ended"]), ("its own\n", None))
        self.assertEqual(kinds, ["stdout", "traceback", "figure", "result"])
        self.assertEqual((await self.sksd("log", "local", engine, "--outputs", "--since", "missed")).out, "")

    async def test_followed_to_its_end(self) -> None:
        engine = await self.engine("print('before')")
        both, only = self.follow(engine, "-n", "0"), self.follow(engine, "--process", "-n", "0")
        await both.says(b"before\n")
        await self.sksd("run", "local", "--engine", engine, "-c", "print('after')")
        await both.says(b"after\n")
        with open(next(self.top.glob(f"s/sksd/engines/{engine}.log")), "ab") as file:
            file.write(b"its own\n")
        await only.says(b"its own\n")
        await both.says(b"its own\n")
        await self.sksd("stop", "local", engine)
        for command in (both, only):
            self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 0)
            self.assertIn(f"sksd: engine {engine} has ended (stopped from this machine).\n", command.err)
        self.assertEqual(both.out, "before\nafter\nits own\n")

    async def test_followed_until_ctrl_c(self) -> None:
        engine = await self.engine("print('before')")
        command = self.follow(engine)
        await command.says(b"before\n")
        command.kill(signal.SIGINT)
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 130)

    async def test_of_a_dead_one_that_was_missed(self) -> None:
        engine = await self.engine(LATER)
        while not await self.missed(engine):
            pass
        await self.dies(engine)
        words = f"sksd: engine {engine} has ended (killed by SIGKILL).\n"
        for _ in range(2):
            shown = await self.sksd("log", "local", engine, "--outputs", "--since", "missed")
            self.assertEqual((shown.out, shown.err), ("to nobody\n", words))
            self.assertIn("dead (killed by SIGKILL), output missed", (await self.sksd("engines", "local")).out)
            # Another keeper has it from the disk.
            [keeper] = self.named("sksd.keeper")
            keeper.terminate()
            await until(lambda: not keeper.is_running(), "the keeper ends")  # noqa: B023
        shown = await self.sksd("log", "local", engine, "--outputs", "--follow")
        self.assertEqual((shown.out, shown.err), ("to nobody\n", words))
        told = await self.answer("log", "local", engine, "--outputs", "--follow")
        self.assertEqual(told["outputs"], [{"kind": "stdout", "text": "to nobody\n"}])
        self.assertEqual(told["ended"], "killed by SIGKILL")
        for command in ("run", "console"):
            await self.fails("killed by SIGKILL", command, "local", "--engine", engine, *["-c1"][: command == "run"])
        self.assertIn("Forgot", (await self.sksd("stop", "local", engine)).out)
        self.assertEqual(await self.answer("engines", "local"), [])
        self.assertEqual(list(self.top.glob("s/sksd/engines/*")), [])

    async def test_of_a_dead_one_that_was_heard(self) -> None:
        engine = await self.engine()
        command = self.begin("run", "local", "--engine", engine, "-c", "import time; print('go', flush=True)\n"
                             "import os; os.write(2, b'last words'); time.sleep(99)")  # fmt: skip
        await command.says(b"go")
        while await self.missed(engine):
            pass
        await self.dies(engine)
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 1)
        self.assertIn("killed by SIGKILL): start another with `sksd start local ENV`. Its last lines:\n", command.err)
        shown = await self.sksd("log", "local", engine)
        self.assertIn("last words", shown.out)
        self.assertIn("no longer kept", shown.err)

    async def test_what_is_no_longer_kept_is_told_of(self) -> None:
        await self.stop(self.daemon)
        self.configure("announce = no\nlisten = 127.0.0.1\n[kernels]\njournal_size = 1M\n")
        self.daemon = await self.start()
        engine = await self.engine("for i in range(3000):\n    print(i, 'x' * 1000, flush=True)")
        shown = await self.sksd("log", "local", engine, "--outputs")
        self.assertRegex(shown.err, r"^sksd: \d+\.\d (kB|MB) that were said here are no longer kept\.\n$")
        numbers = [int(line.split()[0]) for line in shown.out.splitlines()]
        self.assertEqual(numbers, list(range(numbers[0], 3000)))
        self.assertGreater(numbers[0], 1000)

    async def test_goes_on_with_the_next_daemon(self) -> None:
        self.configure(f"announce = no\nlisten = 127.0.0.1\nport = {self.note().port}\n")
        engine = await self.engine("print('before')", LATER)
        lines = self.follow(engine, "--outputs")
        await lines.says(b"before\n")
        await self.stop(self.daemon, signal.SIGKILL)
        await lines.says(b"sksd: reconnecting (")
        self.daemon = await self.start()
        await lines.says(b"sksd: back")
        await lines.says(b"to nobody\n")
        await self.sksd("stop", "local", engine)
        self.assertEqual(await lines.ended.addTimeout(LIMIT, reactor), 0)
        self.assertEqual(lines.out, "before\nto nobody\n")
