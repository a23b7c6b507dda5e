"""Conda's match specs, as far as a comparison with what is installed needs them: name, version, build.

The forms are those of conda's "Package match specifications": `numpy`, `numpy >=1.26,<2`, `numpy=1.26`,
`conda-forge::numpy==1.26.4=py311_0`, `numpy[version='>=1.26', build=py311*]`. Where a package came from is not in
the names of files, so channels (and checksums) are read and not compared. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from sksd.proxy.condaversions import Test, parsed_version, version_test
from sksd.proxy.prefixes import normalised

_BEGIN = re.compile(r"^\s*([A-Za-z0-9_][A-Za-z0-9_.-]*)\s*(.*)$", re.DOTALL)
_SIGN = re.compile(r"^(?:[=!<>~]|\*|\()")
_BRACKETS = re.compile(r"^([^\[\]]*)\[(.*)\]\s*$", re.DOTALL)
_PAIR = re.compile(r"""\s*([a-z0-9_]+)\s*=\s*("[^"]*"|'[^']*'|[^\s,"']+)\s*(?:,|$)""")
#: What may stand in brackets and says nothing that can be compared here.
_NOT_COMPARED: Final = frozenset({"channel", "subdir", "url", "md5", "sha256", "fn", "file_name", "license"})


@dataclass(frozen=True, slots=True)
class MatchSpec:
    """`name` as conda and pip packages are both known here. `version` and `build` are None for any."""

    name: str
    version: Test | None
    build: Callable[[str], bool] | None

    def matches(self, version: str, build: str) -> bool:
        """Whether an installed package is one of those meant; a version that is none meets no condition."""
        if self.version is not None:
            try:
                if not self.version(parsed_version(version)):
                    return False
            except ValueError:
                return False
        return self.build is None or self.build(build)


@lru_cache(maxsize=4096)
def match_spec(text: str) -> MatchSpec:
    """`text` read; raises ValueError with the problem, as the end of a sentence."""
    spec = re.sub(r"\s#.*$", "", text).strip()
    keys: dict[str, str] = {}
    bracketed = _BRACKETS.match(spec)
    if bracketed:
        spec, keys = bracketed[1].strip(), _pairs(bracketed[2])
    # CHANNEL::NAME, CHANNEL/SUBDIR::NAME, CHANNEL:NAMESPACE:NAME.
    spec = spec.rpartition(":")[2]
    found = _BEGIN.match(spec)
    if found is None:
        raise ValueError("it does not begin with the name of a package")
    name, rest = found[1], found[2].strip()
    version, build = _version_and_build(rest)
    version, build = keys.get("version", version), keys.get("build", build)
    test = version_test(version) if version and version != "*" else None
    return MatchSpec(normalised(name), test, _build_test(build) if build and build != "*" else None)


def _pairs(text: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    while text.strip():
        pair = _PAIR.match(text)
        if pair is None:
            raise ValueError(f"[{text}] is not KEY=VALUE")
        if pair[1] == "build_number":
            raise ValueError("a build number cannot be compared here: give the build")
        if pair[1] in ("version", "build"):
            keys[pair[1]] = pair[2].strip("\"'")
        elif pair[1] not in _NOT_COMPARED:
            raise ValueError(f"[{pair[1]}] is not known")
        text = text[pair.end() :]
    return keys


def _version_and_build(rest: str) -> tuple[str, str]:
    if not rest:
        return "", ""
    # NAME=VERSION=BUILD and NAME==VERSION=BUILD: both are exact.
    exact = re.match(r"^={1,2}\s*([^\s=<>!~,|]+)\s*=\s*([^\s=<>!~,|]+)$", rest)
    if exact:
        return exact[1], exact[2]
    # Spaces within `>=1, <2` and `> 1` belong to the version; the last one else stands before the build.
    joined = re.sub(r"\s*([,|()])\s*|([=!<>~])\s+", r"\1\2", rest)
    version, _, build = joined.partition(" ")
    if " " in build.strip():
        raise ValueError(f"'{rest}' has more in it than a version and a build")
    if not _SIGN.match(version) and not version[0].isalnum():
        raise ValueError(f"'{rest}' is not a version")
    return version, build.strip()


def _build_test(text: str) -> Callable[[str], bool]:
    if text.startswith("^") and text.endswith("$"):
        raise ValueError("a regular expression cannot be compared here")
    if "*" in text:
        escaped = text.replace("[", "[[]").replace("?", "[?]")
        return lambda build: fnmatchcase(build, escaped)
    return lambda build: build == text
