"""The environment variables of an activated environment, worked out without conda.

What `conda activate` does, as the conda documentation describes it ("Managing environments", and "Activation"
of the deep dives): CONDA_* and PATH, then `etc/conda/env_vars.d/*.json`, then the variables of
`conda-meta/state`, then the scripts of `etc/conda/activate.d`. Only the scripts need a process, a bash that
is handed in; everything else is files and dicts.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sksd.errors import ActivationFailed
from sksd.proxy.prefixes import CONDA, PIXI, RACY_SECONDS, VENV, Prefix

#: Seconds that all activation scripts of an environment together may take.
SCRIPTS_SECONDS: Final = 30.0
#: So many environments' variables are remembered.
CACHE_LIMIT: Final = 256
#: What conda writes into conda-meta/state for a variable that is to be absent.
UNSET: Final = "***unset***"

#: What belongs to the process that the login environment came from, not to the one to be started.
_FOREIGN: Final = frozenset(
    {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "JPY_PARENT_PID"}
)
_FOREIGN_PREFIXES: Final = ("CONDA_", "_CE_", "SPY_", "SKSD_")
#: What bash itself changes, or a script by a `cd`: none of it is for the kernel.
_OF_BASH: Final = ("_", "SHLVL", "PWD", "OLDPWD", "BASH_ENV", "BASHOPTS", "SHELLOPTS")
_DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

# Descriptor 3 is closed while a script runs: what it starts in the background must not hold it open. `env` is
# given by its path: a script may have changed PATH.
_SOURCE_THEM: Final = """
_sksd_env=$1; shift; _sksd_files=("$@"); set --
for _sksd_file in "${_sksd_files[@]}"; do builtin . "$_sksd_file" 3>&-; done
exec "$_sksd_env" -0 >&3
"""

#: Runs a program with these arguments and variables, and answers what it wrote to descriptor 3 (bytes);
#: raises ShellFailed, also when it is not done after so many seconds. `sksd.proxy.shell.run` is the real one.
Runner = Callable[[Sequence[str], Mapping[str, str], float], Awaitable[bytes]]


class ShellFailed(Exception):
    """Why a shell came to nothing, as the end of a sentence."""


@dataclass(frozen=True)
class Plan:
    """What is left to do: to start from `environ`, and source the `scripts` (absolute paths) on top."""

    environ: dict[str, str]
    scripts: tuple[str, ...] = ()


class Activations:
    """Activated environments, remembered until their files change. A proxy keeps one."""

    def __init__(self, run: Runner, clock: Callable[[], float] = time.time) -> None:
        self._run = run
        self._clock = clock
        self._known: dict[str, tuple[object, dict[str, str]]] = {}

    async def activate(self, prefix: Prefix, name: str, login: Mapping[str, str]) -> dict[str, str]:
        """The variables to start a process of `prefix` with, a fresh dict; called by spin_up before each
        start.

        `name`: the environment's name, for CONDA_DEFAULT_ENV. `login`: the user's login environment. Raises
        ActivationFailed.
        """
        places = watched(prefix.path)
        seen = (_stamps(places), name, dict(login))
        known = self._known.get(prefix.path)
        if known is not None and known[0] == seen:
            return dict(known[1])
        now = self._clock()
        todo = plan(prefix, name, login)
        environ = await self._source(todo, name) if todo.scripts else todo.environ
        newest = max((stamp for stamp in _stamps(places) if stamp is not None), default=0) / 1e9
        if newest < now - RACY_SECONDS:
            if len(self._known) >= CACHE_LIMIT:
                self._known.clear()
            self._known[prefix.path] = (seen, environ)
        return dict(environ)

    async def _source(self, todo: Plan, name: str) -> dict[str, str]:
        where = todo.environ.get("PATH", _DEFAULT_PATH)
        bash, env = shutil.which("bash", path=where), shutil.which("env", path=where)
        bash, env = bash or shutil.which("bash", path=_DEFAULT_PATH), env or "/usr/bin/env"
        if bash is None:
            raise ActivationFailed(
                name=name, problem="it has scripts in etc/conda/activate.d, and there is no bash to run them"
            )
        arguments = [bash, "--noprofile", "--norc", "-c", _SOURCE_THEM, "bash", env, *todo.scripts]
        # BASH_ENV would be sourced before the scripts.
        given = {key: value for key, value in todo.environ.items() if key != "BASH_ENV"}
        try:
            output = await self._run(arguments, given, SCRIPTS_SECONDS)
        except ShellFailed as error:
            raise ActivationFailed(name=name, problem=str(error)) from None
        if not output.endswith(b"\0"):
            raise ActivationFailed(name=name, problem="a script in etc/conda/activate.d ended the shell")
        return merged(todo.environ, output)


def plan(prefix: Prefix, name: str, login: Mapping[str, str]) -> Plan:
    """What activating `prefix` takes. Reads files, starts nothing; raises ActivationFailed."""
    environ = cleaned(login)
    _path_first(environ, os.path.join(prefix.path, "bin"))
    if prefix.kind == VENV:
        environ["VIRTUAL_ENV"] = prefix.path
        environ["VIRTUAL_ENV_PROMPT"] = name
    if prefix.kind not in (CONDA, PIXI):
        return Plan(environ)
    environ |= {
        "CONDA_PREFIX": prefix.path,
        "CONDA_DEFAULT_ENV": name,
        "CONDA_SHLVL": "1",
        "CONDA_PROMPT_MODIFIER": f"({name}) ",
    }
    try:
        variables = os.path.join(prefix.path, "etc", "conda", "env_vars.d")
        for file in _listed(variables, ".json"):
            environ |= _variables(file, _json(file))
        state = os.path.join(prefix.path, "conda-meta", "state")
        content = _json(state) if os.path.lexists(state) else {}
        declared = content.get("env_vars", {}) if isinstance(content, dict) else content
        for key, value in _variables(state, declared).items():
            if value == UNSET:
                environ.pop(key, None)
            else:
                environ[key] = value
        scripts = _listed(os.path.join(prefix.path, "etc", "conda", "activate.d"), ".sh")
    except _Broken as error:
        raise ActivationFailed(name=name, problem=str(error)) from None
    return Plan(environ, tuple(scripts))


def cleaned(login: Mapping[str, str]) -> dict[str, str]:
    """`login` without what an activated environment or a kernel left in it, their folders off PATH too."""
    kept = {
        key: value
        for key, value in login.items()
        if key not in _FOREIGN and not key.startswith(_FOREIGN_PREFIXES)
    }
    left = {
        os.path.join(value, "bin")
        for key, value in login.items()
        if value and (key in ("VIRTUAL_ENV", "CONDA_PREFIX") or key.startswith("CONDA_PREFIX_"))
    }
    path = [
        step for step in kept.get("PATH", _DEFAULT_PATH).split(os.pathsep) if step.rstrip("/") not in left
    ]
    kept["PATH"] = os.pathsep.join(path)
    return kept


def merged(before: Mapping[str, str], output: bytes) -> dict[str, str]:
    """The variables in the output of `env -0`, with those that are the shell's own as they were `before`."""
    pairs = (entry.partition(b"=") for entry in output.split(b"\0") if b"=" in entry)
    after = {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}
    # A script with `set -a` exports what comes after it.
    for name in [name for name in after if name.startswith("_sksd_")]:
        del after[name]
    for name in _OF_BASH:
        after.pop(name, None)
        if name in before:
            after[name] = before[name]
    return after


def watched(prefix: str) -> list[str]:
    """The places whose change makes an activation stale."""
    folders = [os.path.join(prefix, "etc", "conda", name) for name in ("env_vars.d", "activate.d")]
    places = [os.path.join(prefix, "conda-meta"), os.path.join(prefix, "conda-meta", "state"), *folders]
    for folder in folders:
        try:
            places += [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        except OSError:
            continue
    return places


class _Broken(Exception):
    """A file of the environment that cannot be used."""


def _stamps(places: Sequence[str]) -> list[int | None]:
    stamps: list[int | None] = []
    for place in places:
        try:
            stamps.append(os.stat(place).st_mtime_ns)
        except OSError:
            stamps.append(None)
    return stamps


def _path_first(environ: dict[str, str], folder: str) -> None:
    steps = [step for step in environ["PATH"].split(os.pathsep) if step and step != folder]
    environ["PATH"] = os.pathsep.join([folder, *steps])


def _listed(folder: str, ending: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _Broken(f"{folder} cannot be read ({error.strerror})") from None
    return [os.path.join(folder, name) for name in sorted(names) if name.endswith(ending)]


def _json(path: str) -> object:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise _Broken(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise _Broken(f"{path} is not JSON: mend it, or move it away") from None


def _variables(path: str, declared: object) -> dict[str, str]:
    """`declared` as environment variables: an object of texts (numbers are let pass, people write them)."""
    if not isinstance(declared, dict):
        raise _Broken(f"{path} has no object with variables in it")
    found: dict[str, str] = {}
    for key, value in declared.items():
        text = value if isinstance(value, str) else str(value)
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise _Broken(f"the value of {key} in {path} is not a text")
        if not key or "=" in key or "\0" in key or "\0" in text:
            raise _Broken(f"{key!r} in {path} cannot be an environment variable")
        found[key] = text
    return found
