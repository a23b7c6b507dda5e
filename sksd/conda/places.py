"""Where an environment goes or lies, and whether it may be touched at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sksd.conda.condarc import Condarc
from sksd.conda.messages import HostSettings
from sksd.errors import (
    BadName,
    CannotWrite,
    ChangeFailed,
    EnvironmentExists,
    EnvironmentFrozen,
    EnvironmentReadOnly,
    NoSuchEnvironment,
    NotAnEnvironment,
    PixiWorkspace,
)

#: conda's placeholder has 255 bytes, and what is put in its place must fit.
_LONGEST: Final = 240
_RESERVED: Final = frozenset({"base", "root", "envs"})


def folders(settings: Condarc, host: HostSettings, home: str) -> list[str]:
    """Where environments with plain names lie, the preferred first."""
    return list(dict.fromkeys([*host.envs_dirs, *settings.envs_dirs, os.path.join(home, ".conda", "envs")]))


def new(prefix: str, name: str, where: Sequence[str]) -> str:
    """The prefix of an environment to be made, in the first of the folders `where` that can be written.

    Raises BadName, CannotWrite.
    """
    wanted = prefix or name
    if os.path.isabs(wanted):
        return _absolute(wanted)
    _check(wanted)
    for folder in where:
        if _writable(folder):
            return _absolute(os.path.join(folder, wanted))
    raise CannotWrite(path=", ".join(where), problem="none of these folders can be written")


def existing(prefix: str, name: str, where: Sequence[str], registered: Sequence[str] = ()) -> str:
    """The prefix of an environment that is there. Raises BadName, NoSuchEnvironment, NotAnEnvironment."""
    wanted = prefix or name
    if os.path.isabs(wanted):
        path = _absolute(wanted)
        if not os.path.isdir(path):
            raise NoSuchEnvironment(name=wanted)
    else:
        _check(wanted)
        candidates = [os.path.join(folder, wanted) for folder in where]
        candidates += [line for line in registered if os.path.basename(line) == wanted]
        path = next((each for each in candidates if is_environment(each)), "")
        if not path:
            raise NoSuchEnvironment(name=wanted)
    if not is_environment(path):
        raise NotAnEnvironment(name=name or path, prefix=path, problem="it has no conda-meta/history")
    return path


def is_environment(prefix: str) -> bool:
    """Whether conda would take it for one: it has a history, or at least a package."""
    meta = Path(prefix, "conda-meta")
    return (meta / "history").is_file() or any(meta.glob("*.json"))


def refuse_making(prefix: str) -> None:
    """Raises EnvironmentExists where something is in the way, CannotWrite where nothing can be made."""
    if os.path.lexists(prefix):
        if not os.path.isdir(prefix):
            raise EnvironmentExists(name=prefix, prefix=prefix, problem="it is a file")
        if os.listdir(prefix):
            what = "it is an environment" if is_environment(prefix) else "the folder is not empty"
            raise EnvironmentExists(name=prefix, prefix=prefix, problem=what)
    if not _writable(prefix):
        raise CannotWrite(path=os.path.dirname(prefix), problem="you may not make folders there")


def refuse_changing(prefix: str, name: str, pixi: bool = True) -> None:
    """Raises what forbids a change of an environment that is there: frozen, read-only, or pixi's (`pixi`)."""
    meta = Path(prefix, "conda-meta")
    workspace = pixi_workspace(prefix)
    if workspace and pixi:
        command = f"pixi add --manifest-path {workspace} PACKAGE"
        raise PixiWorkspace(name=name, prefix=prefix, command=command)
    refuse_frozen(prefix, name)
    for path in (prefix, str(meta), *map(str, meta.glob("history"))):
        if not os.access(path, os.W_OK):
            raise EnvironmentReadOnly(name=name, problem=f"{path} is not writable")


def refuse_frozen(prefix: str, name: str) -> None:
    """Raises EnvironmentFrozen with the message that CEP 22 lets a marker have."""
    marker = Path(prefix, "conda-meta", "frozen")
    if not marker.exists():
        return
    try:
        document = json.loads(marker.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError):
        document = {}
    message = document.get("message") if isinstance(document, dict) else None
    raise EnvironmentFrozen(name=name, problem=str(message or "conda-meta/frozen says so."))


def refuse_removing(prefix: str, name: str) -> None:
    """Raises where removing it would take more than one environment: conda's own, or folders of others."""
    if any(Path(prefix, "conda-meta").glob("conda-[0-9]*.json")) or os.path.isdir(os.path.join(prefix, "envs")):
        raise ChangeFailed(name=name, problem="it is an installation of conda itself, with what depends on it")
    if os.path.realpath(os.path.expanduser("~")).startswith(os.path.realpath(prefix) + os.sep):
        raise ChangeFailed(name=name, problem="your home is inside of it")


def pixi_workspace(prefix: str) -> str | None:
    """The folder of the pixi workspace that `prefix` belongs to."""
    folder, separator, _ = os.path.realpath(prefix).partition("/.pixi/envs/")
    if separator:
        return folder
    marker = Path(prefix, "conda-meta", "pixi")
    if not marker.exists():
        return None
    try:
        manifest = json.loads(marker.read_text(encoding="utf-8")).get("manifest_path", "")
    except (OSError, ValueError, AttributeError):
        manifest = ""
    return os.path.dirname(manifest) or str(Path(prefix).parent)


def _check(name: str) -> None:
    problem = ""
    if not name.strip():
        problem = "give a name, or an absolute path"
    elif "/" in name:
        problem = "a name has no slash in it; a path must be absolute"
    elif name in _RESERVED:
        problem = "conda means something else by this name"
    elif re.search(r"[\s:#\\]", name) or not name.isprintable() or name[0] in ".-" or len(os.fsencode(name)) > 200:
        problem = "a name is one word without : and #, and does not begin with . or -"
    if problem:
        raise BadName(name=name or "an empty name", problem=problem)


def _absolute(prefix: str) -> str:
    if ".." in prefix.split("/"):
        raise BadName(name=prefix, problem="a path must be without ..")
    prefix = os.path.realpath(prefix)
    if prefix == "/" or not prefix.isprintable():
        raise BadName(name=prefix, problem="it cannot be the folder of an environment")
    if len(os.fsencode(prefix)) > _LONGEST:
        raise BadName(name=prefix, problem=f"a path may have {_LONGEST} bytes at most")
    return prefix


def _writable(path: str) -> bool:
    """Whether `path` can be written, or made."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)
