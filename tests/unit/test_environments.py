"""Environments read from files made for the test: no Python of theirs is there, and none is started."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as some
from packaging.version import Version
from twisted.trial.unittest import SynchronousTestCase, TestCase

from sksd.errors import BadName, BadRequest, EnvironmentBroken, NoSuchEnvironment, NotAllowed
from sksd.proxy.environments import find_environment, list_environments
from sksd.proxy.kernels import accepted, choose_kernel
from sksd.proxy.prefixes import Prefix, PrefixReader, from_conda_meta, from_site_packages, normalised
from sksd.proxy.sources import Sources, envs_dirs_of
from sksd.wire.messages import Accept, Environment, Kernel, Unmet

SPYDER = Accept(package="spyder-kernels", low="3.1", high="3.2")


def make_python(prefix: Path, minor: str = "3.11") -> None:
    """A file that can be executed and is none, and the folder of its packages."""
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    (prefix / "bin" / f"python{minor}").write_text("#!/bin/false\n")
    (prefix / "bin" / f"python{minor}").chmod(0o755)
    for name in ("python", "python3"):
        (prefix / "bin" / name).symlink_to(f"python{minor}")
    (prefix / "lib" / f"python{minor}" / "site-packages").mkdir(parents=True)


def make_conda(prefix: Path, *packages: str, python: bool = True) -> Path:
    """A conda environment with `packages`, as `spyder-kernels-3.1.6`."""
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix / "conda-meta" / "history").write_text("")
    if python:
        make_python(prefix)
        packages = ("python-3.11.7", *packages)
    for package in packages:
        (prefix / "conda-meta" / f"{package}-py311_0.json").write_text("{}")
    return prefix


def make_venv(prefix: Path, *packages: str, settings: str = "version = 3.11.7\n") -> Path:
    """A venv with `packages`, as `spyder_kernels-3.1.6`."""
    make_python(prefix)
    (prefix / "pyvenv.cfg").write_text(f"home = /nowhere/bin\n{settings}")
    for package in packages:
        add_distribution(prefix, package)
    return prefix


def add_distribution(prefix: Path, package: str) -> None:
    (prefix / "lib" / "python3.11" / "site-packages" / f"{package}.dist-info").mkdir()


class _Case(TestCase):
    def setUp(self) -> None:
        self.top = Path(os.path.realpath(self.mktemp()))
        self.home = self.top / "home"
        self.home.mkdir(parents=True)
        self.environ: dict[str, str] = {}
        self.own = ""
        self.paths: list[str] = []
        self.exclude = ["base", "_*"]
        self.reader = PrefixReader()

    @property
    def sources(self) -> Sources:
        return Sources(
            str(self.home), self.environ, self.own, self.exclude, self.paths, root=str(self.top / "root")
        )

    def listing(self, *accepts: Accept) -> list[Environment]:
        return list_environments(self.sources, self.reader, accepts)

    def names(self) -> list[str]:
        return [environment.name for environment in self.listing()]

    def only(self, *accepts: Accept) -> Environment:
        (environment,) = self.listing(*accepts)
        return environment


class SourcesTests(_Case):
    """Where environments are found."""

    def test_nothing(self) -> None:
        self.assertEqual(self.listing(), [])

    def test_registered_and_stale(self) -> None:
        """Lines of environments.txt whose environment is gone are skipped."""
        there = make_conda(self.top / "there")
        (self.home / ".conda").mkdir()
        (self.home / ".conda" / "environments.txt").write_text(f"{self.top}/gone\n\nrelative\n{there}\n")
        self.assertEqual(self.names(), ["there"])

    def test_condarc(self) -> None:
        make_conda(self.top / "one" / "a")
        make_conda(self.home / "two" / "b")
        (self.home / ".condarc").write_text(
            f"channels:\n  - x\nenvs_dirs:\n  - {self.top}/one # c\n  - '~/two'\nz: 1\n"
        )
        self.assertEqual(self.names(), ["a", "b"])

    def test_variables(self) -> None:
        make_conda(self.top / "one" / "a")
        make_conda(self.top / "two" / "b")
        self.environ = {
            "CONDA_ENVS_PATH": f"{self.top}/one:{self.top}/none",
            "CONDA_ENVS_DIRS": f"{self.top}/two",
        }
        self.assertEqual(self.names(), ["a", "b"])

    def test_usual_places(self) -> None:
        """Bases, mamba's root, pixi, and the venvs of every tool."""
        make_conda(self.home / "miniforge3")
        make_conda(self.home / "miniforge3" / "envs" / "forge")
        make_conda(self.top / "mamba" / "envs" / "mamba")
        make_conda(self.top / "root" / "opt" / "conda" / "envs" / "system")
        make_conda(self.top / "exe" / "envs" / "exe")
        make_conda(self.home / ".pixi" / "envs" / "tool")
        make_venv(self.home / ".virtualenvs" / "wrapper")
        make_venv(self.home / ".venvs" / "dot")
        make_venv(self.home / ".local" / "share" / "virtualenvs" / "pipenv")
        make_venv(self.home / ".cache" / "pypoetry" / "virtualenvs" / "poetry")
        make_venv(self.home / ".pyenv" / "versions" / "3.11.7" / "envs" / "pyenv")
        self.environ = {"MAMBA_ROOT_PREFIX": f"{self.top}/mamba", "CONDA_EXE": f"{self.top}/exe/bin/conda"}
        self.exclude = []
        kinds = {environment.name: environment.kind for environment in self.listing()}
        self.assertEqual(
            kinds,
            dict.fromkeys(("exe", "mamba", "base", "forge", "system"), "conda")
            | {"tool": "pixi"}
            | dict.fromkeys(("wrapper", "dot", "pipenv", "poetry", "pyenv"), "venv"),
        )

    def test_configured(self) -> None:
        """An environment, a folder of environments, a glob, and a plain interpreter."""
        make_conda(self.top / "one")
        make_conda(self.top / "folder" / "two")
        make_venv(self.home / "projects" / "three" / ".venv")
        make_python(self.top / "four")
        self.paths = [
            f"{self.top}/one",
            f"{self.top}/folder",
            "~/projects/*/.venv",
            f"{self.top}/four",
            "nowhere/*",
        ]
        self.assertEqual(self.names(), ["one", "two", "three", "four"])
        self.assertEqual(self.listing()[-1].kind, "python")

    def test_own_first(self) -> None:
        make_venv(self.home / ".virtualenvs" / "a")
        self.own = str(make_venv(self.home / ".virtualenvs" / "z"))
        self.assertEqual([(item.name, item.own) for item in self.listing()], [("z", True), ("a", False)])

    def test_own_interpreter(self) -> None:
        make_python(self.top / "usr")
        self.own = str(self.top / "usr")
        environment = self.only()
        self.assertEqual((environment.kind, environment.python), ("python", "3.11"))

    def test_duplicates_fold(self) -> None:
        """One environment that several sources and a link lead to is there once, by its real path."""
        there = make_conda(self.home / ".conda" / "envs" / "there")
        (self.home / ".conda" / "environments.txt").write_text(f"{there}/\n{there}/../there\n")
        (self.home / ".virtualenvs").mkdir()
        (self.home / ".virtualenvs" / "link").symlink_to(there)
        self.assertEqual([item.prefix for item in self.listing()], [str(there)])

    def test_flow_lists(self) -> None:
        self.assertEqual(envs_dirs_of("envs_dirs: [/a, '~/b b',\n  \"/c\"]\nx: [/d]"), ["/a", "~/b b", "/c"])
        self.assertEqual(
            envs_dirs_of("# envs_dirs: [/a]\nenvs_path:\n- /b\n\n- /c\npkgs_dirs:\n- /d"), ["/b", "/c"]
        )

    @given(some.text())
    def test_any_condarc(self, text: str) -> None:
        envs_dirs_of("envs_dirs:" + text)
        envs_dirs_of(text)


class NamesTests(_Case):
    """What environments are called, and which are hidden."""

    def test_generic(self) -> None:
        for project, folder in (("a", ".venv"), ("b", "venv"), ("c", "env"), ("d", ".env")):
            make_venv(self.top / project / folder)
        self.paths = [f"{self.top}/{name}" for name in "abcd"]
        self.assertEqual(self.names(), ["a", "b", "c", "d"])

    def test_taken(self) -> None:
        make_conda(self.home / ".conda" / "envs" / "x")
        other = make_venv(self.home / ".virtualenvs" / "x")
        self.assertEqual(self.names(), ["x", str(other)])

    def test_excluded(self) -> None:
        """Patterns are for conda's kinds; a second base is one though it cannot have the name."""
        for base in ("miniforge3", "miniconda3"):
            make_conda(self.home / base)
        make_conda(self.home / "miniforge3" / "envs" / "_sksd_")
        make_venv(self.home / ".virtualenvs" / "_mine")
        self.assertEqual(self.names(), ["_mine"])
        for text in ("base", "_sksd_", f"{self.home}/miniconda3", f"{self.home}/miniforge3/bin/python"):
            with self.assertRaises(NotAllowed):
                find_environment(self.sources, self.reader, text)
        self.exclude = []
        self.assertEqual(self.names(), ["base", "_sksd_", f"{self.home}/miniconda3", "_mine"])


class ReadingTests(_Case):
    """What is read of one environment."""

    def setUp(self) -> None:
        super().setUp()
        self.conda = self.home / ".conda" / "envs" / "x"
        self.venv = self.home / ".virtualenvs" / "x"

    def test_conda(self) -> None:
        make_conda(self.conda, "spyder-kernels-3.1.6", "python-dateutil-2.9.0")
        self.assertEqual(
            self.only(SPYDER),
            Environment(name="x", prefix=str(self.conda), kind="conda", python="3.11.7", fits=True, writable=True,
                        kernel=Kernel(package="spyder-kernels", version="3.1.6")),
        )  # fmt: skip

    def test_pip_over_conda(self) -> None:
        make_conda(self.conda, "spyder-kernels-3.1.6")
        add_distribution(self.conda, "spyder_kernels-3.0.5")
        environment = self.only(SPYDER)
        self.assertEqual(environment.reason, "spyder-kernels>=3.1,<3.2 is needed, 3.0.5 is there")
        self.assertEqual(environment.kernel, Kernel(package="spyder-kernels", version="3.0.5"))

    def test_venv(self) -> None:
        make_venv(self.venv, "ipykernel-6.31.0", settings="version_info = 3.11.7.final.0\n")
        environment = self.only()
        self.assertEqual((environment.python, environment.fits), ("3.11.7", True))
        self.assertEqual(environment.kernel, Kernel(package="ipykernel", version="6.31.0"))
        self.assertEqual(self.only(SPYDER).reason, "spyder-kernels>=3.1,<3.2 is not installed")

    def test_system_site_packages(self) -> None:
        """A venv that sees its base's packages has the base's kernel, unless it has its own."""
        make_python(self.top / "usr")
        add_distribution(self.top / "usr", "spyder_kernels-3.0.0")
        debian = self.top / "usr" / "lib" / "python3" / "dist-packages"
        (debian / "ipykernel-6.17.0.egg-info").mkdir(parents=True)
        settings = f"version = 3.11.2\nhome = {self.top}/usr/bin\ninclude-system-site-packages = true\n"
        make_venv(self.venv, settings=settings)
        self.assertEqual(self.only().kernel, Kernel(package="spyder-kernels", version="3.0.0"))
        ipykernel = self.only(Accept(package="ipykernel")).kernel
        self.assertEqual(ipykernel, Kernel(package="ipykernel", version="6.17.0"))
        add_distribution(self.venv, "spyder_kernels-3.1.6")
        self.assertEqual(self.only().kernel, Kernel(package="spyder-kernels", version="3.1.6"))

    def test_no_python(self) -> None:
        make_conda(self.conda, "zlib-1.3", python=False)
        environment = self.only(SPYDER)
        self.assertEqual((environment.python, environment.fits), (None, False))
        self.assertEqual(environment.reason, "there is no Python in it")

    def test_dangling_python(self) -> None:
        make_venv(self.venv, "ipykernel-6.31.0")
        for name in ("python", "python3"):
            (self.venv / "bin" / name).unlink()
            (self.venv / "bin" / name).symlink_to("/nowhere/python3.11")
        environment = self.only()
        self.assertFalse(environment.fits)
        self.assertIsNone(environment.python)
        self.assertEqual(
            environment.reason, f"{self.venv}/bin/python points to /nowhere/python3.11, which is not there"
        )
        with self.assertRaises(EnvironmentBroken):
            find_environment(self.sources, self.reader, "x")
        with self.assertRaises(EnvironmentBroken):
            find_environment(self.sources, self.reader, f"{self.venv}/bin/python")

    def test_unreadable(self) -> None:
        """A conda-meta that is a link to itself cannot be read by anybody, root included."""
        make_python(self.conda)
        (self.conda / "conda-meta").symlink_to("conda-meta")
        environment = self.only()
        self.assertFalse(environment.fits)
        self.assertIn("conda-meta cannot be read", str(environment.reason))

    def test_broken_ones_never_raise(self) -> None:
        """Whatever is a folder where a file should be, or the other way round."""
        for number, wreck in enumerate(
            ("bin", "bin/python", "lib", "lib/python3.11", "lib/python3.11/site-packages")
        ):
            prefix = make_venv(self.home / ".virtualenvs" / f"w{number}")
            (prefix / wreck).rename(prefix / "away")
            (prefix / wreck).write_text("")
        (self.home / ".virtualenvs" / "file").write_text("")
        config = self.home / ".virtualenvs" / "config"
        make_python(config)
        (config / "pyvenv.cfg").mkdir()
        self.assertEqual([item.fits for item in self.listing()], [False] * 6)

    def test_hand_made_changes_show(self) -> None:
        """A listing remembers what it read, and sees every change made by hand at the next one."""
        make_conda(self.conda, "spyder-kernels-3.1.6")
        listing = [self.only(SPYDER)]
        for root, folders, files in os.walk(self.conda):
            for name in (".", *folders, *files):
                os.utime(os.path.join(root, name), (1, 1), follow_symlinks=False)
        listing.append(self.only(SPYDER))
        calls: list[str] = []
        real = os.listdir

        def listdir(path: str) -> list[str]:
            calls.append(path)
            return real(path)

        self.patch(os, "listdir", listdir)
        listing.append(self.only(SPYDER))
        self.assertFalse([path for path in calls if path.startswith(str(self.conda))])
        self.assertEqual(listing[1:], listing[:-1])
        add_distribution(self.conda, "spyder_kernels-3.0.5")
        self.assertFalse(self.only(SPYDER).fits)
        (self.conda / "bin" / "python3.11").unlink()
        self.assertIn("is not there", str(self.only(SPYDER).reason))

    def test_young_changes_are_not_trusted(self) -> None:
        """Two changes within one tick of the file system's clock have the same stamp."""
        make_conda(self.conda, "spyder-kernels-3.1.6")
        self.assertTrue(self.only(SPYDER).fits)
        about = os.stat(self.conda / "conda-meta")
        (self.conda / "conda-meta" / "spyder-kernels-3.1.6-py311_0.json").unlink()
        os.utime(self.conda / "conda-meta", ns=(about.st_atime_ns, about.st_mtime_ns))
        self.assertFalse(self.only(SPYDER).fits)


class FindingTests(_Case):
    """What a person may type."""

    def find(self, text: str) -> str:
        return find_environment(self.sources, self.reader, text).prefix.path

    def setUp(self) -> None:
        super().setUp()
        self.there = make_conda(self.home / ".conda" / "envs" / "there")

    def test_name_prefix_python(self) -> None:
        link = self.top / "link"
        link.symlink_to(self.there)
        paths = ("", "/", "/bin/python3", "/../there")
        for text in ("there", str(link), f"{link}/bin/python", *(f"{self.there}{rest}" for rest in paths)):
            self.assertEqual(self.find(text), str(self.there), text)

    def test_not_listed(self) -> None:
        """An environment that no source has is found by its path; the name is then the path."""
        prefix = make_venv(self.top / "x" / ".venv")
        found = find_environment(self.sources, self.reader, str(prefix))
        self.assertEqual((found.name, found.prefix.kind), (str(prefix), "venv"))

    def test_one_of_several_pythons(self) -> None:
        make_python(self.top / "usr", "3.12")
        for name in ("python", "python3"):
            (self.top / "usr" / "bin" / name).unlink()
        make_python(self.top / "usr", "3.11")
        found = find_environment(self.sources, self.reader, f"{self.top}/usr/bin/python3.12").prefix
        self.assertEqual((found.python, found.version), (f"{self.top}/usr/bin/python3.12", "3.12"))

    def test_link_to_a_python(self) -> None:
        (self.home / "bin").mkdir()
        (self.home / "bin" / "python").symlink_to(self.there / "bin" / "python")
        self.assertEqual(self.find(f"{self.home}/bin/python"), str(self.there))

    def test_bad_names(self) -> None:
        for text in ("", "  ", "a\0b", "a\nb", "a/b", "./there", "~/there", "/bin/ls"):
            with self.assertRaises(BadName, msg=repr(text)):
                self.find(text)

    def test_none(self) -> None:
        for text in (
            "ther",
            "..",
            str(self.home),
            f"{self.top}/gone",
            f"{self.home}/bin/python",
            "x" * 5000,
            "/" + "x" * 5000,
        ):
            with self.assertRaises(NoSuchEnvironment, msg=text[:99]):
                self.find(text)
        with self.assertRaises(NoSuchEnvironment) as caught:
            self.find("ther")
        self.assertEqual(caught.exception.fields["suggestion"], "there")

    def test_unspeakable(self) -> None:
        """A path that cannot cross the wire is shown with a reason, and the listing goes through."""
        for name in (b"x\xff", b"x\ny"):
            os.rename(make_conda(self.top / "moved"), os.fsencode(self.home) + b"/.conda/envs/" + name)
        _, one, two = sorted(self.listing(), key=lambda item: item.name)
        self.assertEqual([one.name, two.name], ["x\\ny", "x\\xff"])
        for environment in (one, two):
            self.assertEqual(
                (environment.fits, environment.reason), (False, "its path is not plain UTF-8: rename it")
            )
            msgspec.json.encode(environment)
        with self.assertRaises(BadName):
            self.find("\udcff")

    @given(some.text())
    def test_anything(self, text: str) -> None:
        """Whatever is typed, the answer is an environment or a sentence."""
        try:
            self.find(text)
        except (BadName, NoSuchEnvironment, NotAllowed, EnvironmentBroken) as error:
            self.assertTrue(str(error))


_numbers = some.lists(some.integers(0, 40), min_size=1, max_size=4).map(
    lambda parts: ".".join(map(str, parts))
)
_versions = some.tuples(_numbers, some.sampled_from(("", "a1", "rc2", ".post1", ".dev0", ".dev3"))).map(
    "".join
)
_package_names = some.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
_builds = some.from_regex(r"[A-Za-z0-9_.]{1,12}", fullmatch=True)


class KernelTests(SynchronousTestCase):
    """Which kernel fits, and the names that packages leave behind."""

    def prefix(self, kind: str = "conda", **packages: str) -> Prefix:
        found = {normalised(name): version for name, version in packages.items()}
        return Prefix("/p p", kind, "/p p/bin/python", "3.11.7", found)

    def test_preference(self) -> None:
        both = self.prefix(spyder_kernels="3.0.5", ipykernel="6.1")
        self.assertEqual(choose_kernel(both), Kernel(package="spyder-kernels", version="3.0.5"))
        ipykernel = Kernel(package="ipykernel", version="6.1")
        self.assertEqual(choose_kernel(both, [SPYDER, Accept(package="IPykernel")]), ipykernel)

    def test_unmet(self) -> None:
        wanted = "spyder-kernels>=3.1,<3.2"
        self.assertEqual(
            choose_kernel(self.prefix(), [SPYDER]),
            [Unmet(requirement=wanted, found=None, mend=f"install it: conda install -p '/p p' '{wanted}'")],
        )
        self.assertEqual(
            choose_kernel(self.prefix("venv", spyder_kernels="3.0"), [SPYDER]),
            [
                Unmet(
                    requirement=wanted,
                    found="3.0",
                    mend=f"change it: '/p p/bin/python' -m pip install '{wanted}'",
                )
            ],
        )

    def test_no_python(self) -> None:
        unmet = choose_kernel(Prefix("/p", "conda", packages={"spyder-kernels": "3.1.6"}), [SPYDER])
        mend = "install it: conda install -p /p python 'spyder-kernels>=3.1,<3.2'"
        self.assertEqual(unmet, [Unmet(requirement="python", found=None, mend=mend)])

    def test_range_as_in_spyder(self) -> None:
        for version in ("3.1", "3.1.6", "3.2.0rc1", "4.0.dev0"):
            self.assertTrue(accepted(version, SPYDER), version)
        for version in ("3.0.5", "3.1.0a1", "3.2", "nonsense"):
            self.assertFalse(accepted(version, SPYDER), version)
        self.assertTrue(accepted("nonsense", Accept(package="x")))

    def test_bad_range(self) -> None:
        with self.assertRaises(BadRequest):
            choose_kernel(self.prefix(), [Accept(package="ipykernel", low="one")])

    @given(_versions, some.none() | _numbers, some.none() | _numbers)
    def test_any_range(self, version: str, low: str | None, high: str | None) -> None:
        expected = "dev0" in version or (
            (low is None or Version(low) <= Version(version))
            and (high is None or Version(version) < Version(high))
        )
        self.assertEqual(accepted(version, Accept(package="x", low=low, high=high)), expected)

    @given(_package_names, _versions, _builds)
    def test_conda_meta_names(self, name: str, version: str, build: str) -> None:
        self.assertEqual(from_conda_meta(f"{name}-{version}-{build}.json"), (normalised(name), version, build))

    @given(_package_names, _versions)
    def test_dist_info_names(self, name: str, version: str) -> None:
        escaped = name.replace("-", "_")
        expected = (normalised(name), version)
        self.assertEqual(from_site_packages(f"{escaped}-{version}.dist-info"), expected)
        self.assertEqual(from_site_packages(f"{escaped}-{version}-py3.11.egg-info"), expected)
        self.assertEqual(from_site_packages(f"{escaped}-{version}.egg-info"), expected)

    @given(some.text())
    def test_any_names(self, text: str) -> None:
        for name in (text, text + ".json", text + ".dist-info", text + ".egg-info"):
            from_conda_meta(name)
            from_site_packages(name)

    def test_half_removed(self) -> None:
        self.assertIsNone(from_site_packages("~pykernel-6.1.dist-info"))
        self.assertIsNone(from_conda_meta("history"))
