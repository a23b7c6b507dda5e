"""Environments made, changed and required through a real daemon, on the tests' own channel."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor

from sksd.client.session import Session
from sksd.errors import (
    BadName,
    BadSpec,
    Cancelled,
    EnvironmentExists,
    EnvironmentFrozen,
    NoSuchEnvironment,
    NoSuchPackage,
    NoSuchTask,
    NotAllowed,
    NotAnEnvironment,
    SksdError,
    Unsolvable,
)
from sksd.wire import changes, messages
from sksd.wire.names import CREATED, INCOMPATIBLE, REFUSED, STARTED
from tests import channel
from tests.system.cli import CommandCase
from tests.system.daemon import LIMIT, DaemonCase, until

BASE, APP, MANY = "sksd-test-base", "sksd-test-app", "sksd-test-many"
KERNEL = [messages.Accept(package="spyder-kernels", low="3.1", high="3.2")]


class _Service:
    """A home whose .condarc knows the channel, and one package cache for all tests."""

    top: Path
    home: Path

    def condarc(self) -> None:
        there = channel.channel()
        text = f"channels:\n  - {there.as_uri()}\npkgs_dirs:\n  - {there.parent / 'cache-of-tests'}\n"
        (self.home / ".condarc").write_text(text)

    def prefix(self, name: str) -> Path:
        return self.home / ".conda" / "envs" / name


class SessionTests(_Service, DaemonCase):
    """What a front end asks for."""

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        super().setUp()
        self.condarc()
        self.daemon = yield defer.ensureDeferred(self.start())
        self.addCleanup(lambda: defer.ensureDeferred(self.stop(self.daemon)))
        self.here = yield defer.ensureDeferred(self.log_in())

    async def create(
        self, name: str, *specs: str, here: Session | None = None, **more: Any
    ) -> changes.Changed:
        wish = changes.CreateEnvironment(environment=name, specs=list(specs), kernel=False, **more)
        return await (here or self.here).change(wish, more.pop("progress", lambda _: None))

    async def raises(self, kind: type[SksdError], wish: Any) -> SksdError:
        with self.assertRaises(kind) as caught:
            await self.here.change(wish)
        return caught.exception

    async def versions(self, name: str) -> dict[str, str]:
        found = await self.here.change(changes.PackagesQuery(environment=name))
        return {each.name: each.version for each in found.packages or ()}

    async def test_wrong_requests(self) -> None:
        """Each is one sentence, and leaves nothing behind."""
        await self.create("there", f"{BASE}=1.0")
        frozen = self.prefix("there") / "conda-meta" / "frozen"
        frozen.write_text(json.dumps({"message": "ask Ada"}))
        make, change = changes.CreateEnvironment, changes.ChangeEnvironment
        for kind, wish in (
            (BadName, make(environment="a/b", specs=[BASE])),
            (BadName, make(environment="-x", specs=[BASE])),
            (NotAllowed, make(environment="_hidden", specs=[BASE])),
            (BadSpec, make(environment="x", specs=["=="], kernel=False)),
            (NoSuchPackage, make(environment="x", specs=["no-such-package-at-all"], kernel=False)),
            (Unsolvable, make(environment="x", specs=["sksd-test-left", "sksd-test-right"], kernel=False)),
            (SksdError, make(environment="x", specs=[BASE], channels=["file:///nowhere"], kernel=False)),
            (EnvironmentExists, make(environment="there", specs=[BASE], kernel=False)),
            (NoSuchEnvironment, change(environment="nowhere", change="add", specs=[BASE])),
            (EnvironmentFrozen, change(environment="there", change="add", specs=[APP])),
            (NotAllowed, changes.RemoveEnvironment(environment=str(self.own_prefix()))),
        ):
            problem = await self.raises(kind, wish)
            self.assertNotIn("Traceback", str(problem))
        venv = self.home / ".venvs" / "v"
        (venv / "bin").mkdir(parents=True)
        (venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.2\n")
        await self.raises(NotAnEnvironment, change(environment=str(venv), change="add", specs=[BASE]))
        with self.assertRaises(NoSuchTask):
            await self.here.cancel("unknown")
        there = {each.name: each for each in await self.here.environments()}["there"]
        self.assertEqual((there.frozen, there.frozen_message, there.writable), (True, "ask Ada", True))
        self.assertEqual([path.name for path in self.prefix("there").parent.iterdir()], ["there"])

    def own_prefix(self) -> str:
        import sys

        return sys.prefix

    async def test_made_changed_and_told(self) -> None:
        """One client changes, another is told; details are there when asked for."""
        other = await self.log_in()
        told: list[str] = []
        other.on_event = lambda event: told.append(event.event)
        plans: list[changes.Plan] = []
        steps: list[str] = []
        wish = changes.CreateEnvironment(environment="e", specs=[f"{APP}=1.0"], kernel=False)
        made = await self.here.change(wish, lambda step: steps.append(step.step), plans.append)
        self.assertEqual((made.name, made.prefix, made.changed), ("e", str(self.prefix("e")), True))
        self.assertEqual({each.name for each in plans[0].actions}, {APP, BASE})
        self.assertEqual(made.plan, plans[0])
        self.assertIn("linking", steps)
        await until(lambda: told.count("environments"), "the other client is told")
        self.assertEqual(await self.versions("e"), {APP: "1.0", BASE: "1.5"})

        update = changes.ChangeEnvironment(environment="e", change="update", dry_run=True)
        planned = await self.here.change(update)
        self.assertFalse(planned.changed)
        assert planned.plan is not None
        self.assertEqual({(each.action, each.name, each.version) for each in planned.plan.actions}, set())
        add = changes.ChangeEnvironment(environment="e", change="add", specs=[f"{APP}=2.0"])
        await self.here.change(add)
        self.assertEqual(await self.versions("e"), {APP: "2.0", BASE: "2.0"})
        listing = await other.listing(messages.EnvironmentsQuery(detail=True))
        found = {each.name: each for each in listing.environments}["e"]
        self.assertGreater(found.size or 0, 4096)
        self.assertTrue(found.last_use)
        # By hand, as conda would.
        shutil.rmtree(self.prefix("e"))
        told.clear()
        await self.here.environments()
        await until(lambda: "environments" in told, "a change by hand is told")

    async def test_required(self) -> None:
        """Each outcome of a spin-up."""
        ask = {"accepts": KERNEL, "requirements": ["python", f"{BASE}=1"]}
        refused = await self.here.spin_up(messages.SpinUp(environment="k", **ask))
        self.assertEqual((refused.outcome, refused.code), (REFUSED, "no-such-environment"))
        empty = await self.here.spin_up(messages.SpinUp(environment="k", create=True))
        self.assertEqual((empty.outcome, empty.code), (REFUSED, "nothing-required"))
        made = await self.here.spin_up(messages.SpinUp(environment="k", create=True, **ask))
        self.assertEqual(made.outcome, CREATED, made)
        assert made.engine is not None and made.ticket is not None
        self.assertTrue(made.engine.kernel.version.startswith("3.1."))
        with self.assertRaises(NotAllowed) as caught:
            await self.here.change(changes.RemoveEnvironment(environment="k"))
        self.assertIn(made.engine.id, str(caught.exception))
        again = await self.here.spin_up(messages.SpinUp(environment="k", create=True, **ask))
        self.assertEqual(again.outcome, STARTED)
        ask["requirements"] = ["python", f"{BASE}>=2", "sksd-test-tool"]
        lacking = await self.here.spin_up(messages.SpinUp(environment="k", create=True, **ask))
        self.assertEqual(lacking.outcome, INCOMPATIBLE)
        self.assertEqual(
            [(each.requirement, each.found) for each in lacking.unmet],
            [(f"{BASE}>=2", "1.5"), ("sksd-test-tool", None)],
        )
        self.assertEqual((await self.versions("k"))[BASE], "1.5")
        mended = await self.here.spin_up(messages.SpinUp(environment="k", mend=True, **ask))
        self.assertEqual(mended.outcome, STARTED, mended)
        self.assertEqual((await self.versions("k"))[BASE], "2.0")
        # Files may lie, as those of an editable install do: the kernel that runs is asked, too.
        (about,) = self.prefix("k").glob("lib/python3*/site-packages/spyder_kernels-*.dist-info")
        about.rename(about.with_name("spyder_kernels-3.1.99.dist-info"))
        newer = [messages.Accept(package="spyder-kernels", low="3.1.50", high="3.2")]
        lying = await self.here.spin_up(messages.SpinUp(environment="k", accepts=newer))
        self.assertEqual((lying.outcome, lying.unmet[0].found), (INCOMPATIBLE, made.engine.kernel.version))
        for engine in await self.here.engines():
            await (await self.here.engine(engine.id)).shutdown(0)

    async def test_cancelled(self) -> None:
        """A change that is cancelled leaves nothing, when it works and when it has not begun."""
        steps: list[str] = []

        def told(event: messages.Progress) -> None:
            steps.append(event.step)
            if len(steps) == 1:
                defer.ensureDeferred(self.here.cancel("t1")).addErrback(lambda _: None)

        wish = changes.CreateEnvironment(environment="c", specs=[MANY], kernel=False, task="t1")
        with self.assertRaises(Cancelled) as caught:
            await self.here.change(wish, told)
        self.assertTrue(caught.exception.fields.get("undone"))
        self.assertFalse(self.prefix("c").exists())
        early = defer.ensureDeferred(
            self.here.change(
                changes.CreateEnvironment(environment="c", specs=[MANY], kernel=False, task="t2")
            )
        )
        await self.here.cancel("t2")
        with self.assertRaises(Cancelled):
            await early
        self.assertFalse(self.prefix("c").exists())

    async def test_eight_at_once(self) -> None:
        """By two clients; two of them want the same name."""
        other = await self.log_in()
        names = [f"n{number}" for number in range(7)] + ["n0"]
        running = [
            defer.ensureDeferred(self.create(name, f"{BASE}=1.0", here=here))
            for name, here in zip(names, [self.here, other] * 4, strict=True)
        ]
        results = await defer.DeferredList(running, consumeErrors=True)
        problems = [result for fine, result in results if not fine]
        self.assertEqual([type(problem.value) for problem in problems], [EnvironmentExists], problems)
        there = {each.name for each in await self.here.environments()}
        self.assertTrue(set(names) <= there)

    async def test_the_client_goes_away(self) -> None:
        """The change goes on, and the proxy stays for it."""
        other = await self.log_in()
        begun: defer.Deferred[None] = defer.Deferred()

        def told(event: messages.Progress) -> None:
            if not begun.called:
                begun.callback(None)

        wish = changes.CreateEnvironment(environment="g", specs=[MANY], kernel=False)
        changing = defer.ensureDeferred(other.change(wish, told))
        changing.addErrback(lambda _: None)
        await begun.addTimeout(LIMIT, reactor)
        await self.here.close()
        await other.close()
        await self.stop(self.daemon)
        done = self.prefix("g") / "conda-meta" / f"{MANY}-2.0-0.json"
        await until(done.exists, "it is made all the same")
        await until(lambda: not self.named("sksd.conda") and not self.named("sksd.proxy"), "both have ended")
        self.assertEqual(len(list((self.prefix("g") / "share" / MANY).glob("[0-9]*"))), channel.MANY)
        self.daemon = await self.start()

    async def test_the_proxy_is_killed(self) -> None:
        """Its worker goes on, and the next proxy waits for it; a worker that is killed too is repaired."""
        begun: defer.Deferred[None] = defer.Deferred()

        def told(event: messages.Progress) -> None:
            if event.step == "linking" and not begun.called:
                begun.callback(None)

        def create(name: str) -> Any:
            wish = changes.CreateEnvironment(environment=name, specs=[MANY], kernel=False)
            return defer.ensureDeferred(self.here.change(wish, told))

        first = create("p")
        await begun.addTimeout(LIMIT, reactor)
        for process in self.named("sksd.proxy"):
            process.send_signal(signal.SIGKILL)
        with self.assertRaises(SksdError):
            await first
        with self.assertRaises(EnvironmentExists):
            await create("p")
        self.assertEqual((await self.versions("p"))[MANY], "2.0")

        begun = defer.Deferred()
        second = create("q")
        await begun.addTimeout(LIMIT, reactor)
        for process in [*self.named("sksd.proxy"), *self.named("sksd.conda")]:
            process.send_signal(signal.SIGKILL)
        with self.assertRaises(SksdError):
            await second
        await self.here.environments()
        await until(lambda: not self.prefix("q").exists(), "the new proxy has it repaired")

        begun = defer.Deferred()
        third = create("r")
        await begun.addTimeout(LIMIT, reactor)
        for process in self.named("sksd.conda"):
            process.send_signal(signal.SIGKILL)
        with self.assertRaises(SksdError) as caught:
            await third
        self.assertEqual(caught.exception.code, "worker-failed")
        self.assertFalse(self.prefix("r").exists())


class ConfiguredTests(_Service, DaemonCase):
    """What the administrator says."""

    async def test_configured(self) -> None:
        self.condarc()
        text = "[sksd]\nannounce = no\nlisten = 127.0.0.1\n[environments]\nmay_create = no\n"
        self.configure(text)
        daemon = await self.start()
        self.addCleanup(lambda: defer.ensureDeferred(self.stop(daemon)))
        here = await self.log_in()
        with self.assertRaises(NotAllowed):
            await here.change(changes.CreateEnvironment(environment="x", specs=[BASE]))
        outcome = await here.spin_up(messages.SpinUp(environment="x", create=True, requirements=[BASE]))
        self.assertEqual((outcome.outcome, outcome.code), (REFUSED, "not-allowed"))


class CommandTests(_Service, CommandCase):
    """`sksd env`, as a person has it."""

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        self.condarc()

    async def test_from_create_to_remove(self) -> None:
        planned = await self.sksd(
            "env", "create", "local", "e", "--require", f"{APP}=1", "--no-kernel", "--dry-run"
        )
        self.assertIn(BASE, planned.out)
        self.assertFalse(self.prefix("e").exists())
        made = await self.sksd(
            "env", "create", "local", "e", "--require", f"{APP}=1", "--require", BASE, "--no-kernel"
        )
        self.assertIn(f"Created e ({self.prefix('e')})", made.out)
        self.assertNotIn("\x1b", made.err)
        changed = await self.answer("env", "change", "local", "e", "--require", f"{APP}=2")
        self.assertEqual({each["action"] for each in changed["plan"]["actions"]}, {"upgrade"})
        await self.sksd("env", "change", "local", "e", "--remove", APP)
        await self.sksd("env", "clone", "local", "e", "f")
        await self.sksd("env", "rename", "local", "f", "g")
        await self.sksd("env", "export", "local", "g", "--format", "explicit", "-o", str(self.home / "x.txt"))
        await self.sksd("env", "create", "local", "h", "--file", str(self.home / "x.txt"), "--no-kernel")
        there = await self.answer("env", "packages", "local", "h")
        self.assertEqual([each["name"] for each in there["packages"]], [BASE])
        await self.sksd("env", "remove", "local", "e", code=2)
        await self.sksd("env", "remove", "local", "e", "--yes")
        listed = {each["name"]: each for each in await self.answer("envs", "local", "--detail")}
        self.assertEqual(set(listed) & set("efgh"), {"g", "h"})
        self.assertGreater(listed["g"]["size"], 1000)
        self.assertIn("nothing to repair", (await self.sksd("env", "repair", "local")).out)
        failed = await self.sksd("env", "change", "local", "g", "--require", "no-such", code=1)
        self.assertIn("sksd: There is no package `no-such`", failed.err)

    async def test_run_with_requirements(self) -> None:
        """Created and started in one go; then what is lacking is listed, with what would mend it."""
        code = "print(6 * 7)"
        run = await self.sksd("run", "local", "k", "--require", "python", "--create", "-c", code)
        self.assertEqual(run.out, "42\n")
        listed = await self.fails(
            "numpy>=2 is not installed",
            "run",
            "local",
            "k",
            "--require",
            BASE,
            "--require",
            "numpy>=2",
            "-c",
            code,
        )
        self.assertIn(f"conda install -p {self.prefix('k')} 'numpy>=2'", listed)

    async def test_interrupted(self) -> None:
        """Ctrl-C says what was undone."""
        command = self.begin("env", "create", "local", "i", "--require", MANY, "--no-kernel")
        await command.says(b"Reading")
        command.kill(signal.SIGINT)
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 130, command.output)
        self.assertIn("cancelled", command.err)
        self.assertFalse(self.prefix("i").exists())
