"""`sksd` as a person starts it, against a real daemon."""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet import defer, reactor

from tests.system.daemon import LIMIT, DaemonCase, Process, until


class Command(Process):
    """A process whose stdout and stderr are told apart."""

    def __init__(self) -> None:
        super().__init__()
        self._parts = {1: bytearray(), 2: bytearray()}

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Keep both."""
        self._parts[childFD] += data
        super().childDataReceived(childFD, data)

    @property
    def out(self) -> str:
        """Stdout."""
        return self._parts[1].decode()

    @property
    def err(self) -> str:
        """Stderr."""
        return self._parts[2].decode()

    def send(self, data: bytes) -> None:
        """To its stdin."""
        self.transport.write(data)  # type: ignore[union-attr]

    def close_stdin(self) -> None:
        """End of its input."""
        self.transport.closeStdin()  # type: ignore[union-attr]


class CommandCase(DaemonCase):
    """A test with a daemon, and a person at the command line."""

    settings = "announce = no\nlisten = 127.0.0.1\n"

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        super().setUp()
        self.configure(self.settings)
        self.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"
        self.daemon = yield defer.ensureDeferred(self.start())
        self.addCleanup(lambda: defer.ensureDeferred(self.end()))

    async def end(self) -> None:
        """Stop what a test has left, then the daemon."""
        if self.daemon.ended.called:
            self.daemon = await self.start()
        await self.sksd("stop", "local", "--all")
        await self.stop(self.daemon)

    async def forget_links(self) -> None:
        """A client that was killed may come back for a day: here nobody will, so its keeper need not wait."""
        if self.daemon.ended.called:
            self.daemon = await self.start()
        await self.sksd("stop", "local", "--all")
        for keeper in self.named("sksd.keeper"):
            keeper.terminate()
            await until(lambda keeper=keeper: not keeper.is_running(), "the keeper ends")
        # The next one clears away what engines have left that were stopped.
        self.assertEqual(await self.answer("engines", "local"), [])

    def begin(self, *arguments: str, **environ: str) -> Command:
        """Start `sksd`."""
        command = Command()
        reactor.spawnProcess(  # type: ignore[attr-defined]
            command, sys.executable, [sys.executable, "-m", "sksd", *arguments],
            env={**self.environ, **environ}, path=str(self.home),
        )  # fmt: skip
        self._children.append(command)
        return command

    async def sksd(self, *arguments: str, stdin: str = "", code: int | None = 0, **environ: str) -> Command:
        """Run `sksd` to its end; its exit code must be `code` (None: any)."""
        command = self.begin(*arguments, **environ)
        command.send(stdin.encode())
        command.close_stdin()
        ended = await command.ended.addTimeout(LIMIT, reactor)
        if code is not None:
            self.assertEqual(ended, code, f"{arguments}: {command.output.decode()}")
        self.assertNotIn("Traceback (most recent call last)\n  File \"/", command.err)
        self.assertFalse((self.top / "s" / "sksd" / "client.log").exists(), command.err)
        return command

    async def answer(self, *arguments: str, code: int = 0, **environ: str) -> Any:
        """The JSON document that `sksd ... --json` prints."""
        return json.loads((await self.sksd(*arguments, "--json", code=code, **environ)).out)

    async def fails(self, words: str, *arguments: str, **environ: str) -> str:
        """The one sentence of a command that fails: it has `words` in it."""
        command = await self.sksd(*arguments, code=1, **environ)
        self.assertEqual(command.out, "")
        self.assertTrue(command.err.startswith("sksd: "), command.err)
        self.assertIn(words, command.err)
        return command.err
