"""What is installed in an environment, read from its files without rattler."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import msgspec

from sksd.conda import history
from sksd.conda.messages import Package
from sksd.conda.secrets import mask

#: What a note of a change leaves out of a conda-meta document: it is long, and a new link makes it anew.
_LONG = ("files", "paths_data", "link")


class Record(msgspec.Struct, kw_only=True):
    """One document of conda-meta, as far as it matters here."""

    name: str
    version: str
    build: str = ""
    channel: str | None = ""
    subdir: str = ""
    url: str = ""
    md5: str | None = ""
    sha256: str | None = ""
    size: int | None = None
    noarch: Any = None
    depends: list[str] = []
    files: list[str] = []
    requested_spec: str | None = None
    requested_specs: list[str] = []

    @property
    def base(self) -> str:
        """The URL of its channel, without the platform's folder; empty where it is not known."""
        return (self.channel or "").rstrip("/").removesuffix(f"/{self.subdir}")

    @property
    def requested(self) -> str:
        """The spec that somebody asked for it with; empty: it came along."""
        return next(iter(self.requested_specs), "") or self.requested_spec or ""

    @property
    def stem(self) -> str:
        """Its name in conda-meta and in a package cache."""
        return f"{self.name}-{self.version}-{self.build}"


def read(prefix: str) -> dict[str, Record]:
    """The installed packages by name. A document that was only half written counts as not there."""
    found = {}
    for path in sorted(Path(prefix, "conda-meta").glob("*.json")):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            continue
        found[record.name] = record
    return found


def documents(prefix: str) -> list[dict[str, Any]]:
    """The conda-meta documents without their lists of files: what a note of a change keeps."""
    found = []
    for path in sorted(Path(prefix, "conda-meta").glob("*.json")):
        try:
            document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError):
            continue
        found.append({key: value for key, value in document.items() if key not in _LONG})
    return found


def requested(prefix: str, installed: Mapping[str, Record]) -> dict[str, str]:
    """The specs that a person asked for, by package: from the history, else from conda-meta, else every package, so
    that nothing is taken for unwanted."""
    asked = {name: spec for name, spec in history.requested(history_text(prefix)).items() if name in installed}
    asked = asked or {name: record.requested for name, record in installed.items() if record.requested}
    return asked or {name: name for name in installed}


def history_text(prefix: str) -> str:
    """conda-meta/history, empty where there is none."""
    try:
        return Path(prefix, "conda-meta", "history").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def pinned(prefix: str) -> list[str]:
    """The specs of conda-meta/pinned."""
    try:
        text = Path(prefix, "conda-meta", "pinned").read_text(encoding="utf-8")
    except OSError:
        return []
    return [line for each in text.splitlines() if (line := each.partition("#")[0].strip())]


def needed(installed: Mapping[str, Record], roots: Iterable[str]) -> set[str]:
    """The names of `roots` and of all that they depend on."""
    found: set[str] = set()
    waiting = [name for name in roots if name in installed]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [each for each in map(history.name_of, installed[name].depends) if each in installed]
    return found


def dependents(installed: Mapping[str, Record], names: Iterable[str]) -> set[str]:
    """`names`, and every package that depends on one of them."""
    found = set(names)
    grown = True
    while grown:
        more = {
            name
            for name, record in installed.items()
            if name not in found and any(history.name_of(each) in found for each in record.depends)
        }
        grown = bool(more)
        found |= more
    return found


def site_packages(prefix: str) -> Path | None:
    """Where the environment's Python has its packages."""
    found = sorted(Path(prefix, "lib").glob("python3.*/site-packages"))
    return found[-1] if found else None


def pip_installed(prefix: str) -> dict[str, str]:
    """What pip has installed there: version by normalised name."""
    folder = site_packages(prefix)
    found = {}
    for path in folder.glob("*.dist-info") if folder else ():
        try:
            if (path / "INSTALLER").read_text(encoding="utf-8").strip() != "pip":
                continue
            headers = HeaderParser().parsestr((path / "METADATA").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        found[normal(headers["Name"] or "")] = headers["Version"] or ""
    found.pop("", None)
    return found


def normal(name: str) -> str:
    """A Python distribution's name as PEP 503 compares them."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def packages(prefix: str) -> list[Package]:
    """All packages by name, pip's last."""
    installed = read(prefix)
    asked = history.requested(history_text(prefix))
    found = [
        Package(
            name=record.name,
            version=record.version,
            build=record.build,
            channel=mask(record.base),
            size=record.size,
            requested=asked.get(record.name, record.requested),
        )
        for record in installed.values()
    ]
    by_pip = sorted(pip_installed(prefix).items())
    return found + [Package(name=name, version=version, channel="pypi") for name, version in by_pip]


def missing_files(prefix: str, record: Record) -> bool:
    """Whether a file of the package is gone, byte code aside."""
    files = (file for file in record.files if not file.endswith((".pyc", ".pyo")))
    return any(not os.path.lexists(os.path.join(prefix, file)) for file in files)
