"""What is required, compared with what is there; conda's order of versions, held against rattler's own answers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial import unittest

from sksd.errors import BadFile, BadSpec
from sksd.proxy.condaversions import Version, parsed_version, version_test
from sksd.proxy.matchspecs import match_spec
from sksd.proxy.prefixes import CONDA, Prefix
from sksd.proxy.requirements import pip, read, unmet
from sksd.wire.messages import EnvironmentFile

VERSIONS = [
    "0",
    "1",
    "1.0",
    "1.0.0",
    "1.1",
    "1.10",
    "1.2",
    "1.0a",
    "1.0a1",
    "1.0b1",
    "1.0rc1",
    "1.0.dev1",
    "1.0dev",
    "1.0.post1",
    "1.0post1",
    "1.0_",
    "1.0_1",
    "1.0-1",
    "1!1.0",
    "1.0+3",
    "1.0+3.1",
    "2023.10",
    "3.11",
    "3.110",
    "3.11.7",
    "0.4.1.rc",
    "0.5a1",
    "1.1.1g",
    "1.1.1_",
    "1.1.1",
    "dev",
    "a",
    "1.0.0.0.1",
    "2.0.0dev0",
    "3.2.0.dev0",
]
CONDITIONS = [
    "1.0",
    "==1.0",
    "=1.0",
    "1.0.*",
    "1.0*",
    ">=1.0",
    "<1.0",
    ">1.0",
    "<=1.0",
    "!=1.0",
    "!=1.0.*",
    "~=1.0",
    "~=1.0.1",
    ">=1.0.*",
    "=1.0.*",
    ">=1.0,<2",
    "(>=1.0,<2)",
    "*",
    "=*",
    ">=*",
    "<3.2.0a0",
    ">=1.0.0rc1",
    "1.1.1g",
    ">=2.dev0",
    "!=1.0,!=1.1",
    "1.0,*",
    "1,",
    "=>1",
    "=",
    "1.*.3",
]
SPECS = [
    "numpy",
    "numpy >=1.26,<2",
    "numpy=1.26",
    "numpy==1.26.4",
    "numpy 1.26.*",
    "numpy 1.26",
    "numpy>=1.26",
    "numpy >= 1.26, < 2",
    "conda-forge::numpy",
    "conda-forge::numpy==1.26.4=py311_0",
    "numpy=1.26.4=py311_0",
    "numpy 1.26.4 py311_0",
    "numpy 1.26.* py311*",
    "numpy[version='>=1.26', build=py311*]",
    "numpy[version=1.26.4]",
    "conda-forge/linux-64::numpy",
    "numpy * py311*",
    "numpy 1.26 *",
    "numpy=1.26.*",
    "numpy!=1.26.4",
    "numpy ~=1.26.1",
    "numpy<2",
    "numpy=1.26.4=py311*",
    "numpy >=1.26 py311_0",
    "numpy=*=py311_0",
    "numpy =1.26",
    "numpy = 1.26",
    "numpy == 1.26.4",
    "NumPy",
    "numpy 1.25|1.26.4",
    "numpy >=2|1.26.*",
    "numpy 1.25.*|>=1.26.4,<2 py311_0",
    "numpy==1.26.*",
    "numpy=1.26.4[build=py311_0]",
    "numpy[foo=1]",
    ">=1",
    "numpy[version='>=1'",
    "numpy>=1.26 <2",
    "numpy ==",
    "numpy=>1",
]
INSTALLED = [
    ("1.26.4", "py311_0"),
    ("1.26", "py312h_1"),
    ("2.0", "py311_0"),
    ("1.25.9", "x"),
    ("2.0.0rc1", "py311_0"),
]

#: rattler may abort at the interpreter's exit, so it answers in a process of its own.
_ASK = """
import json, os, sys
from rattler import MatchSpec, PackageRecord, Version, VersionSpec
from rattler.package.build_string import BuildString
asked = json.load(sys.stdin)
versions = [Version(each) for each in asked["versions"]]
order = [[one < two, one == two] for one in versions for two in versions]
def conditions(text):
    try:
        spec = VersionSpec(text)
    except Exception:
        return None
    return [spec.matches(each) for each in versions]
records = [PackageRecord("numpy", each[0], BuildString(each[1]), 0, "linux-64") for each in asked["installed"]]
def specs(text):
    try:
        spec = MatchSpec(text)
    except Exception:
        return None
    return [spec.matches(each) for each in records]
answer = {"order": order, "conditions": list(map(conditions, asked["conditions"])),
          "specs": list(map(specs, asked["specs"]))}
print(json.dumps(answer), flush=True)
os._exit(0)
"""

_numbers = some.lists(some.integers(0, 30), min_size=1, max_size=4).map(
    lambda parts: ".".join(map(str, parts))
)
_versions = some.builds(
    "{}{}".format, _numbers, some.sampled_from(["", "a1", "b2", "rc1", ".dev0", ".post1", "_1", "+2"])
)


def installed(**packages: str) -> Prefix:
    """A conda environment with these, all of build py311_0."""
    names = {name.replace("_", "-"): version for name, version in packages.items()}
    return Prefix(
        path="/e", kind=CONDA, python="/e/bin/python", version="3.11.7", packages={"python": "3.11.7", **names},
        builds=dict.fromkeys(names, "py311_0"),
    )  # fmt: skip


def lacking(prefix: Prefix, *specs: str, **file: str) -> list[tuple[str, str | None]]:
    """Requirement and what was found of each that is not met; `file`: format and text."""
    description = EnvironmentFile(**file) if file else None  # type: ignore[arg-type]
    return [(each.requirement, each.found) for each in unmet(prefix, read(specs, description))]


class AsRattlerTests(unittest.TestCase):
    """Versions, conditions and specs mean what they mean to the solver."""

    @classmethod
    def answers(cls) -> dict[str, Any]:
        asked = {"versions": VERSIONS, "conditions": CONDITIONS, "specs": SPECS, "installed": INSTALLED}
        out = subprocess.run(
            [sys.executable, "-c", _ASK],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        answer: dict[str, Any] = json.loads(out)
        return answer

    def test_same(self) -> None:
        theirs = self.answers()
        mine = [Version(each) for each in VERSIONS]
        self.assertEqual([[one < two, one == two] for one in mine for two in mine], theirs["order"])
        for text, expected in zip(CONDITIONS, theirs["conditions"], strict=True):
            try:
                test = version_test(text)
            except ValueError:
                self.assertIsNone(expected, text)
            else:
                self.assertEqual([test(each) for each in mine], expected, text)
        for text, expected in zip(SPECS, theirs["specs"], strict=True):
            try:
                spec = match_spec(text)
            except ValueError:
                self.assertIsNone(expected, text)
            else:
                self.assertEqual([spec.matches(*each) for each in INSTALLED], expected, text)


class VersionTests(unittest.TestCase):
    """An order, whatever comes."""

    @given(_versions, _versions, _versions)
    def test_order(self, one: str, two: str, three: str) -> None:
        a, b, c = sorted(map(Version, (one, two, three)))
        self.assertTrue(a <= b <= c and a <= c)
        self.assertEqual(a == b, not a < b)
        if a == b:
            self.assertEqual(hash(a), hash(b))

    @given(_numbers, _numbers)
    def test_beginnings(self, one: str, two: str) -> None:
        longer, begin = one.split("."), two.split(".")
        padded = longer + ["0"] * (len(begin) - len(longer))
        self.assertEqual(Version(one).startswith(Version(two)), padded[: len(begin)] == begin)

    @given(some.text(max_size=30))
    def test_any_text(self, text: str) -> None:
        for ask in (parsed_version, version_test, match_spec):
            with contextlib.suppress(ValueError):
                ask(text)

    @given(some.text("()|,=<>!~*1.a", max_size=30))
    def test_any_condition(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            version_test(text)(Version("1"))


class CondaTests(unittest.TestCase):
    """Conda's specs."""

    def test_met(self) -> None:
        here = installed(numpy="1.26.4", scipy="1.14.0")
        self.assertEqual(
            lacking(here, "numpy >=1.26,<2", "conda-forge::scipy=1.14", "python=3.11", "__glibc>=2.17"), []
        )

    def test_unmet(self) -> None:
        found = lacking(
            installed(numpy="1.26.4"), "numpy>=2", "pandas", "numpy=1.26.4=py312*", "python>=3.12"
        )
        expected = [("numpy>=2", "1.26.4"), ("pandas", None), ("numpy=1.26.4=py312*", "1.26.4 py311_0")]
        self.assertEqual(found, [*expected, ("python>=3.12", "3.11.7")])

    def test_names(self) -> None:
        self.assertEqual(lacking(installed(ruamel_yaml="0.18"), "Ruamel.YAML"), [])

    def test_mending(self) -> None:
        mend = unmet(installed(), read(["numpy >=2"]))[0].mend
        self.assertEqual(mend, "install it: conda install -p /e 'numpy >=2'")

    def test_bad(self) -> None:
        for spec in (
            "==1",
            "numpy >=",
            "numpy 1 2 3",
            "numpy[foo=1]",
            "-x",
            "numpy ~=1",
            "numpy (>1",
            "a=1=^x$",
        ):
            with self.assertRaises(BadSpec) as caught:
                read([spec])
            self.assertIn(spec, str(caught.exception))


class PipTests(unittest.TestCase):
    """Requirements of pip's."""

    def lacking(self, text: str, **packages: str) -> list[tuple[str, str | None]]:
        return lacking(installed(**packages), format="requirements.txt", text=text)

    def test_lines(self) -> None:
        text = "# hm\n--index-url https://x\nnumpy>=1,<2  # why\nscipy==1.14.* --hash=sha256:00\nrich>= \\\n  13\n\n"
        self.assertEqual(self.lacking(text, numpy="1.26.4", scipy="1.14.0", rich="13.7"), [])
        self.assertEqual(
            self.lacking(text, numpy="2.0", scipy="1.14.0"), [("numpy>=1,<2", "2.0"), ("rich>=    13", None)]
        )

    def test_markers(self) -> None:
        text = "tomli; python_version < '3.11'\nwheel; python_version >= '3.11'\n"
        self.assertEqual(self.lacking(text), [("wheel; python_version >= '3.11'", None)])

    def test_pre_releases_that_are_there(self) -> None:
        self.assertEqual(self.lacking("numpy>=2.0rc1", numpy="2.0rc2"), [])

    def test_extras(self) -> None:
        folder = Path(self.mktemp())
        about = folder / "dask-2024.1.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(
            "Name: dask\nVersion: 2024.1\nRequires-Dist: click>=8\nRequires-Dist: numpy>=1.21; extra == 'array'\n"
        )
        here = Prefix(
            path="/e", kind=CONDA, version="3.11.7", packages={"dask": "2024.1"}, folders=(str(folder),)
        )
        ask = {"format": "requirements.txt"}
        self.assertEqual(lacking(here, text="dask", **ask), [])
        self.assertEqual(lacking(here, text="dask[array]", **ask), [("dask[array]", "2024.1 without numpy")])

    def test_bad(self) -> None:
        for line in ("-r other.txt", "-e .", "numpy>=", "./local"):
            with self.assertRaises(BadSpec):
                read([], EnvironmentFile(format="requirements.txt", text=line))

    @given(some.text(max_size=40))
    def test_any_line(self, line: str) -> None:
        with contextlib.suppress(BadSpec):
            pip(line)


class FileTests(unittest.TestCase):
    """Descriptions of whole environments."""

    def test_environment_yml(self) -> None:
        text = "name: x\nchannels: [a]\ndependencies:\n  - python=3.11\n  - numpy\n  - pip:\n    - rich>=13\n"
        self.assertEqual(
            lacking(installed(), format="environment.yml", text=text), [("numpy", None), ("rich>=13", None)]
        )

    def test_explicit(self) -> None:
        text = "# platform: linux-64\n@EXPLICIT\nhttps://x/linux-64/numpy-1.26.4-py311_0.conda#00ff\n"
        self.assertEqual(lacking(installed(numpy="1.26.4"), format="explicit", text=text), [])
        expected = [("numpy==1.26.4=py311_0", "1.25 py311_0")]
        self.assertEqual(lacking(installed(numpy="1.25"), format="explicit", text=text), expected)

    def test_locks(self) -> None:
        machine = os.uname().machine
        subdir = f"linux-{'64' if machine == 'x86_64' else machine}"
        rattler = {
            "version": 6,
            "environments": {
                "default": {
                    "packages": {
                        subdir: [{"conda": "https://x/noarch/a-1-0.conda"}, {"pypi": "https://y/b.whl"}]
                    }
                }
            },
            "packages": [{"pypi": "https://y/b.whl", "name": "b", "version": "2"}],
        }
        conda_lock = {
            "package": [
                {
                    "name": "a",
                    "version": "1",
                    "manager": "conda",
                    "platform": subdir,
                    "url": "https://x/a-1-0.conda",
                },
                {"name": "b", "version": "2", "manager": "pip", "platform": subdir},
                {
                    "name": "c",
                    "version": "3",
                    "manager": "conda",
                    "platform": "win-64",
                    "url": "https://x/c-3-0.conda",
                },
            ]
        }
        for content in (rattler, conda_lock):
            found = lacking(installed(), format="lock", text=json.dumps(content))
            self.assertEqual(found, [("a==1=0", None), ("b==2", None)])

    def test_bad(self) -> None:
        for form, text in (
            ("environment.yml", "a: ["), ("environment.yml", "- a"), ("environment.yml", "dependencies: x"),
            ("lock", "a: 1"), ("explicit", "https://x/y.whl"), ("environment.yml", "dependencies: [{conda: []}]"),
        ):  # fmt: skip
            with self.assertRaises((BadFile, BadSpec)):
                read([], EnvironmentFile(format=form, text=text))  # type: ignore[arg-type]
