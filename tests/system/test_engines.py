"""Engines of a real daemon and proxy: from their start to their end, in whatever way it comes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from twisted.internet import defer, reactor, threads
from twisted.trial import unittest

from sksd import paths
from sksd.client import session
from sksd.errors import BadRequest, EngineEnded, KernelDied, NoSuchEngine, SksdError, TicketRefused
from sksd.link.hello import new_hello
from sksd.link.link import Link
from sksd.link.protocol import LinkConnection
from sksd.wire import messages
from sksd.wire.names import DEAD, INCOMPATIBLE, REFUSED, RUNNING, STARTED
from tests.system.daemon import LIMIT, DaemonCase, Local, until


class Running(DaemonCase):
    """With a daemon and a session."""

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        super().setUp()
        yield defer.ensureDeferred(self.begin())

    async def begin(self) -> None:
        """A daemon, a session, and the events it gets."""
        self.daemon = await self.start()
        self.here = await self.log_in()
        self.events: list[messages.Engine] = []
        self.here.on_event = self.event
        self.addCleanup(lambda: defer.ensureDeferred(self.end()))

    def event(self, event: messages.Event) -> None:
        """Keep it."""
        if event.engine is not None:
            self.events.append(event.engine)

    async def end(self) -> None:
        """Stop what runs, then the daemon."""
        if not self.daemon.ended.called:
            here = await self.log_in()
            for engine in await here.engines():
                await (await here.engine(engine.id)).shutdown()
            await here.close()
            await self.stop(self.daemon)

    async def refused(self, **wish: Any) -> messages.Outcome:
        """A spin_up that does not start anything, and leaves nothing."""
        outcome = await self.here.spin_up(messages.SpinUp(**wish))
        self.assertEqual((outcome.outcome, outcome.engine), (REFUSED, None))
        self.assertEqual(await self.here.engines(), [])
        self.assertEqual(list((paths.runtime() / "e").glob("*")) if (paths.runtime() / "e").exists() else [], [])
        return outcome


class Life(Running):
    """The usual life."""

    async def test_from_start_to_stop(self) -> None:
        steps: list[str] = []
        wish = messages.SpinUp(environment=sys.prefix, label="mine")
        outcome = await self.here.spin_up(wish, lambda progress: steps.append(progress.step))
        engine = outcome.engine
        assert engine is not None and outcome.ticket is not None and engine.pid is not None
        self.assertEqual((outcome.outcome, engine.state, engine.label), (STARTED, RUNNING, "mine"))
        self.assertEqual(engine.kernel.package, "spyder-kernels")
        self.assertEqual(steps, ["activate", "start"])
        [listed] = await self.here.engines()
        self.assertEqual(listed.id, engine.id)
        folder = paths.runtime() / "e" / engine.id
        self.assertEqual(stat.S_IMODE(folder.stat().st_mode), 0o700)
        # A session of its own, no pipe of the proxy's, and nothing that would tie it to a parent.
        self.assertEqual(os.getsid(engine.pid), engine.pid)
        for number in (0, 1, 2):
            self.assertNotIn("pipe", os.readlink(f"/proc/{engine.pid}/fd/{number}"))
        running = await self.here.engine(engine.id)
        self.assertEqual((await running.shutdown()).state, DEAD)
        self.assertEqual(await self.here.engines(), [])
        self.assertFalse(folder.exists())
        with self.assertRaises(NoSuchEngine):
            await running.info()
        self.assertEqual([event.state for event in self.events][-1], DEAD)

    async def test_restart_is_another_process_in_the_same_place(self) -> None:
        engine = await self.spin_up(self.here)
        running = await self.here.engine(engine.id)
        again = await running.restart()
        self.assertEqual((again.state, again.id), (RUNNING, engine.id))
        self.assertNotEqual(again.pid, engine.pid)

    async def test_death_is_told_at_once(self) -> None:
        engine = await self.spin_up(self.here)
        assert engine.pid is not None
        self.events.clear()
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: self.events and self.events[-1].state == DEAD, "the death is pushed", 2)
        self.assertEqual(self.events[-1].reason, "killed by SIGKILL")
        [listed] = await self.here.engines()
        self.assertEqual((listed.state, listed.signal), (DEAD, 9))
        with self.assertRaises(EngineEnded):
            await (await self.here.engine(engine.id)).interrupt()
        self.assertFalse((paths.runtime() / "e" / engine.id).exists())

    async def execute(self, engine: messages.Engine, code: str) -> None:
        """Run code in an engine by its own sockets."""

        def run() -> None:
            client = BlockingKernelClient()
            client.load_connection_file(str(paths.runtime() / "e" / engine.id / "kernel.json"))
            client.start_channels(hb=False)
            reply = client.execute_interactive(code, timeout=LIMIT)
            client.stop_channels()
            assert reply["content"]["status"] == "ok", reply

        await threads.deferToThread(run)

    async def test_what_it_started_ends_with_it(self) -> None:
        for how in ("stopped", "killed"):
            engine = await self.spin_up(self.here)
            await self.execute(engine, "import subprocess; subprocess.Popen(['sleep', '600'])")
            self.assertEqual(len(self.named("sleep")), 1)
            if how == "stopped":
                await (await self.here.engine(engine.id)).shutdown()
            else:
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGKILL)
            await until(lambda: not self.named("sleep"), f"its child ends when it is {how}", 3)

    async def test_interrupt(self) -> None:
        engine = await self.spin_up(self.here)
        code = "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    pass"
        running = self.execute(engine, f"open('busy', 'w').close()\n{code}")
        waiting = defer.ensureDeferred(running)
        await until((self.home / "busy").exists, "it is busy")
        await (await self.here.engine(engine.id)).interrupt()
        await waiting.addTimeout(LIMIT, reactor)

    async def test_log(self) -> None:
        self.configure("announce = no\nlisten = 127.0.0.1\n[kernels]\nlog_size = 16K\n")
        engine = await self.spin_up(self.here)
        running = await self.here.engine(engine.id)
        log = paths.state() / "engines" / f"{engine.id}.log"
        with open(log, "ab") as file:
            file.write(b"last words\n")
        page = await running.log(-20)
        self.assertIn("last words", page.text)
        self.assertTrue(page.end)

    async def test_log_is_bounded_while_it_is_written(self) -> None:
        engine = await self.spin_up(self.here)
        log = paths.state() / "engines" / f"{engine.id}.log"
        with open(log, "ab") as file:
            for number in range(40):
                file.write(b"x" * 100_000 + b" %d\n" % number)
                file.flush()
        await until(lambda: log.stat().st_blocks * 512 <= 1024 * 1024 + 65536, "the log is cut", 5)
        page = await (await self.here.engine(engine.id)).log(-3)
        self.assertEqual(page.text, "39\n")
        first = await (await self.here.engine(engine.id)).log(0, 10)
        self.assertGreater(first.offset, 0)

    async def test_log_size_of_the_configuration(self) -> None:
        await self.stop(self.daemon)
        self.configure("announce = no\nlisten = 127.0.0.1\n[kernels]\nlog_size = 64K\n")
        self.daemon = await self.start()
        self.here = await self.log_in()
        engine = await self.spin_up(self.here)
        log = paths.state() / "engines" / f"{engine.id}.log"
        with open(log, "ab") as file:
            file.write(b"x" * 500_000)
        await until(lambda: log.stat().st_blocks * 512 <= 65536 + 8192, "the log is cut", 5)

    async def test_nobody_attached_ends_it_where_that_was_asked_for(self) -> None:
        engine = await self.spin_up(self.here, linger=0.3)
        await until(lambda: any(event.id == engine.id and event.state == DEAD for event in self.events), "it ends")

    async def test_folder_and_variables(self) -> None:
        engine = await self.spin_up(self.here, cwd="/usr", variables={"SPAM": "eggs", "HOME": None})
        environ = Path(f"/proc/{engine.pid}/environ").read_bytes().split(b"\0")
        self.assertIn(b"SPAM=eggs", environ)
        self.assertFalse([line for line in environ if line.startswith((b"HOME=", b"SKSD_", b"JPY_"))])
        self.assertEqual(os.readlink(f"/proc/{engine.pid}/cwd"), "/usr")

    async def test_variable_that_is_not_utf8(self) -> None:
        await self.stop(self.daemon)
        self.environ["CAF\udce9"] = self.environ["PLACE"] = "caf\udce9"
        self.daemon = await self.start()
        self.here = await self.log_in()
        await self.spin_up(self.here)

    async def test_limit(self) -> None:
        await self.stop(self.daemon)
        self.configure("[sksd]\nannounce = no\nlisten = 127.0.0.1\n[kernels]\nmax_kernels = 1\n")
        self.daemon = await self.start()
        self.here = await self.log_in()
        # All at once, so that none runs when the next is asked for.
        wish = messages.SpinUp(environment=sys.prefix)
        waiting = [defer.ensureDeferred(self.here.spin_up(wish)) for _ in range(3)]
        outcomes = [await each for each in waiting]
        self.assertEqual(sorted(outcome.outcome for outcome in outcomes), [REFUSED, REFUSED, STARTED])
        outcome = await self.here.spin_up(wish)
        self.assertEqual((outcome.outcome, outcome.code), (REFUSED, "kernel-limit"))
        self.assertIn("here runs 1 kernels already", str(outcome.message))


class Refusals(Running):
    """Bad input: one sentence, and nothing is left."""

    async def test_unknown_environment(self) -> None:
        outcome = await self.refused(environment="nonsense")
        self.assertEqual(outcome.code, "no-such-environment")
        self.assertIn("`sksd envs here`", str(outcome.message))

    async def test_names_that_are_none(self) -> None:
        for name in ("a/b", "../x", " ", "a\0b", "", "x\ny", "/tmp/a\0b"):
            self.assertEqual((await self.refused(environment=name)).code, "bad-name", name)

    async def test_environment_without_a_kernel(self) -> None:
        prefix = self.top / "bare"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
        outcome = await self.here.spin_up(messages.SpinUp(environment=str(prefix)))
        self.assertEqual(outcome.outcome, INCOMPATIBLE)
        self.assertIn("spyder-kernels", str(outcome.message))
        self.assertEqual({unmet.found for unmet in outcome.unmet}, {None})

    async def test_kernel_out_of_range(self) -> None:
        accepts = [messages.Accept(package="spyder-kernels", low="99")]
        outcome = await self.here.spin_up(messages.SpinUp(environment=sys.prefix, accepts=accepts))
        self.assertEqual(outcome.outcome, INCOMPATIBLE)
        self.assertEqual(outcome.unmet[0].requirement, "spyder-kernels>=99")

    async def test_variable_that_cannot_be(self) -> None:
        with self.assertRaises(BadRequest):
            await self.refused(environment=sys.prefix, variables={"A=B": "c"})

    async def test_package_that_is_no_kernel(self) -> None:
        outcome = await self.refused(environment=sys.prefix, accepts=[messages.Accept(package="twisted")])
        self.assertEqual(outcome.code, BadRequest.code)
        self.assertIn("spyder-kernels or ipykernel", str(outcome.message))

    async def test_folder_that_is_none(self) -> None:
        for cwd in ("/nonsense", "relative", "/etc/passwd"):
            self.assertEqual((await self.refused(environment=sys.prefix, cwd=cwd)).code, "bad-folder", cwd)

    async def test_kernel_that_dies_while_starting(self) -> None:
        (self.home / "sitecustomize.py").write_text("import os\nos.write(2, b'no such luck\\n')\nos._exit(7)\n")
        outcome = await self.refused(environment=sys.prefix, variables={"PYTHONPATH": str(self.home)})
        self.assertEqual(outcome.code, KernelDied.code)
        self.assertIn("exit code 7", str(outcome.message))
        self.assertIn("no such luck", str(outcome.message))

    async def test_kernel_that_never_answers(self) -> None:
        (self.home / "sitecustomize.py").write_text("import time\nprint('zzz', flush=True)\ntime.sleep(600)\n")
        wish = {"environment": sys.prefix, "variables": {"PYTHONPATH": str(self.home)}, "timeout": 0.5}
        outcome = await self.refused(**wish)
        self.assertEqual(outcome.code, "kernel-silent")
        self.assertIn("zzz", str(outcome.message))

    async def test_full_disk(self) -> None:
        if os.getuid():
            raise unittest.SkipTest("only root can mount a small disk")
        small = paths.state() / "engines"
        small.mkdir(mode=0o700, parents=True, exist_ok=True)
        mounted = ["mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "tmpfs", str(small)]
        subprocess.run(mounted, check=True, capture_output=True)
        try:
            (small / "full").write_bytes(b"x" * 4096)
            outcome = await self.refused(environment=sys.prefix)
            self.assertEqual(outcome.code, "disk-full")
            self.assertIn("No space is left", str(outcome.message))
            (small / "full").unlink()
        finally:
            subprocess.run(["umount", str(small)], check=True)

    async def test_someone_elses_ticket(self) -> None:
        engine = await self.spin_up(self.here)
        ticket = await (await self.here.engine(engine.id)).ticket()
        for wrong in (ticket.ticket[:-1] + "x", "", "v1.e30.x", "\0"):
            link = Link.opening(reactor, new_hello(wrong))  # type: ignore[arg-type]
            waiting = link.when_welcomed()
            await session.open_link(reactor, Local(self.note()), lambda link=link: LinkConnection(link))
            with self.assertRaises(TicketRefused):
                await waiting


class Surviving(Running):
    """What dies, and what does not."""

    async def test_proxy_killed(self) -> None:
        engine = await self.spin_up(self.here)
        [proxy] = self.named("sksd.proxy")
        proxy.kill()
        await until(lambda: [each for each in self.named("sksd.proxy") if each.pid != proxy.pid], "another proxy")
        [listed] = await until_listed(self.here)
        self.assertEqual((listed.id, listed.pid, listed.state), (engine.id, engine.pid, RUNNING))
        # Its death is still noticed, though it is no child any more.
        assert engine.pid is not None
        self.events.clear()
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: self.events and self.events[-1].state == DEAD, "the death is pushed", 3)

    async def test_proxy_killed_without_engines(self) -> None:
        await self.here.environments()
        [proxy] = self.named("sksd.proxy")
        proxy.kill()
        await until(lambda: not proxy.is_running() or proxy.status() == "zombie", "it is gone")
        await until_listed(self.here)
        await self.spin_up(self.here)

    async def test_daemon_killed(self) -> None:
        engine = await self.spin_up(self.here)
        await self.stop(self.daemon, signal.SIGKILL)
        self.daemon = await self.start()
        here = await self.log_in()
        [listed] = await here.engines()
        self.assertEqual((listed.id, listed.pid, listed.state), (engine.id, engine.pid, RUNNING))
        await here.close()

    async def test_a_session_outlives_the_daemon(self) -> None:
        engine = await self.spin_up(self.here)
        held = await self.here.engine(engine.id)
        await self.stop(self.daemon, signal.SIGKILL)
        with self.assertRaises(SksdError):
            await self.here.engines()
        self.daemon = await self.start()
        self.assertEqual((await held.interrupt()).id, engine.id)
        self.assertEqual([each.id for each in await self.here.engines()], [engine.id])
        self.assertEqual((await held.shutdown()).state, DEAD)

    async def test_both_killed_and_the_engine_too(self) -> None:
        engine = await self.spin_up(self.here)
        [proxy] = self.named("sksd.proxy")
        proxy.kill()
        await self.stop(self.daemon, signal.SIGKILL)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        self.daemon = await self.start()
        here = await self.log_in()
        self.assertEqual([each for each in await here.engines() if each.state != DEAD], [])
        self.assertEqual(list((paths.state() / "engines").glob("*")), [])
        await here.close()

    async def test_proxy_that_cannot_start(self) -> None:
        (paths.runtime() / "proxy.lock").mkdir()
        with self.assertRaises(SksdError) as caught:
            await self.here.environments()
        self.assertEqual(caught.exception.code, "proxy-failed")
        self.assertIn("proxy.lock", str(caught.exception))
        (paths.runtime() / "proxy.lock").rmdir()
        self.assertTrue(await self.here.environments())


async def until_listed(here: session.Session) -> list[messages.Engine]:
    """The engines, asked again while the proxy is being lost and found."""
    end = reactor.seconds() + LIMIT  # type: ignore[attr-defined]
    while True:
        try:
            return await here.engines()
        except SksdError:
            if reactor.seconds() > end:  # type: ignore[attr-defined]
                raise
