"""One contract for every backend: rattler, a program that behaves like conda, and conda itself where
SKSD_TEST_CONDA names it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sksd.conda import history
from sksd.conda.messages import Done, Failed
from tests.system.worker import Worker, WorkerCase

BASE, APP, MANY = "sksd-test-base", "sksd-test-app", "sksd-test-many"


class Contract:
    """What a job does, whoever does it."""

    backend: dict[str, str] = {}

    def start(self: Any, operation: str, name: str = "", **job: Any) -> Worker:
        """With this backend."""
        started: Worker = super().start(operation, name, **{**self.backend, **job})  # type: ignore[misc]
        return started

    def test_from_creation_to_removal(self: Any) -> None:
        worker = self.done("create", "one", specs=[f"{APP} 1.0", MANY])
        self.assertEqual(worker.actions, {APP: "install", BASE: "install", MANY: "install"})
        self.assertEqual(self.packages("one"), {APP: "1.0", BASE: "1.5", MANY: "2.0"})
        self.assertEqual(self.registered(), [str(self.prefix("one"))])
        asked = history.requested((self.prefix("one") / "conda-meta" / "history").read_text())
        self.assertEqual(set(asked), {APP, MANY})
        worker = self.done("add", "one", specs=[f"{MANY} 1.0"])
        self.assertEqual(worker.actions, {MANY: "downgrade"})
        worker = self.done("remove_packages", "one", specs=[APP])
        self.assertEqual(worker.actions, {APP: "remove", BASE: "remove"})
        self.done("clone", "two", source="one")
        self.done("rename", "three", source="two")
        self.assertEqual(self.packages("three"), {MANY: "1.0"})
        self.assertEqual(self.registered(), [str(self.prefix("one")), str(self.prefix("three"))])
        self.done("remove", "three")
        self.assertFalse(self.prefix("three").exists())
        self.assertEqual(self.pending(), [])

    def test_update(self: Any) -> None:
        self.done("create", "one", specs=[f"{BASE} 1.0", f"{MANY}"])
        self.assertEqual(self.done("update", "one", specs=[f"{BASE} <2"]).actions, {BASE: "upgrade"})
        self.assertEqual(self.packages("one")[BASE], "1.5")

    def test_import(self: Any) -> None:
        self.condarc(channels=[])
        text = f"channels: ['{self.url}', nodefaults]\ndependencies: ['{BASE}=1.0']\nvariables: {{A: b}}\n"
        self.done("import", "one", file={"format": "environment.yml", "text": text})
        self.assertEqual(self.packages("one"), {BASE: "1.0"})
        done = self.done("export", "one", format="explicit").events[-1]
        assert isinstance(done, Done) and done.text
        self.done("import", "two", file={"format": "explicit", "text": done.text}, channels=[self.url])
        self.assertEqual(self.packages("two"), {BASE: "1.0"})

    def test_failures(self: Any) -> None:
        for specs, code in (
            (["sksd-nowhere"], "no-such-package"),
            (["sksd-test-left", "sksd-test-right"], "unsolvable"),
            (["--help"], "bad-spec"),
        ):
            error = self.fails("create", "one", specs=specs)
            self.assertEqual(error.code, code, error.message)
            self.assertFalse(self.prefix("one").exists())
            self.assertEqual(self.registered(), [])

    def test_dry_run(self: Any) -> None:
        self.done("create", "one", specs=[BASE], dry_run=True)
        self.assertFalse(self.prefix("one").exists())

    def test_cancelled_creation(self: Any) -> None:
        self.environ["RATTLER_CACHE_DIR"] = str(self.top / "cache")
        worker = self.start("create", "one", specs=["python", MANY])
        worker.step("linking")
        last = worker.kill(signal.SIGTERM)
        assert isinstance(last, Failed), last
        self.assertEqual(last.code, "cancelled")
        self.assertFalse(self.prefix("one").exists())
        self.assertEqual((self.registered(), self.pending()), ([], []))

    def test_killed_change(self: Any) -> None:
        self.done("create", "one", specs=[f"{BASE} <2", f"{MANY} 1.0"])
        packages, files = self.packages("one"), self.files("one")
        worker = self.start("add", "one", specs=[f"{BASE} >=2", f"{MANY} >=2"])
        worker.step("linking")
        worker.kill()
        self.done("repair")
        self.assertEqual(self.packages("one"), packages)
        self.assertEqual(self.files("one"), files)
        self.assertEqual(self.pending(), [])


class Rattler(Contract, WorkerCase):
    """The default."""


class StandIn(Contract, WorkerCase):
    """What takes conda's arguments and gives conda's answers."""

    def setUp(self) -> None:
        super().setUp()
        program = self.top / "conda"
        script = Path(__file__).with_name("conda_stand_in.py")
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
        program.chmod(0o755)
        self.backend = {"backend": "conda", "executable": str(program)}

    def test_an_executable_that_is_not_there(self) -> None:
        error = self.fails("create", "one", executable="/nowhere/conda")
        self.assertEqual(error.code, "backend-missing")


class Pixi(WorkerCase):
    """What pixi is called with; pixi itself cannot be had here."""

    def test_workspaces_alone(self) -> None:
        program, heard = self.top / "pixi", self.top / "heard"
        program.write_text(f'#!/bin/sh\necho "$@" >> {heard}\n')
        program.chmod(0o755)
        workspace = self.top / "project"
        prefix = str(workspace / ".pixi" / "envs" / "default")
        self.done("create", prefix=prefix, specs=[BASE])
        backend = {"backend": "pixi", "executable": str(program)}
        self.done("add", prefix=prefix, specs=["six >=1"], pip=["rich"], **backend)
        self.done("remove_packages", prefix=prefix, specs=["six"], **backend)
        manifest = f"--manifest-path {workspace}"
        said = [f"add {manifest} six >=1", f"add {manifest} --pypi rich", f"remove {manifest} six"]
        self.assertEqual(heard.read_text().splitlines(), said)
        for operation in ("update", "remove"):
            self.assertEqual(self.fails(operation, prefix=prefix, **backend).code, "pixi-workspace")
        self.done("create", "one", specs=[BASE])
        self.assertEqual(self.fails("add", "one", specs=["six"], **backend).code, "backend-failed")


class Conda(Contract, WorkerCase):
    """conda itself."""

    def setUp(self) -> None:
        super().setUp()
        executable = os.environ.get("SKSD_TEST_CONDA", "")
        if not executable:
            self.skipTest("SKSD_TEST_CONDA names no conda")
        self.backend = {"backend": "conda", "executable": executable}
