"""Where environments are looked for.

The places that conda, mamba, pixi, virtualenvwrapper, pipenv, poetry and pyenv put them by default, those
that the user's `.condarc` and environment variables name (conda's "Using the .condarc configuration file"
page, settings `envs_dirs`), and those of `sksd.conf`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Final

from sksd.proxy.prefixes import has_interpreter, is_environment

_BASES_AT_HOME: Final = (
    "miniforge3",
    "mambaforge",
    "miniconda3",
    "anaconda3",
    "miniconda",
    "anaconda",
    "micromamba",
    ".local/share/mamba",
)
_BASES_OF_SYSTEM: Final = ("opt/conda", "opt/miniforge3", "opt/mambaforge", "opt/miniconda3", "opt/anaconda3")
_VENVS_AT_HOME: Final = (".venvs", ".local/share/virtualenvs", ".cache/pypoetry/virtualenvs")
#: A larger .condarc or environments.txt is none.
_LARGEST_FILE: Final = 1024 * 1024


@dataclass(frozen=True)
class Sources:
    """Whose environments, and which: made by the proxy from the user's account and the daemon's settings.

    `home`: absolute. `environ`: the user's login environment. `own`: sys.prefix of sksd. `exclude`: patterns
    as fnmatch has them, on names of conda environments. `paths`: environments, folders of such, or globs of
    either. `root`: what stands for / in tests.
    """

    home: str
    environ: Mapping[str, str] = field(default_factory=dict)
    own: str = ""
    exclude: Sequence[str] = ("base", "_*")
    paths: Sequence[str] = ()
    root: str = "/"

    def expanded(self, path: str) -> str:
        """`path` with ~ and variables of the user's filled in."""
        path = Template(path).safe_substitute(self.environ)
        if path == "~" or path.startswith("~/"):
            path = self.home + path[1:]
        return path


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place where an environment may be.

    `base`: where conda itself would live. `interpreter`: a plain interpreter's prefix counts too.
    """

    path: str
    base: bool = False
    interpreter: bool = False


#: Called with a folder before something in it is read; False: leave it alone, it does not answer.
At = Callable[[str], bool]


def anywhere(folder: str) -> bool:
    """The `At` of whoever has time."""
    return True


def candidates(sources: Sources, at: At = anywhere) -> Iterator[Candidate]:
    """Every place to look at, in source order and by name within a source; some more than once, many with
    nothing there. Absolute, not resolved. Never raises: what cannot be read is skipped."""
    if at(sources.home):
        yield from map(Candidate, _registered(sources))
    for folder in _envs_dirs(sources, at):
        yield from map(Candidate, _children(folder, at))
    for base in _bases(sources):
        yield Candidate(base, base=True)
        yield from map(Candidate, _children(os.path.join(base, "envs"), at))
    pixi = sources.environ.get("PIXI_HOME") or os.path.join(sources.home, ".pixi")
    yield from map(Candidate, _children(os.path.join(pixi, "envs"), at))
    for folder in _venv_folders(sources):
        yield from map(Candidate, _children(folder, at))
    for path in sources.paths:
        yield from _configured(sources, path, at)


def envs_dirs_of(text: str) -> list[str]:
    """The value of `envs_dirs` (or its alias `envs_path`) in the text of a .condarc, as written there.

    Reads the block and flow lists of YAML that conda writes and people type; a value in any other form counts
    as nothing, which costs a listing those folders and nothing else.
    """
    found: list[str] = []
    lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in text.splitlines()]
    for index, line in enumerate(lines):
        match = re.match(r"(?:envs_dirs|envs_path)\s*:\s*(.*)$", line)
        if match is None:
            continue
        value = match.group(1)
        following = lines[index + 1 :]
        if value.startswith("["):
            while "]" not in value and following:
                value += " " + following.pop(0)
            found += value[1:].partition("]")[0].split(",")
        elif not value:
            for item in following:
                entry = re.match(r"\s*-\s+(.*)$", item)
                if entry is not None:
                    found.append(entry.group(1))
                elif item.strip():
                    break
        else:
            found.append(value)
    unquoted = (re.sub(r"""^(['"])(.*)\1$""", r"\2", entry.strip()) for entry in found)
    return [entry for entry in unquoted if entry]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_LARGEST_FILE)
    except OSError:
        return ""


def _children(folder: str, at: At = anywhere) -> list[str]:
    if not at(folder):
        return []
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    except OSError:
        return []


def _registered(sources: Sources) -> Iterator[str]:
    """The lines of ~/.conda/environments.txt, where conda notes what it makes; stale ones may stay."""
    for line in _text(os.path.join(sources.home, ".conda", "environments.txt")).splitlines():
        if os.path.isabs(line.strip()):
            yield line.strip()


def _condarcs(sources: Sources) -> Iterator[str]:
    """Conda's search path for its configuration, the user's own files first."""
    environ, home = sources.environ, sources.home
    configuration = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    if environ.get("CONDARC"):
        yield sources.expanded(environ["CONDARC"])
    yield from (
        os.path.join(home, ".condarc"),
        os.path.join(home, ".mambarc"),
        os.path.join(home, ".conda", ".condarc"),
        os.path.join(configuration, "conda", ".condarc"),
    )
    for base in _bases(sources):
        yield os.path.join(base, ".condarc")
    yield from (
        os.path.join(sources.root, "etc/conda/.condarc"),
        os.path.join(sources.root, "var/lib/conda/.condarc"),
    )


def _envs_dirs(sources: Sources, at: At) -> Iterator[str]:
    folders: list[str] = []
    for variable in ("CONDA_ENVS_PATH", "CONDA_ENVS_DIRS"):
        folders += sources.environ.get(variable, "").split(os.pathsep)
    for file in _condarcs(sources):
        if at(os.path.dirname(file)):
            folders += envs_dirs_of(_text(file))
    yield from filter(os.path.isabs, map(sources.expanded, folders))
    yield os.path.join(sources.home, ".conda", "envs")


def _bases(sources: Sources) -> Iterator[str]:
    environ = sources.environ
    if os.path.isabs(environ.get("CONDA_EXE", "")):
        yield os.path.dirname(os.path.dirname(environ["CONDA_EXE"]))
    for variable in ("CONDA_ROOT", "MAMBA_ROOT_PREFIX"):
        if os.path.isabs(environ.get(variable, "")):
            yield environ[variable]
    yield from (os.path.join(sources.home, name) for name in _BASES_AT_HOME)
    yield from (os.path.join(sources.root, name) for name in _BASES_OF_SYSTEM)


def _venv_folders(sources: Sources) -> Iterator[str]:
    yield sources.environ.get("WORKON_HOME") or os.path.join(sources.home, ".virtualenvs")
    yield from (os.path.join(sources.home, name) for name in _VENVS_AT_HOME)
    pyenv = sources.environ.get("PYENV_ROOT") or os.path.join(sources.home, ".pyenv")
    yield from (os.path.join(version, "envs") for version in _children(os.path.join(pyenv, "versions")))


def _configured(sources: Sources, path: str, at: At) -> Iterator[Candidate]:
    pattern = sources.expanded(path)
    if not at(pattern):
        return
    # Without `recursive`: ** over a home would take minutes.
    for found in sorted(glob.glob(pattern)):
        if not os.path.isabs(found) or not at(found):
            continue
        if is_environment(found) or has_interpreter(found):
            yield Candidate(found, interpreter=True)
        else:
            yield from map(Candidate, _children(found, at))
