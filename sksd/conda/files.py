"""Descriptions of environments, read: environment.yml, explicit lists and requirements.txt. Pure; lock files are
rattler's (`sksd.conda.locks`)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from sksd.errors import BadFile

_EXPLICIT: Final = re.compile(
    r"(?P<url>\S+?[^/\\\s#]+\.(?:tar\.bz2|conda))(?:#(?:(?P<md5>[0-9a-fA-F]{32})|(?:sha256:)?(?P<sha256>[0-9a-fA-F]{64})))?$"
)
#: Options of a requirements file that name a place to look at, not another file of the sender's machine.
_PIP_OPTIONS: Final = ("--index-url", "-i", "--extra-index-url", "--no-index", "--pre", "--find-links", "-f")
_PIP_FLAGS: Final = ("--prefer-binary", "--only-binary", "--no-binary", "--require-hashes", "--trusted-host")


@dataclass(frozen=True)
class Url:
    """One line of an explicit list; `md5` and `sha256` in hex, lower case, may be empty."""

    url: str
    md5: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Description:
    """What a file asks for. `urls`: exactly these packages. `variables`: to be set on activation."""

    name: str = ""
    channels: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    urls: tuple[Url, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


def environment_yml(text: str) -> Description:
    """An environment.yml. Raises BadFile."""
    kind = "environment.yml"
    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise BadFile(format=kind, problem=f"{where}{getattr(error, 'problem', None) or 'it is not YAML'}") from None
    if not isinstance(document, dict):
        raise BadFile(format=kind, problem="it has no `dependencies`")
    specs: list[str] = []
    pip: list[str] = []
    for entry in _list(document, "dependencies"):
        match entry:
            case str():
                # `numpy=1.26=py312_0` and `conda-forge::numpy` are MatchSpecs as they stand.
                specs.append(entry.strip())
            case {"pip": list(lines)} if all(isinstance(line, str) for line in lines):
                pip += lines
            case {"pip": str(line)}:
                pip.append(line)
            case {"pip": None}:
                pass
            case _:
                raise BadFile(format=kind, problem=f"dependencies: {entry!r} is neither a package nor pip's list")
    channels = [entry for entry in _list(document, "channels") if isinstance(entry, str)]
    variables = document.get("variables") or {}
    if not isinstance(variables, dict):
        raise BadFile(format=kind, problem="variables: not a table")
    return Description(
        name=str(document.get("name") or ""),
        channels=tuple(channels),
        specs=tuple(specs),
        pip=tuple(line for line in map(_pip_line, pip) if line),
        variables={str(key): str(value) for key, value in variables.items()},
    )


def explicit(text: str) -> Description:
    """An explicit list: `@EXPLICIT`, and a package's URL a line, with its hash behind a `#`. Raises BadFile."""
    urls = []
    for number, each in enumerate(text.splitlines(), 1):
        line = each.strip()
        if not line or line.startswith(("#", "@")):
            continue
        match = _EXPLICIT.match(line)
        if match is None or ("://" not in line and not line.startswith("/")):
            raise BadFile(format="explicit list", problem=f"line {number} is not the URL of a package: {line[:200]}")
        url = match["url"] if "://" in match["url"] else f"file://{match['url']}"
        urls.append(Url(url, (match["md5"] or "").lower(), (match["sha256"] or "").lower()))
    if not urls:
        raise BadFile(format="explicit list", problem="it names no package")
    return Description(urls=tuple(urls))


def requirements_txt(text: str) -> Description:
    """A requirements.txt, for pip. Raises BadFile."""
    lines = re.sub(r"\\\r?\n", " ", text).splitlines()
    found = tuple(line for line in map(_pip_line, lines) if line)
    if not found:
        raise BadFile(format="requirements.txt", problem="it names no package")
    return Description(pip=found)


def _pip_line(line: str) -> str:
    """One line for pip, without comment; refuses what leads to other files."""
    line = re.sub(r"(^|\s)#.*", "", line).strip()
    word = re.split(r"[\s=]", line, maxsplit=1)[0]
    if word.startswith("-") and word not in (*_PIP_OPTIONS, *_PIP_FLAGS):
        problem = f"{line[:200]}: only this file is sent, not what lies beside it"
        raise BadFile(format="requirements file", problem=problem)
    return line


def _list(document: dict[Any, Any], key: str) -> list[Any]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise BadFile(format="environment.yml", problem=f"{key}: not a list")
    return value
