"""Each operation of the worker, on the real offline channel."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import time

from sksd.conda import history
from sksd.conda.messages import Done, Failed
from tests.system.worker import WorkerCase

BASE, APP, MANY = "sksd-test-base", "sksd-test-app", "sksd-test-many"
KERNEL = {"spec": "spyder-kernels >=3.1.0,<3.2.0", "bounds": ["ipython <9.18"]}


class Making(WorkerCase):
    """Environments come and go."""

    def test_create(self) -> None:
        worker = self.done("create", "one", specs=[f"{BASE} <2"])
        done = worker.events[-1]
        self.assertEqual(done, Done(prefix=str(self.prefix("one")), name="one", changed=True))
        self.assertEqual(worker.actions, {BASE: "install"})
        self.assertLess({"reading", "solving", "linking", "registering"}, set(worker.steps))
        self.assertEqual(self.packages("one"), {BASE: "1.5"})
        self.assertEqual(self.registered(), [str(self.prefix("one"))])
        text = (self.prefix("one") / "conda-meta" / "history").read_text()
        self.assertEqual(history.requested(text), {BASE: f"{BASE} <2"})
        self.assertEqual(history.installed(text), {f"{self.url}/noarch::{BASE}-1.5-0"})
        document = json.loads((self.prefix("one") / "conda-meta" / f"{BASE}-1.5-0.json").read_text())
        self.assertEqual(document["requested_spec"], f"{BASE} <2")
        self.assertEqual(self.pending(), [])

    def test_create_with_a_kernel_that_works(self) -> None:
        self.done("create", "k", specs=["python"], kernel=KERNEL)
        python = self.prefix("k") / "bin" / "python"
        subprocess.run([python, "-P", "-c", "import spyder_kernels.console.kernel, pip"], check=True, timeout=90)
        self.assertIn("pip", self.packages("k"))

    def test_a_dry_run_changes_nothing(self) -> None:
        worker = self.done("create", "one", specs=[APP], dry_run=True)
        self.assertEqual(worker.actions, {APP: "install", BASE: "install"})
        self.assertFalse(self.prefix("one").exists())
        self.assertEqual(self.registered(), [])

    def test_the_first_folder_that_can_be_written(self) -> None:
        self.condarc(channels=[self.url], envs_dirs=["/dev/null/envs", str(self.top / "envs")])
        self.done("create", "one")
        self.assertEqual(self.registered(), [str(self.top / "envs" / "one")])

    def test_the_administrators_settings_win(self) -> None:
        self.condarc(channels=["file:///nowhere"], envs_dirs=["/dev/null/envs"])
        host = {"channels": [self.url], "envs_dirs": [str(self.top / "envs")]}
        self.done("create", "one", specs=[BASE], host=host)
        self.assertTrue((self.top / "envs" / "one" / "conda-meta" / "history").exists())

    def test_names_and_places_that_are_refused(self) -> None:
        for name in ("a b", "a/b", "-x", "base", "", "a:b", "../x", "/tmp/../x"):
            self.assertEqual(self.fails("create", name).code, "bad-name", name)
        folder = self.top / "full"
        folder.mkdir()
        (folder / "thesis.tex").write_text("x")
        self.assertEqual(self.fails("create", prefix=str(folder)).code, "environment-exists")
        self.assertTrue((folder / "thesis.tex").exists())
        self.assertEqual(self.fails("remove", prefix=str(folder)).code, "not-an-environment")
        self.assertEqual(self.fails("add", "nowhere", specs=[BASE]).code, "no-such-environment")
        self.assertEqual(self.fails("create", prefix="/dev/null/x").code, "cannot-write")

    def test_clone_takes_everything_along(self) -> None:
        self.wheel("sksdpip", "1.0")
        self.done("create", "one", specs=["python", f"{BASE} <2"], pip=["sksdpip"])
        note = self.prefix("one") / "share" / "note.txt"
        note.parent.mkdir(exist_ok=True)
        note.write_text(f"see {self.prefix('one')}/bin")
        self.done("clone", "two", source="one")
        self.assertEqual(self.packages("two"), self.packages("one"))
        self.assertEqual((self.prefix("two") / "share" / "note.txt").read_text(), f"see {self.prefix('two')}/bin")
        code = "import sksdpip; print(sksdpip.__file__)"
        said = subprocess.run([self.prefix("two") / "bin" / "python", "-c", code], capture_output=True, timeout=60)
        self.assertIn(str(self.prefix("two")), said.stdout.decode())
        self.assertEqual(len(self.registered()), 2)
        text = (self.prefix("two") / "conda-meta" / "history").read_text()
        self.assertEqual(history.requested(text)[BASE], f"{BASE} <2")

    def test_rename_and_remove(self) -> None:
        self.done("create", "one", specs=[BASE])
        self.done("rename", "two", source="one")
        self.assertFalse(self.prefix("one").exists())
        self.assertEqual(self.registered(), [str(self.prefix("two"))])
        self.assertEqual(self.packages("two"), {BASE: "2.0"})
        self.done("remove", "two")
        self.assertFalse(self.prefix("two").exists())
        self.assertEqual((self.registered(), self.pending()), ([], []))

    def test_other_lines_of_conda_s_list_stay(self) -> None:
        (self.home / ".conda").mkdir()
        (self.home / ".conda" / "environments.txt").write_text("/opt/theirs\n/gone/away")
        self.done("create", "one")
        self.done("remove", "one")
        self.assertEqual(self.registered(), ["/opt/theirs", "/gone/away"])


class Changing(WorkerCase):
    """Packages come and go."""

    def test_add_keeps_the_rest(self) -> None:
        self.done("create", "one", specs=[f"{BASE} 1.0"])
        worker = self.done("add", "one", specs=[MANY])
        self.assertEqual(worker.actions, {MANY: "install"})
        self.assertEqual(self.packages("one"), {BASE: "1.0", MANY: "2.0"})

    def test_update_and_downgrade(self) -> None:
        self.done("create", "one", specs=[f"{BASE} 1.0", f"{MANY} 1.0"])
        self.assertEqual(self.done("add", "one", specs=[f"{BASE} <2"]).actions, {})
        self.assertEqual(self.done("update", "one").actions, {BASE: "upgrade"})
        self.assertEqual(self.packages("one"), {BASE: "1.5", MANY: "1.0"})
        self.assertEqual(self.done("update", "one", specs=[f"{MANY} >=1"]).actions, {MANY: "upgrade"})
        self.assertEqual(self.done("add", "one", specs=[f"{BASE} 1.0"]).actions, {BASE: "downgrade"})

    def test_what_a_person_asked_for_is_kept(self) -> None:
        self.done("create", "one", specs=[APP, BASE])
        self.done("remove_packages", "one", specs=[APP])
        self.assertEqual(self.packages("one"), {BASE: "2.0"})
        self.done("create", "two", specs=[APP, MANY])
        worker = self.done("remove_packages", "two", specs=[APP])
        self.assertEqual(worker.actions, {APP: "remove", BASE: "remove"})
        text = (self.prefix("two") / "conda-meta" / "history").read_text()
        self.assertEqual(history.requested(text), {MANY: MANY})
        self.assertIn(f"# remove specs: ['{APP}']", text)
        self.assertEqual(self.fails("remove_packages", "two", specs=["nosuch"]).code, "package-missing")

    def test_what_depends_on_it_goes_too(self) -> None:
        self.done("create", "one", specs=[APP, MANY])
        self.assertEqual(
            self.done("remove_packages", "one", specs=[BASE]).actions, {APP: "remove", BASE: "remove"}
        )

    def test_pins_hold(self) -> None:
        self.done("create", "one", specs=[f"{BASE} 1.0"])
        (self.prefix("one") / "conda-meta" / "pinned").write_text(f"{BASE} <1.5  # because\n")
        self.assertEqual(self.fails("add", "one", specs=[f"{BASE} >=2"]).code, "unsolvable")
        self.assertEqual(self.packages("one"), {BASE: "1.0"})

    def test_pip(self) -> None:
        self.wheel("sksdpip", "1.0")
        self.done("create", "one", specs=["python"], pip=["sksdpip==1.0"])
        self.wheel("sksdpip", "2.0")
        self.done("update", "one", pip=["sksdpip"])
        self.assertEqual(self.packages("one")["sksdpip"], "2.0")
        error = self.fails("add", "one", specs=[MANY], pip=["sksdnowhere"])
        self.assertEqual(error.code, "pip-failed")
        self.assertIn("It is as it was before.", error.message)
        self.assertNotIn(MANY, self.packages("one"))
        self.done("remove_packages", "one", specs=["sksdpip"])
        self.assertNotIn("sksdpip", self.packages("one"))
        self.done("create", "bare", specs=[BASE])
        self.assertEqual(self.fails("add", "bare", pip=["sksdpip"]).code, "no-pip")

    def test_an_update_of_everything_takes_nothing_away(self) -> None:
        """As the pip that came with Python, which nobody asked for."""
        self.done("create", "one", specs=["python"])
        before = self.packages("one")
        self.done("update", "one")
        self.assertEqual(self.packages("one"), before)

    def test_frozen(self) -> None:
        self.done("create", "one", specs=[BASE])
        (self.prefix("one") / "conda-meta" / "frozen").write_text(json.dumps({"message": "It is the host's own."}))
        for operation, more in (("add", {"specs": [MANY]}), ("update", {}), ("remove", {})):
            error = self.fails(operation, "one", **more)
            self.assertEqual(error.code, "environment-frozen")
            self.assertIn("It is the host's own.", error.message)

    def test_pixi_s_are_pixi_s(self) -> None:
        prefix = str(self.top / "project" / ".pixi" / "envs" / "default")
        self.done("create", prefix=prefix, specs=[BASE])
        error = self.fails("add", prefix=prefix, specs=[MANY])
        self.assertEqual(error.code, "pixi-workspace")
        self.assertIn(f"pixi add --manifest-path {self.top}/project", error.message)

    def test_waits_for_another(self) -> None:
        self.done("create", "one", specs=[BASE])
        key = hashlib.sha256(os.fsencode(self.prefix("one"))).hexdigest()[:24]
        lock = self.home / ".local" / "state" / "sksd" / "environments" / "locks" / key
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            worker = self.start("add", "one", specs=[MANY])
            self.assertIsNotNone(worker.step("waiting"))
        self.assertIsInstance(worker.end(), Done)

    def test_cancel_while_waiting_changes_nothing(self) -> None:
        self.done("create", "one", specs=[BASE])
        key = hashlib.sha256(os.fsencode(self.prefix("one"))).hexdigest()[:24]
        with (self.home / ".local/state/sksd/environments/locks" / key).open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            worker = self.start("add", "one", specs=[MANY])
            worker.step("waiting")
            last = worker.kill(signal.SIGTERM)
        assert isinstance(last, Failed)
        self.assertEqual(last.code, "cancelled")
        self.assertIn("Nothing was changed.", last.message)


class Describing(WorkerCase):
    """Exports, read back."""

    def test_every_format_comes_back_the_same(self) -> None:
        self.wheel("sksdpip", "1.0")
        self.done("create", "one", specs=["python", f"{APP} 1.0"], pip=["sksdpip"])
        for format in ("environment.yml", "explicit", "lock"):
            done = self.done("export", "one", format=format).events[-1]
            assert isinstance(done, Done) and done.text is not None
            self.assertNotIn(str(self.prefix("one")), done.text)
            copy = f"from-{format}".replace(".", "-")
            self.done("import", copy, file={"format": format, "text": done.text})
            expected = self.packages("one")
            if format == "explicit":
                expected.pop("sksdpip")
                self.assertTrue(done.notes)
            self.assertEqual(self.packages(copy), expected, format)

    def test_environment_yml(self) -> None:
        self.condarc(channels=[])
        text = f"name: mine\nchannels: ['{self.url}', nodefaults]\ndependencies:\n- {BASE}=1.*\nvariables: {{A: b}}\n"
        self.done("import", file={"format": "environment.yml", "text": text})
        self.assertEqual(self.packages("mine"), {BASE: "1.5"})
        state = json.loads((self.prefix("mine") / "conda-meta" / "state").read_text())
        self.assertEqual(state["env_vars"], {"A": "b"})

    def test_requirements_txt(self) -> None:
        self.wheel("sksdpip", "1.0")
        file = {"format": "requirements.txt", "text": "sksdpip>=1 # mine\n"}
        self.done("import", "one", file=file, kernel=KERNEL)
        found = self.packages("one")
        self.assertLess({"python", "pip", "sksdpip", "spyder-kernels"}, set(found))

    def test_files_that_are_wrong(self) -> None:
        for format, text in (
            ("environment.yml", "a: [\n"),
            ("environment.yml", "dependencies: {a: b}"),
            ("explicit", "@EXPLICIT\nnumpy"),
            ("explicit", f"@EXPLICIT\n{self.url}/noarch/{BASE}-1.0-0.conda#{'0' * 32}"),
            ("explicit", f"@EXPLICIT\n{self.url}/noarch/{BASE}-9.0-0.conda"),
            ("lock", "nothing"),
            ("requirements.txt", "-r /etc/passwd"),
        ):
            error = self.fails("import", "one", file={"format": format, "text": text})
            self.assertEqual(error.code, "bad-file", text)
        self.assertFalse(self.prefix("one").exists())


class Failing(WorkerCase):
    """One clear sentence each, and nothing left behind."""

    def test_packages_that_cannot_be(self) -> None:
        for specs, code in (
            (["sksd-nowhere"], "no-such-package"),
            ([f"{BASE} >=9"], "no-such-package"),
            (["sksd-test-left", "sksd-test-right"], "unsolvable"),
            (["numpy =="], "bad-spec"),
            (["==1"], "bad-spec"),
        ):
            error = self.fails("create", "one", specs=specs)
            self.assertEqual(error.code, code, error.message)
            self.assertIn("Nothing was changed.", error.message)
        self.assertFalse(self.prefix("one").exists())
        self.assertEqual(self.registered(), [])

    def test_channels_that_do_not_answer(self) -> None:
        for url in ("http://127.0.0.1:9/x", "http://nowhere.invalid/t/SECRET/x", "file:///nowhere"):
            before = time.monotonic()
            error = self.fails("create", "one", specs=[BASE], channels=[url])
            self.assertEqual(error.code, "channel-unreachable", error.message)
            self.assertLess(time.monotonic() - before, 30)
            self.assertNotIn("SECRET", error.message + str(error.fields))

    def test_a_channel_that_is_not_allowed(self) -> None:
        host = {"allow_channels": [self.url]}
        self.done("create", "one", specs=[BASE], host=host)
        for more in ({"channels": ["https://example.org/x"]}, {"specs": ["https://example.org/x::numpy"]}):
            error = self.fails("create", "two", host=host, **more)
            self.assertEqual(error.code, "channel-not-allowed", error.message)

    def test_a_condarc_that_is_broken(self) -> None:
        (self.home / ".condarc").write_text("channels: [")
        error = self.fails("create", "one", specs=[BASE])
        self.assertEqual(error.code, "bad-condarc")
        self.assertIn(".condarc", error.message)

    def test_a_job_that_cannot_be_read(self) -> None:
        worker = self.run_job("dance")
        self.assertEqual(worker.process.returncode, 2)
        last = worker.events[-1]
        assert isinstance(last, Failed)
        self.assertEqual(last.code, "bad-request")

    def test_a_full_disk(self) -> None:
        small = self.top / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
        if subprocess.run(mount, capture_output=True).returncode:
            self.skipTest("needs the right to mount")
        self.addCleanup(subprocess.run, ["umount", "-l", small])
        error = self.fails("create", prefix=str(small / "env"), specs=[MANY])
        self.assertEqual(error.code, "disk-full", error.message)
        self.assertEqual(list(small.iterdir()), [])

    def test_offline(self) -> None:
        error = self.fails("create", "one", specs=[BASE], offline=True, channels=["http://127.0.0.1:9/x"])
        self.assertEqual(error.code, "not-cached")
        self.done("create", "one", specs=[BASE], offline=True)
