"""What a front end requires of an environment, compared with what is in it, by its files alone.

Conda's specs by `sksd.proxy.matchspecs`, requirements of pip's by `packaging` (PEP 508): versions, extras and
markers. What is in the environment is what `sksd.proxy.prefixes` read: conda's records, and what pip installed,
which wins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as PipRequirement
from packaging.version import InvalidVersion, Version

from sksd.errors import BadFile, BadSpec
from sksd.proxy.kernels import mending
from sksd.proxy.matchspecs import match_spec
from sksd.proxy.prefixes import Prefix, normalised
from sksd.wire.messages import EnvironmentFile, Unmet

#: Requirements of one request.
MOST: Final = 5000
#: Extras that require extras: so many steps are followed.
_DEEPEST: Final = 8
#: Bytes of a METADATA.
_LARGEST: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of what is required. `text` as it was written; `pip`: it is one of pip's.

    `found`: called with a prefix; whether the line is met, and the version that is there (None: nothing is).
    """

    text: str
    pip: bool
    found: Callable[[Prefix], tuple[bool, str | None]]


def unmet(prefix: Prefix, required: Sequence[Requirement]) -> list[Unmet]:
    """What `prefix` lacks of `required`, in the order of the lines; empty when nothing is missing."""
    lacking: list[Unmet] = []
    for each in required:
        met, found = each.found(prefix)
        if not met:
            mend = mending(prefix, each.text, found, pip=each.pip)
            lacking.append(Unmet(requirement=each.text, found=found, mend=mend))
    return lacking


def read(specs: Sequence[str], file: EnvironmentFile | None = None) -> list[Requirement]:
    """The requirements of a request: conda's `specs`, and what a file says. Raises BadSpec for the first line that is
    none, BadFile."""
    found = [conda(spec) for spec in specs]
    if file is not None:
        found += _READERS[file.format](file.text)
    if len(found) > MOST:
        raise BadSpec(spec=f"{len(found)} lines", problem=f"{MOST} are the most")
    return found


def conda(text: str) -> Requirement:
    """A conda match spec. Raises BadSpec."""
    try:
        spec = match_spec(text)
    except ValueError as problem:
        raise BadSpec(spec=text, problem=str(problem)) from None

    def found(prefix: Prefix) -> tuple[bool, str | None]:
        if spec.name.startswith("-"):
            # A virtual package, as __glibc: the machine's, not the environment's.
            return True, None
        version = prefix.packages.get(spec.name)
        if version is None and spec.name == "python":
            version = prefix.version
        if version is None:
            return False, None
        build = prefix.builds.get(spec.name, "pypi_0")
        met = spec.matches(version, build)
        return met, version if met or spec.build is None else f"{version} {build}"

    return Requirement(text, False, found)


def pip(line: str) -> Requirement | None:
    """A line of a requirements.txt; None where it requires nothing (options, comments). Raises BadSpec."""
    text = re.sub(r"(^|\s)#.*$", "", line).strip()
    text = re.sub(r"\s--(?:hash|global-option|config-settings?)[=\s]\S+", "", f" {text}").strip()
    if not text:
        return None
    if re.match(r"^(?:-r|-c|--requirement|--constraint)\b", text):
        raise BadSpec(spec=text, problem="another file is not sent along: put its lines here")
    if re.match(r"^(?:-e|--editable)\b", text):
        raise BadSpec(spec=text, problem="a folder of your machine is not on the host")
    if text.startswith("-"):
        return None
    try:
        wanted = PipRequirement(text)
    except InvalidRequirement as problem:
        raise BadSpec(spec=text, problem=str(problem).splitlines()[0]) from None
    return Requirement(text, True, lambda prefix: _pip_found(prefix, wanted, frozenset(), _DEEPEST))


def _pip_found(
    prefix: Prefix, wanted: PipRequirement, extras: frozenset[str], deep: int
) -> tuple[bool, str | None]:
    if wanted.marker is not None:
        here = _markers(prefix)
        if not any(wanted.marker.evaluate({**here, "extra": extra}) for extra in extras or ("",)):
            return True, None
    name = normalised(wanted.name)
    version = prefix.packages.get(name)
    if version is None:
        return False, None
    try:
        # What is installed may be a pre-release; nobody asks whether to take it.
        met = not wanted.specifier or wanted.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        met = str(wanted.specifier) == f"==={version}"
    if met and wanted.extras and deep:
        wanted_extras = frozenset(map(normalised, wanted.extras))
        for need in _needs_of_extras(prefix, name, version):
            ok, there = _pip_found(prefix, need, wanted_extras, deep - 1)
            if not ok:
                return False, f"{version} " + (
                    f"with {need.name} {there}" if there else f"without {need.name}"
                )
    return met, version


def _markers(prefix: Prefix) -> dict[str, str]:
    """What markers are evaluated with: this machine, and the environment's Python."""
    here: dict[str, Any] = dict(default_environment())
    if prefix.version is not None:
        full = prefix.version if prefix.version.count(".") > 1 else f"{prefix.version}.0"
        here |= {"python_full_version": full, "implementation_version": full}
        here["python_version"] = ".".join(full.split(".")[:2])
    return here


def _needs_of_extras(prefix: Prefix, name: str, version: str) -> Iterator[PipRequirement]:
    """The lines of a distribution's METADATA that only an extra of it requires."""
    for folder in prefix.folders:
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        for entry in entries:
            if entry.endswith(".dist-info") and normalised(entry[:-10]) == normalised(f"{name}-{version}"):
                try:
                    with open(
                        os.path.join(folder, entry, "METADATA"), encoding="utf-8", errors="replace"
                    ) as file:
                        metadata = HeaderParser().parsestr(file.read(_LARGEST))
                except OSError:
                    continue
                for line in metadata.get_all("Requires-Dist") or ():
                    if "extra" in line:
                        yield PipRequirement(line)
                return


# -- files -----------------------------------------------------------------------------------------------------------


def _environment_yml(text: str) -> list[Requirement]:
    content = _yaml(text, "environment.yml")
    found: list[Requirement] = []
    for line in _list(content.get("dependencies"), "environment.yml"):
        if isinstance(line, str):
            found.append(conda(line))
        elif isinstance(line, dict) and set(line) == {"pip"}:
            lines = [str(each) for each in _list(line["pip"], "environment.yml")]
            found += [each for each in map(pip, lines) if each is not None]
        else:
            raise BadSpec(spec=str(line)[:80], problem="it is neither a spec nor `pip:` with a list")
    return found


def _requirements_txt(text: str) -> list[Requirement]:
    lines = re.sub(r"\\\r?\n", " ", text).splitlines()
    return [each for each in map(pip, lines) if each is not None]


def _explicit(text: str) -> list[Requirement]:
    lines = [line.strip() for line in text.splitlines()]
    return [_of_url(line) for line in lines if line and not line.startswith(("#", "@"))]


def _lock(text: str) -> list[Requirement]:
    """conda-lock.yml, or the lock file of rattler and pixi: of its environment `default`, else of the first."""
    content = _yaml(text, "lock file")
    if isinstance(content.get("package"), list):
        return [each for entry in content["package"] if (each := _conda_lock(entry)) is not None]
    environments = content.get("environments")
    if not isinstance(environments, dict):
        raise BadFile(format="lock file", problem="it is neither conda-lock's nor rattler's")
    chosen = _table(environments.get("default") or next(iter(environments.values()), {}))
    packages = [_table(entry) for entry in _list(content.get("packages"), "lock file")]
    known = {entry["pypi"]: entry for entry in packages if "pypi" in entry}
    found: list[Requirement | None] = []
    for entry in map(_table, _list(_table(chosen.get("packages")).get(_subdir()), "lock file")):
        if "conda" in entry:
            found.append(_of_url(str(entry["conda"])))
        elif "pypi" in entry:
            about = known.get(entry["pypi"], entry)
            found.append(pip(f"{about.get('name')}=={about.get('version')}"))
    return [each for each in found if each is not None]


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _conda_lock(entry: Any) -> Requirement | None:
    if not isinstance(entry, dict) or entry.get("platform") not in (_subdir(), "noarch", None):
        return None
    if entry.get("manager") == "pip":
        return pip(f"{entry.get('name')}=={entry.get('version')}")
    return (
        _of_url(str(entry["url"]))
        if "url" in entry
        else conda(f"{entry.get('name')}=={entry.get('version')}")
    )


def _of_url(url: str) -> Requirement:
    file = unquote(os.path.basename(urlsplit(url).path))
    stem = re.sub(r"\.(?:conda|tar\.bz2)$", "", file)
    parts = stem.rsplit("-", 2)
    if stem == file or len(parts) != 3:
        raise BadSpec(spec=url[:200], problem="it is not the URL of a conda package")
    return conda("{}=={}={}".format(*parts))


def _subdir() -> str:
    machine = os.uname().machine
    return f"linux-{ {'x86_64': '64'}.get(machine, machine) }"


def _yaml(text: str, what: str) -> dict[str, Any]:
    # Takes 15 ms to import, and few requests need it.
    import yaml

    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        first = str(problem).splitlines()[0] if str(problem) else "it cannot be read"
        raise BadFile(format=what, problem=f"it is no YAML ({first})") from None
    if not isinstance(content, dict):
        raise BadFile(format=what, problem="it is not a table of keys")
    return content


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST:
        raise BadFile(format=what, problem="a list of packages is missing, or too long")
    return value


_READERS: Final[dict[str, Callable[[str], list[Requirement]]]] = {
    "environment.yml": _environment_yml,
    "requirements.txt": _requirements_txt,
    "explicit": _explicit,
    "lock": _lock,
}
