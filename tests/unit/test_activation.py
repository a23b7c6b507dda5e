"""Activation: what is worked out from files, and what bash adds to it. Bash is real, environments are not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from sksd.errors import ActivationFailed
from sksd.proxy.activation import Activations, ShellFailed, cleaned, merged, plan
from sksd.proxy.prefixes import Prefix
from sksd.proxy.shell import run

LOGIN = {"HOME": "/home/x", "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


class _Case(TestCase):
    def setUp(self) -> None:
        self.path = Path(os.path.realpath(self.mktemp())) / "x"
        (self.path / "conda-meta").mkdir(parents=True)
        self.prefix = Prefix(str(self.path), "conda", f"{self.path}/bin/python", "3.11.7")

    def script(self, name: str, text: str) -> Path:
        file = self.path / "etc" / "conda" / "activate.d" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def variables(self, name: str, value: object) -> None:
        file = self.path / "etc" / "conda" / "env_vars.d" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))

    def state(self, value: object) -> None:
        (self.path / "conda-meta" / "state").write_text(json.dumps(value))


class PlanTests(_Case):
    """What is worked out without any process."""

    def test_conda(self) -> None:
        todo = plan(self.prefix, "x", LOGIN)
        self.assertEqual(todo.scripts, ())
        self.assertEqual(
            todo.environ,
            LOGIN
            | {
                "PATH": f"{self.path}/bin:{LOGIN['PATH']}",
                "CONDA_PREFIX": str(self.path),
                "CONDA_DEFAULT_ENV": "x",
                "CONDA_SHLVL": "1",
                "CONDA_PROMPT_MODIFIER": "(x) ",
            },
        )

    def test_venv(self) -> None:
        environ = plan(Prefix("/v", "venv", "/v/bin/python"), "v", LOGIN).environ
        added = {"PATH": f"/v/bin:{LOGIN['PATH']}", "VIRTUAL_ENV": "/v", "VIRTUAL_ENV_PROMPT": "v"}
        self.assertEqual(environ, LOGIN | added)

    def test_interpreter(self) -> None:
        environ = plan(Prefix("/usr", "python", "/usr/bin/python3"), "usr", LOGIN).environ
        self.assertEqual(environ, LOGIN | {"PATH": "/usr/bin:/usr/local/bin:/bin"})

    def test_cleaned(self) -> None:
        """Nothing of another environment, of a kernel or of sksd stays, on PATH neither."""
        foreign = {
            "PATH": "/v/bin:/c/bin:/b/bin/:/b/condabin:/usr/bin",
            "VIRTUAL_ENV": "/v",
            "CONDA_PREFIX": "/c",
            "CONDA_PREFIX_1": "/b",
            "CONDA_EXE": "/b/bin/conda",
            "_CE_M": "",
            "PYTHONHOME": "/x",
            "PYTHONPATH": "/x",
            "JPY_PARENT_PID": "1",
            "SPY_UMR_ENABLED": "True",
            "SKSD_PASSWORD": "secret",
            "HOME": "/home/x",
        }
        self.assertEqual(cleaned(foreign), {"PATH": "/b/condabin:/usr/bin", "HOME": "/home/x"})

    def test_order(self) -> None:
        """env_vars.d in sorted order, then state, which deletes too."""
        self.variables("b.json", {"A": "b", "B": "b", "LANG": "b"})
        self.variables("a.json", {"A": "a", "NUMBER": 1})
        self.state({"env_vars": {"B": "state", "LANG": "***unset***", "NEVER": "***unset***"}})
        environ = plan(self.prefix, "x", LOGIN).environ
        self.assertEqual((environ["A"], environ["B"], environ["NUMBER"]), ("b", "state", "1"))
        self.assertNotIn("LANG", environ)
        self.assertNotIn("NEVER", environ)

    def test_broken_files(self) -> None:
        wrong: tuple[object, ...] = (
            [],
            {"env_vars": []},
            {"env_vars": {"A": None}},
            {"env_vars": {"A=B": "c"}},
            {"env_vars": {"A": "\0"}},
        )
        for value in wrong:
            self.state(value)
            with self.assertRaises(ActivationFailed, msg=repr(value)):
                plan(self.prefix, "x", LOGIN)
        (self.path / "conda-meta" / "state").write_text("{")
        with self.assertRaises(ActivationFailed) as caught:
            plan(self.prefix, "x", LOGIN)
        self.assertIn("is not JSON", str(caught.exception))

    def test_scripts(self) -> None:
        second, first = self.script("b.sh", ""), self.script("a.sh", "")
        self.script("c.fish", "")
        self.assertEqual(plan(self.prefix, "x", LOGIN).scripts, (str(first), str(second)))


class MergedTests(SynchronousTestCase):
    """Reading `env -0`."""

    @given(some.dictionaries(some.from_regex(r"[A-Z]{1,5}", fullmatch=True),
                             some.text(some.characters(codec="utf-8", exclude_characters="\0"))))  # fmt: skip
    def test_round_trip(self, environ: dict[str, str]) -> None:
        output = b"".join(f"{key}={value}".encode() + b"\0" for key, value in environ.items())
        self.assertEqual(merged({}, output), environ)

    def test_shells_own(self) -> None:
        output = b"A=1\0_=/usr/bin/env\0SHLVL=1\0PWD=/\0OLDPWD=/\0_sksd_file=x\0"
        self.assertEqual(
            merged({"PWD": "/home/x", "SHLVL": "2"}, output), {"A": "1", "PWD": "/home/x", "SHLVL": "2"}
        )


class ScriptsTests(_Case):
    """What the scripts of activate.d do to the variables, in a real bash."""

    def activate(
        self, seconds: float | None = None, login: Mapping[str, str] = LOGIN
    ) -> Deferred[dict[str, str]]:
        async def runner(arguments: Sequence[str], environ: Mapping[str, str], limit: float) -> bytes:
            return await run(reactor, arguments, environ, seconds or limit)

        return Deferred.fromCoroutine(Activations(runner).activate(self.prefix, "x", login))

    async def failure(self, text: str, seconds: float | None = None) -> str:
        self.script("a.sh", text)
        with self.assertRaises(ActivationFailed) as caught:
            await self.activate(seconds)
        return str(caught.exception)

    async def test_sourced_in_order(self) -> None:
        self.script(
            "b.sh", 'export AB="$AB b"; export PATH="/tool:$PATH"; unset LANG; export WHERE="$CONDA_PREFIX"'
        )
        self.script("a.sh", "export AB=a; NOT_EXPORTED=1; set -a")
        environ = await self.activate(
            login=LOGIN | {"x.y": "dotted", "BASH_ENV": "/nowhere", "PWD": "/home/x"}
        )
        self.assertEqual((environ["AB"], environ["WHERE"]), ("a b", str(self.path)))
        self.assertTrue(environ["PATH"].startswith(f"/tool:{self.path}/bin:"))
        self.assertEqual(
            (environ["x.y"], environ["BASH_ENV"], environ["PWD"]), ("dotted", "/nowhere", "/home/x")
        )
        self.assertFalse({"LANG", "NOT_EXPORTED", "SHLVL", "_", "_sksd_file"} & set(environ))

    async def test_noise_stdin_and_failures(self) -> None:
        """Scripts may print, read, fail, change folder, and break PATH; conda lets them."""
        self.script("a.sh", 'echo noise; echo more >&2; read line; A="x$line"; export A; cd /; false')
        self.script("b.sh", "no-such-command; PATH=; export B=$'two\\nlines'; return 3")
        environ = await self.activate()
        self.assertEqual((environ["A"], environ["B"], environ["PATH"]), ("x", "two\nlines", ""))

    async def test_background(self) -> None:
        """A script that leaves something running does not hold the activation up."""
        self.script("a.sh", f"sleep 600 & echo $! > {self.path}/pid; export A=1")
        environ = await self.activate()
        os.kill(int((self.path / "pid").read_text()), 9)
        self.assertEqual(environ["A"], "1")

    async def test_ends_the_shell(self) -> None:
        self.assertIn("ended the shell", await self.failure("exit 0"))

    async def test_fails(self) -> None:
        message = await self.failure("echo one >&2; echo the licence is gone >&2; exit 5")
        self.assertIn("exit code 5: one / the licence is gone", message)
        self.assertIn("signal 9", await self.failure("kill -9 $$"))

    async def test_too_slow(self) -> None:
        """The shell and what it waits for are killed."""
        message = await self.failure(f"echo stuck >&2; echo $$ > {self.path}/pid; sleep 600", 0.3)
        self.assertIn("not done after 0.3 s", message)
        with self.assertRaises(ProcessLookupError):
            os.kill(int((self.path / "pid").read_text()), 0)

    async def test_too_much(self) -> None:
        answer = run(reactor, ["/bin/sh", "-c", "cat /dev/zero >&3"], LOGIN, 30.0)
        with self.assertRaises(ShellFailed):
            await answer

    async def test_cannot_be_started(self) -> None:
        with self.assertRaises(ShellFailed):
            await run(reactor, ["/nowhere/bash"], LOGIN, 30.0)

    async def test_no_bash(self) -> None:
        self.script("a.sh", "")
        self.patch(__import__("shutil"), "which", lambda *_, **__: None)
        with self.assertRaises(ActivationFailed) as caught:
            await self.activate()
        self.assertIn("there is no bash", str(caught.exception))


class RememberingTests(_Case):
    """Bash runs once, and again only when something changed."""

    def setUp(self) -> None:
        super().setUp()
        self.runs: list[Sequence[str]] = []

        async def runner(arguments: Sequence[str], environ: Mapping[str, str], seconds: float) -> bytes:
            self.runs.append(arguments)
            return b"A=1\0"

        self.activations = Activations(runner, clock=lambda: 4e9)

    def activate(self, name: str = "x", login: Mapping[str, str] = LOGIN) -> dict[str, str]:
        return self.successResultOf(
            Deferred.fromCoroutine(self.activations.activate(self.prefix, name, login))
        )

    def test_no_scripts_no_bash(self) -> None:
        self.activate()
        self.assertEqual(self.runs, [])

    def test_once(self) -> None:
        self.script("a.sh", "")
        self.activate()["B"] = "a caller's own"
        self.assertEqual(self.activate(), {"A": "1"})
        self.assertEqual(len(self.runs), 1)

    def test_changes(self) -> None:
        file = self.script("a.sh", "")
        changes: tuple[Callable[[], object], ...] = (
            partial(os.utime, file, (1, 1)),
            partial(self.script, "b.sh", ""),
            partial(self.variables, "a.json", {}),
            partial(self.state, {}),
            partial(os.utime, self.path / "conda-meta", (1, 1)),
        )
        self.activate()
        for number, change in enumerate(changes, 2):
            change()
            self.activate()
            self.assertEqual(len(self.runs), number, change)
        self.activate(login=LOGIN | {"NEW": "1"})
        self.assertEqual(len(self.runs), len(changes) + 2)

    def test_young_changes_are_not_trusted(self) -> None:
        file = self.script("a.sh", "")
        now = os.stat(file).st_mtime
        self.activations._clock = lambda: now + 1
        self.activate()
        self.activate()
        self.assertEqual(len(self.runs), 2)
