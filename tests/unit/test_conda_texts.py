"""History, lists, files and plans: text in, text out."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from sksd.conda import backends, export, files, history, pip, registry
from sksd.conda.condarc import Condarc
from sksd.conda.messages import Action, Kernel, Progress, read_event
from sksd.conda.out import Out, failed
from sksd.conda.plan import actions
from sksd.conda.records import Record, dependents, needed
from sksd.errors import BadFile, ChannelRefused, from_code

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
SPECS = st.builds("{}{}".format, NAMES, st.sampled_from(["", " >=1,<2", "=1.2", "==1.0", "[version='>=1']", " 1.*"]))
DISTS = st.builds("conda-forge/noarch::{}-1-0".format, NAMES)

CONDA = """==> 2024-01-01 10:00:00 <==
# cmd: /opt/conda/bin/conda create -n x python=3.11 numpy
# conda version: 24.1.0
+conda-forge/linux-64::python-3.11.0-h1_0
+conda-forge/linux-64::numpy-1.26.0-py_0
+conda-forge/noarch::six-1.16-py_0
# update specs: ['python=3.11', "numpy[version='>=1,<2']", 'six']
==> 2024-01-02 10:00:00 <==
# cmd: /opt/conda/bin/conda remove -n x six
-conda-forge/noarch::six-1.16-py_0
# remove specs: ['six']
==> 2024-01-03 10:00:00 <==
# cmd: conda update --all
# neutered specs: ['numpy']
"""


class History(unittest.SynchronousTestCase):
    """conda-meta/history."""

    def test_conda_s_own(self) -> None:
        self.assertEqual(history.requested(CONDA), {"python": "python=3.11", "numpy": "numpy"})
        self.assertEqual(len(history.installed(CONDA)), 2)
        old = "==> d <==\n# cmd: conda install a\n# install specs: python >=3,<4,six\n"
        self.assertEqual(history.requested(old), {"python": "python >=3,<4", "six": "six"})
        self.assertEqual(history.installed("==> d <==\na-1-0\nb-1-0\n==> e <==\n-a-1-0\n"), {"b-1-0"})
        self.assertEqual(history.requested("==> d <==\n# cmd: x\n# update specs: [broken\n"), {})

    @given(st.lists(st.tuples(st.sets(DISTS, max_size=4), st.lists(SPECS, max_size=4), st.lists(NAMES, max_size=2))))
    def test_what_is_written_is_read(self, changes: list[tuple[set[str], list[str], list[str]]]) -> None:
        text, asked, there = "", {}, set[str]()
        for after, update, remove in changes:
            text += history.block(0.0, "sksd env", there, after, update, remove)
            there = after
            for name in remove:
                asked.pop(name, None)
            for spec in update:
                asked[history.name_of(spec)] = spec
            self.assertEqual(history.installed(text), there)
        self.assertEqual(history.requested(text), asked)

    def test_names_in_specs(self) -> None:
        for spec in ("numpy", " numpy >=1", "numpy=1", "numpy[version='1']", "conda-forge::NumPy", "numpy>=1,<2"):
            self.assertEqual(history.name_of(spec), "numpy")
        for spec in ("", "==1", ">1", "-x"):
            self.assertEqual(history.name_of(spec), "")


class Registry(unittest.SynchronousTestCase):
    """environments.txt."""

    def test_other_lines_stay(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "deep", "environments.txt")
            registry.register(file, "/a")
            file.write_text("/gone\n# mine\n/a")
            registry.register(file, "/a")
            registry.register(file, "/b")
            self.assertEqual(file.read_text(), "/gone\n# mine\n/a\n/b\n")
            registry.unregister(file, "/a")
            self.assertEqual(file.read_text(), "/gone\n# mine\n/b\n")


class Files(unittest.SynchronousTestCase):
    """Descriptions of environments."""

    def test_environment_yml(self) -> None:
        text = "name: x\nchannels: [a]\ndependencies: [python=3.11, {pip: [six, '-i https://p/simple']}]\n"
        found = files.environment_yml(text)
        self.assertEqual((found.name, found.channels, found.specs), ("x", ("a",), ("python=3.11",)))
        self.assertEqual(found.pip, ("six", "-i https://p/simple"))
        for wrong in ("- a", "dependencies: x", "dependencies: [1]", "dependencies: [{npm: [x]}]", "a: b: c"):
            self.assertRaises(BadFile, files.environment_yml, wrong)

    def test_requirements(self) -> None:
        found = files.requirements_txt("# mine\nsix \\\n  >=1\nrich[jupyter] ; python_version > '3'  # why\n")
        self.assertEqual(found.pip, ("six    >=1", "rich[jupyter] ; python_version > '3'"))
        for wrong in ("-r other.txt", "-e .", "-c x", "--constraint=x", "", "--config-settings x"):
            self.assertRaises(BadFile, files.requirements_txt, wrong)

    @given(st.lists(st.builds(lambda n, v: Record(name=n, version=v, build="0"), NAMES, NAMES), max_size=5))
    def test_exports_are_read_back(self, installed: list[Record]) -> None:
        for each in installed:
            each.url, each.md5 = f"https://h/t/TOKEN/c/noarch/{each.stem}.conda", "0" * 32
        text = export.environment_yml("größe", ["https://h/t/TOKEN/c"], installed, {"six": "1.0"}, {"A": "1"})
        found = files.environment_yml(text)
        self.assertEqual(found.specs, tuple(f"{each.name}={each.version}=0" for each in installed))
        self.assertEqual((found.pip, found.variables), (("six==1.0",), {"A": "1"}))
        self.assertNotIn("TOKEN", text)
        if installed:
            text = export.explicit("linux-64", installed)
            self.assertNotIn("TOKEN", text)
            self.assertEqual([each.md5 for each in files.explicit(text).urls], ["0" * 32] * len(installed))


class Graphs(unittest.SynchronousTestCase):
    """What needs what."""

    def test_needed_and_dependents(self) -> None:
        depends = {"app": ["lib >=1"], "lib": ["base", "__glibc >=2"], "base": [], "other": []}
        installed = {name: Record(name=name, version="1", depends=each) for name, each in depends.items()}
        self.assertEqual(needed(installed, ["app"]), {"app", "lib", "base"})
        self.assertEqual(dependents(installed, ["base"]), {"base", "lib", "app"})

    def test_plan(self) -> None:
        def some(**versions: str) -> dict[str, Action]:
            return {name: Action(action="install", name=name, version=each) for name, each in versions.items()}

        found = actions(some(a="1", b="2", c="1", e="1"), some(a="2", b="1", d="1", e="1"), lambda x, y: x > y)
        self.assertEqual(
            [(each.action, each.name, each.old_version) for each in found],
            [("upgrade", "a", "1"), ("downgrade", "b", "2"), ("remove", "c", ""), ("install", "d", "")],
        )

    def test_what_a_new_environment_gets(self) -> None:
        from sksd.conda.making import wanted

        kernel = Kernel(spec="spyder-kernels >=3.1,<3.2")
        self.assertEqual(wanted(["six"], [], ["six", "ruff"], kernel), ["six", "ruff", kernel.spec])
        self.assertEqual(wanted(["spyder-kernels 3.0.*"], [], [], kernel), ["spyder-kernels 3.0.*"])
        self.assertEqual(wanted([], ["six"], [], None), ["python", "pip"])
        self.assertEqual(wanted(["python 3.11.*"], ["six"], [], None), ["python 3.11.*", "pip"])


class Words(unittest.SynchronousTestCase):
    """What other programs say, and what is told of it."""

    def test_pip(self) -> None:
        self.assertEqual(pip.sentence("Collecting six>=1 (from -r /tmp/x (line 1))"), "pip: Collecting six>=1.")
        self.assertEqual(pip.sentence("Requirement already satisfied"), "")
        self.assertEqual(pip.problem(["a", "ERROR: no", "ERROR: no"], 1), "no")
        base = {"PATH": "/bin", "PYTHONPATH": "/x"}
        environ = pip.environ("/e", Condarc(ssl_verify="/ca"), True, base)
        self.assertEqual((environ["PATH"], environ["PIP_CERT"], environ["PIP_NO_INDEX"]), ("/e/bin:/bin", "/ca", "1"))
        self.assertNotIn("PYTHONPATH", environ)

    def test_conda(self) -> None:
        output = '{"fetch": "six-1", "finished": false, "maxval": 1, "progress": 0.5}\n\0{\n "success": true\n}\n'
        self.assertEqual(backends.answer_of(output), {"success": True})
        self.assertEqual(backends.answer_of("Traceback {"), {})
        self.assertEqual(backends.progress_of(output.splitlines()[0]), ("Downloading six-1.", 50, 100))
        self.assertIsNone(backends.progress_of(' "progress": x, "fetch"'))

    def test_events(self) -> None:
        read, write = os.pipe()
        now = [0.0]
        out = Out(write, lambda: now[0])
        for number in range(100):
            out.progress("linking", "https://h/t/TOKEN/x", number, 100)
            now[0] += 0.01
        out.progress("linking", "last", 100, 100)
        os.close(write)
        with open(read, "rb") as lines:
            events = [read_event(line) for line in lines]
        self.assertLessEqual(len(events), 12)
        last = events[-1]
        assert isinstance(last, Progress)
        self.assertEqual(last.done, 100)
        self.assertNotIn("TOKEN", repr(events))

    def test_errors_cross_with_what_was_undone(self) -> None:
        error = ChannelRefused(url="https://h/t/TOKEN/x", problem="403", undone="It is as it was before.")
        event = failed(error)
        self.assertNotIn("TOKEN", repr(event))
        again = from_code(event.code, event.message, event.fields)
        self.assertIsInstance(again, ChannelRefused)
        self.assertTrue(str(again).endswith("for it. It is as it was before."))
