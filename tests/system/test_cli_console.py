"""What needs a terminal, and the demonstration."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor

from tests.system.cli import CommandCase
from tests.system.daemon import LIMIT, DaemonCase, Process, until


class Console(CommandCase):
    """The Jupyter console, at a terminal of its own."""

    def terminal(self, *arguments: str) -> Process:
        """Start `sksd` with a terminal."""
        process = Process()
        reactor.spawnProcess(  # type: ignore[attr-defined]
            process, sys.executable, [sys.executable, "-m", "sksd", *arguments],
            env={**self.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}, path=str(self.home), usePTY=True,
        )  # fmt: skip
        self._children.append(process)
        return process

    async def test_computes_is_interrupted_and_leaves_nothing(self) -> None:
        console = self.terminal("console", "local")
        await console.says(b"In [")
        console.transport.write(b"print('a' + 'b')\r")  # type: ignore[union-attr]
        await console.says(b"ab")
        console.transport.write(b"import time; print('g' + 'o'); time.sleep(99)\r")  # type: ignore[union-attr]
        await console.says(b"go\r\n")
        console.transport.write(b"\x03")  # type: ignore[union-attr]
        # Coloured: the word alone.
        await console.says(b"KeyboardInterrupt")
        self.assertNotIn(b"Cannot interrupt", console.output)
        console.transport.write(b"print('st' + 'ill')\r")  # type: ignore[union-attr]
        await console.says(b"still")
        # Before the prompt is there the terminal would take Ctrl-D for the end of a line.
        await until(lambda: b"In [" in console.output.rpartition(b"still")[2], "the prompt")
        console.transport.write(b"\x04")  # type: ignore[union-attr]
        self.assertEqual(await console.ended.addTimeout(LIMIT, reactor), 0)
        self.assertNotIn(b"keeping kernel alive", console.output)
        self.assertEqual(await self.answer("engines", "local"), [])
        self.assertEqual(self.named("sksd.jupyter.console"), [])

    async def test_what_was_missed_comes_first(self) -> None:
        engine = (await self.answer("start", "local", sys.prefix))["engine"]["id"]
        later = "threading.Thread(target=lambda: (time.sleep(1), print('missed' + '!'))).start()"
        await self.sksd("run", "local", "--engine", engine, "-c", f"print('had')\nimport threading, time\n{later}")
        while "missed!" not in (await self.sksd("log", "local", engine, "--outputs")).out:
            pass
        for words in (b"missed while nobody", b"In ["):
            # The second time there is nothing.
            console = self.terminal("console", "local", "--engine", engine)
            await console.says(words)
            await console.says(b"In [")
            console.transport.write(b"\x04")  # type: ignore[union-attr]
            self.assertEqual(await console.ended.addTimeout(LIMIT, reactor), 0)
            shown = console.output.partition(b"In [")[0]
            self.assertEqual([shown.count(b"missed!"), shown.count(b" now ")], [int(words != b"In [")] * 2)
            self.assertNotIn(b"had", shown)

    async def test_password_is_asked_for_and_not_shown(self) -> None:
        from sksd import paths

        address = f"127.0.0.1:{self.note().port}"
        await self.sksd("trust", address, "--fingerprint", self.note().fingerprint)
        asking = self.terminal("info", address)
        await asking.says(b"Password of")
        token = paths.token().read_bytes().strip()
        asking.transport.write(token + b"\n")  # type: ignore[union-attr]
        self.assertEqual(await asking.ended.addTimeout(LIMIT, reactor), 0)
        self.assertNotIn(token, asking.output)
        self.assertIn(b"fingerprint", asking.output)


class Demo(DaemonCase):
    """`make run`."""

    async def test_shows_everything_and_leaves_nothing(self) -> Any:
        temporary = self.top / "t"
        temporary.mkdir()
        demo = self.run_process(sys.executable, "-m", "sksd.cli.demo", env={"TMPDIR": str(temporary)})
        self.assertEqual(await demo.ended.addTimeout(LIMIT * 2, reactor), 0, demo.output.decode())
        for word in (b"Found", b"Trusted", b"Logged in", b"Spun up", b"it answered   2.0", b"PNG", b"left behind"):
            self.assertIn(word, demo.output)
        self.assertEqual(list(temporary.iterdir()), [])
