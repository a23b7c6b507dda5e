"""Reading one environment from its files, never starting its Python.

Conda: `conda-meta/<name>-<version>-<build>.json` (CEP 34 describes the names of packages, the conda
documentation the folder); venvs: `pyvenv.cfg` (PEP 405); what pip installed: `<name>-<version>.dist-info`
(PEP 376, the "Recording installed projects" page of packaging.python.org).
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

CONDA: Final = "conda"
VENV: Final = "venv"
PIXI: Final = "pixi"
PYTHON: Final = "python"

#: File systems stamp changes with up to 2 s granularity (FAT, old NFS): what is younger may change unseen.
RACY_SECONDS: Final = 2.0
#: So many prefixes are remembered; people have tens.
CACHE_LIMIT: Final = 4096

#: Bytes of conda-meta/frozen that are read.
_LARGEST_NOTE: Final = 65536

#: In this order: in a conda environment and a venv `python` is the one; a system may have python3 only.
_USUAL: Final = ("python", "python3")
_INTERPRETER = re.compile(r"^(?:python|pypy)[0-9.]*t?$")
_MINOR = re.compile(r"^python(3\.[0-9]+t?)$")


@dataclass(frozen=True, slots=True)
class Prefix:
    """What one environment's files say.

    `path` is absolute. `kind`: conda, venv, pixi or python. `python` is the absolute path of its interpreter
    and `version` that one's version as `3.11.7` (`3.11` where no more is known); both None when there is
    none. `packages`: normalised names to versions; `builds`: of those that conda installed, their builds.
    `folders`: where pip and Python look for packages, the first first. `frozen`: what conda-meta/frozen says to
    whoever wants to change it (CEP 22), empty where it says nothing; None when it may be changed. `problem`: why
    it is broken, as the end of a sentence; None when it is not. `base`: the environment that conda itself lives in.
    """

    path: str
    kind: str
    python: str | None = None
    version: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    builds: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    frozen: str | None = None
    problem: str | None = None
    base: bool = False


class PrefixReader:
    """Reads prefixes and remembers what it read until the folders it read change. A proxy keeps one."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str | None, bool], tuple[tuple[object, ...], list[str], Prefix]] = {}

    def read(self, path: str, python: str | None = None, *, interpreter: bool = False) -> Prefix | None:
        """The environment at `path`, or None when there is none; called for every candidate of a listing.

        `python`: the interpreter to take instead of the prefix's usual one (/usr has several). With
        `interpreter` a plain interpreter's prefix counts too. Never raises: what cannot be read becomes
        `Prefix.problem`.
        """
        key = (path, python, interpreter)
        known = self._known.get(key)
        if known is not None and _signature(known[1])[0] == known[0]:
            return known[2]
        now = self._clock()
        reading = _Reading(path, python)
        prefix = reading.run(interpreter)
        if prefix is None:
            self._known.pop(key, None)
            return None
        signature, newest = _signature(reading.watched)
        # Against the time before reading: what changed in between has a younger stamp.
        if newest < now - RACY_SECONDS:
            if len(self._known) >= CACHE_LIMIT:
                self._known.clear()
            self._known[key] = (signature, reading.watched, prefix)
        else:
            self._known.pop(key, None)
        return prefix


def is_environment(path: str) -> bool:
    """Whether `path` is a conda environment or a venv, at first sight; called for the configured folders."""
    return _conda_files(path)[0] is not None or os.path.lexists(os.path.join(path, "pyvenv.cfg"))


def has_interpreter(path: str) -> bool:
    """Whether there is a bin/python in `path`; called for the configured folders."""
    return any(os.path.lexists(os.path.join(path, "bin", name)) for name in _USUAL)


def is_interpreter_name(path: str) -> bool:
    """Whether a file of this name can be a Python, as `/x/bin/python3.11`."""
    return _INTERPRETER.match(os.path.basename(path)) is not None


def normalised(name: str) -> str:
    """A package's name as PEP 503 normalises it: `spyder_kernels` becomes `spyder-kernels`."""
    # Not with re: this runs for every package of every environment.
    name = name.lower().replace("_", "-").replace(".", "-")
    while "--" in name:
        name = name.replace("--", "-")
    return name


# Remembered: environments have many packages in common.
@lru_cache(maxsize=8192)
def from_conda_meta(file: str) -> tuple[str, str, str] | None:
    """Normalised name, version and build from a file name of conda-meta; None where it is not a package's."""
    if not file.endswith(".json"):
        return None
    parts = file[:-5].rsplit("-", 2)
    if len(parts) != 3 or not all(parts):
        return None
    return normalised(parts[0]), parts[1], parts[2]


@lru_cache(maxsize=8192)
def from_site_packages(entry: str) -> tuple[str, str] | None:
    """Normalised name and version from the name of a .dist-info (or an older .egg-info); None where it is
    neither.

    What pip left half removed begins with `~` and does not count.
    """
    if entry.endswith(".dist-info"):
        stem = entry[:-10]
    elif entry.endswith(".egg-info"):
        stem = re.sub(r"-py3(\.[0-9]+)?(-[^-]+)?$", "", entry[:-9])
    else:
        return None
    name, dash, version = stem.rpartition("-")
    if not dash or not name or not version or name.startswith("~"):
        return None
    return normalised(name), version


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino


def _signature(places: list[str]) -> tuple[tuple[object, ...], float]:
    """What has to stay the same, and the newest change in seconds since the epoch."""
    stamps = tuple(_stamp(place) for place in places)
    return stamps, max((stamp[0] / 1e9 for stamp in stamps if stamp is not None), default=0.0)


def _conda_files(path: str) -> tuple[list[str] | None, str | None]:
    """The entries of conda-meta (None: not a conda environment), or why they cannot be read."""
    try:
        # Names are all that is needed: listdir is quicker than scandir.
        files = os.listdir(os.path.join(path, "conda-meta"))
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except OSError as error:
        return [], f"{path}/conda-meta cannot be read ({error.strerror})"
    if "history" in files or any(file.endswith(".json") for file in files):
        return files, None
    return None, None


class _Reading:
    """One pass over a prefix; `watched` are the places whose change makes it stale."""

    def __init__(self, path: str, python: str | None) -> None:
        self.path = path
        self.wanted = python
        self.watched = [path, *(os.path.join(path, name) for name in ("conda-meta", "pyvenv.cfg", "bin"))]
        self.problem: str | None = None

    def run(self, interpreter: bool) -> Prefix | None:
        files, problem = _conda_files(self.path)
        self._found(problem)
        if files is not None:
            kind = PIXI if "pixi" in files or _below_pixi(self.path) else CONDA
        elif os.path.lexists(os.path.join(self.path, "pyvenv.cfg")):
            kind = VENV
        elif interpreter and os.path.isdir(self.path):
            kind = PYTHON
        else:
            return None
        records = list(filter(None, map(from_conda_meta, files or ())))
        conda = {name: package_version for name, package_version, _ in records}
        frozen = self._frozen() if files and "frozen" in files else None
        settings = self._venv_settings() if kind == VENV else {}
        python = self._interpreter()
        version = conda.get("python") or settings.get("version") or settings.get("version_info")
        if version and kind == VENV:
            version = ".".join(version.split(".")[:3])
        minor = self._minor(python, version)
        packages: dict[str, str] = {}
        folders: list[str] = []
        if python is not None and minor is None:
            self._found(f"it has {python} but no lib/python3.X")
        elif python is not None and minor is not None:
            if kind == PYTHON and not os.path.isdir(os.path.join(self.path, "lib", f"python{minor}")):
                self._found(f"it has {python} but no lib/python{minor}")
            folders = list(_site_packages(self.path, minor, kind == PYTHON))
            if settings.get("include-system-site-packages", "").lower() == "true" and settings.get("home"):
                folders += _site_packages(os.path.dirname(settings["home"]), minor, True)
            for folder in folders:
                # The first folder on Python's path wins.
                packages = self._installed(folder) | packages
        return Prefix(
            path=self.path,
            kind=kind,
            python=python,
            version=(version or minor) if python is not None else None,
            packages=conda | packages,
            builds={name: build for name, _, build in records},
            folders=tuple(folders),
            frozen=frozen,
            problem=self.problem,
            base=kind == CONDA and self._is_base(),
        )

    def _found(self, problem: str | None) -> None:
        self.problem = self.problem or problem

    def _frozen(self) -> str:
        path = os.path.join(self.path, "conda-meta", "frozen")
        # Written again in its place, the folder around it does not change.
        self.watched.append(path)
        try:
            # Not to be held up by a FIFO in its place.
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                said = json.loads(file.read(_LARGEST_NOTE))
        except (OSError, ValueError):
            return ""
        message = said.get("message") if isinstance(said, dict) else None
        return message if isinstance(message, str) else ""

    def _is_base(self) -> bool:
        # condabin alone is in every environment that has the package conda in it.
        return all(os.path.isdir(os.path.join(self.path, name)) for name in ("condabin", "pkgs"))

    def _venv_settings(self) -> dict[str, str]:
        try:
            with open(os.path.join(self.path, "pyvenv.cfg"), encoding="utf-8", errors="replace") as file:
                lines = [line.partition("=") for line in file]
        except OSError as error:
            self._found(f"{self.path}/pyvenv.cfg cannot be read ({error.strerror})")
            return {}
        return {key.strip().lower(): value.strip() for key, equals, value in lines if equals}

    def _interpreter(self) -> str | None:
        """The interpreter's path; a broken one is a problem, none at all is not."""
        broken: str | None = None
        folder = os.path.join(self.path, "bin")
        usual = [os.path.join(folder, name) for name in _USUAL]
        for python in [self.wanted] if self.wanted else usual:
            self.watched.append(python)
            try:
                about = os.stat(python)
            except FileNotFoundError:
                if os.path.islink(python):
                    broken = broken or f"{python} points to {os.readlink(python)}, which is not there"
                continue
            except OSError as error:
                broken = broken or f"{python} cannot be used ({error.strerror})"
                continue
            if stat.S_ISREG(about.st_mode) and os.access(python, os.X_OK):
                return python
            broken = broken or f"{python} cannot be executed"
        self._found(broken)
        return None

    def _minor(self, python: str | None, version: str | None) -> str | None:
        """The `3.11` of lib/python3.11: as the version says, the interpreter's name, or the newest there."""
        library = os.path.join(self.path, "lib")
        candidates = [".".join(version.split(".")[:2])] if version else []
        if python is not None:
            match = _MINOR.match(os.path.basename(os.path.realpath(python)))
            candidates += [match.group(1)] if match else []
        for minor in candidates:
            if os.path.isdir(os.path.join(library, f"python{minor}")):
                return minor
        self.watched.append(library)
        try:
            found = [match.group(1) for match in map(_MINOR.match, os.listdir(library)) if match]
        except OSError:
            found = []
        if found:
            return max(found, key=lambda minor: int(minor[2:].rstrip("t")))
        return candidates[0] if candidates and python is not None and self.wanted is None else None

    def _installed(self, folder: str) -> dict[str, str]:
        self.watched.append(folder)
        try:
            entries = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            self._found(f"{folder} cannot be read ({error.strerror})")
            return {}
        return dict(filter(None, map(from_site_packages, sorted(entries))))


def _below_pixi(path: str) -> bool:
    return path.split(os.sep)[-3:-1] == [".pixi", "envs"]


def _site_packages(prefix: str, minor: str, system: bool) -> Iterator[str]:
    """Where pip and the system put packages of Python `minor` below `prefix`, in Python's order."""
    if system:
        # Debian: what pip installs as root goes below /usr/local.
        yield os.path.join(prefix, "local", "lib", f"python{minor}", "dist-packages")
    yield os.path.join(prefix, "lib", f"python{minor}", "site-packages")
    if system:
        yield os.path.join(prefix, "lib64", f"python{minor}", "site-packages")
        yield os.path.join(prefix, "lib", "python3", "dist-packages")
