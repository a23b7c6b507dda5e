"""A daemon that is upgraded while an engine of its last release is at work."""

from __future__ import annotations

import os
import signal

from twisted.internet import reactor

from sksd import __version__
from tests.system.cli import CommandCase
from tests.system.daemon import LIMIT

#: What makes every Python of the last release one: it speaks the protocol before this one, and no other.
LAST_RELEASE = """\
import sksd
from sksd.wire import names
sksd.__version__ = "0.0.9"
names.PROTOCOL = 0
names.PROTOCOLS = (0,)
"""
COUNTING = "import time\nfor number in range(300):\n    print(number, flush=True)\n    time.sleep(0.01)\n"


class Upgrade(CommandCase):
    """The daemon of `setUp` is replaced by one of the last release, with a proxy and a keeper of that."""

    async def test_a_link_goes_on_over_the_new_daemon(self) -> None:
        folder = self.top / "last"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(LAST_RELEASE)
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        [own] = await self.answer("envs", "local")
        await self.stop(self.daemon)
        now, self.environ = self.environ, {**self.environ, "PYTHONPATH": path}
        self.daemon = await self.start()
        self.assertEqual((await self.answer("info", "local"))["version"], "0.0.9")
        counting = self.begin("run", "local", own["name"], "-c", COUNTING)
        await counting.says(b"\n20\n")
        await self.stop(self.daemon, signal.SIGKILL)
        self.environ = now
        self.daemon = await self.start()
        [engine] = await self.answer("engines", "local")
        self.assertEqual((await self.answer("info", "local"))["version"], __version__)
        code = await counting.ended.addTimeout(LIMIT, reactor)
        self.assertEqual(code, 0, counting.err)
        self.assertEqual(counting.out, "".join(f"{number}\n" for number in range(300)))
        self.assertIn(engine["state"], ("running", "stopping"))
