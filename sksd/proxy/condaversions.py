"""Conda's order of versions, and what a version in a conda spec takes.

Conda's documentation has both ("Package match specifications", and the class VersionOrder); a test holds every
answer against rattler's own. Pure, and quick: a comparison of an environment starts no process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, total_ordering
from itertools import zip_longest
from typing import Final, TypeAlias

#: A component as conda compares it: numbers after letters, `post` after everything, `dev` before.
_Part: TypeAlias = tuple[int, int, str]
_ZERO: Final[_Part] = (2, 0, "")
_VALID = re.compile(r"^[.+!_0-9a-z]+$")
_RUNS = re.compile(r"[0-9]+|[^0-9]+")
_OPERATORS = ("==", "!=", "<=", ">=", "~=", "=", "<", ">")
#: Alternatives and conditions of one spec: nobody has that many.
_MOST_CONDITIONS: Final = 200

Test: TypeAlias = "Callable[[Version], bool]"


@total_ordering
class Version:
    """A version of a conda package. Raises ValueError for a text that conda would not take."""

    __slots__ = ("_local", "_main")

    def __init__(self, text: str) -> None:
        given, text = text, text.strip().lower()
        if "-" in text and "_" not in text:
            text = text.replace("-", "_")
        if not _VALID.match(text):
            raise ValueError(f"'{given}' is not a version")
        epoch, mark, rest = text.rpartition("!")
        rest, plus, local = rest.partition("+")
        if (mark and not epoch.isdigit()) or not rest or (plus and not local) or "+" in local:
            raise ValueError(f"'{given}' is not a version")
        main = rest.rstrip("_").replace("_", ".").split(".") if rest.rstrip("_") else []
        if not main or not all(main):
            raise ValueError(f"'{given}' is not a version")
        if rest.endswith("_"):
            # As openssl's 1.0.1_, which is older than 1.0.1a.
            main[-1] += "_"
        parts = local.replace("_", ".").split(".") if local else []
        if not all(parts):
            raise ValueError(f"'{given}' is not a version")
        self._main = [_parsed(epoch or "0"), *map(_parsed, main)]
        self._local = [_parsed(part) for part in parts]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and not _before(self, other) and not _before(other, self)

    def __lt__(self, other: Version) -> bool:
        return _before(self, other)

    def __hash__(self) -> int:
        return hash(tuple(tuple(_stripped(part)) for part in _stripped_parts(self._main)))

    def startswith(self, other: Version) -> bool:
        """Whether `other` is a beginning of it, as `3.11` is of `3.11.7` and not of `3.110`."""
        mine, theirs = self._main, other._main
        if other._local:
            if not _same(mine, theirs):
                return False
            mine, theirs = self._local, other._local
        last = len(theirs) - 1
        if not _same(mine[:last], theirs[:last]):
            return False
        here, there = (mine[last] if len(mine) > last else []), theirs[last]
        end = len(there) - 1
        if not _same([here[:end]], [there[:end]]):
            return False
        one, two = (here[end] if len(here) > end else _ZERO), there[end]
        if two[0] == 1:
            return one[0] == 1 and one[2].startswith(two[2])
        return one == two

    def first(self, count: int) -> Version:
        """Its first `count` components, epoch apart."""
        shorter = object.__new__(Version)
        shorter._main, shorter._local = self._main[: count + 1], []
        return shorter

    def components(self) -> int:
        """How many there are, without the epoch and what follows a `+`."""
        return len(self._main) - 1


def _parsed(text: str) -> list[_Part]:
    parts = [_part(run) for run in _RUNS.findall(text)]
    # Numbers and letters take turns, numbers first.
    return parts if text[0].isdigit() else [_ZERO, *parts]


def _part(run: str) -> _Part:
    if run.isdigit():
        return 2, int(run), ""
    return {"post": (3, 0, ""), "dev": (0, 0, "")}.get(run, (1, 0, run))


def _before(one: Version, two: Version) -> bool:
    for mine, theirs in ((one._main, two._main), (one._local, two._local)):
        for left, right in zip_longest(mine, theirs, fillvalue=()):
            for a, b in zip_longest(left, right, fillvalue=_ZERO):
                if a != b:
                    return a < b
    return False


def _same(mine: list[list[_Part]], theirs: list[list[_Part]]) -> bool:
    pairs = zip_longest(mine, theirs, fillvalue=())
    return all(a == b for left, right in pairs for a, b in zip_longest(left, right, fillvalue=_ZERO))


def _stripped(part: list[_Part]) -> list[_Part]:
    while part and part[-1] == _ZERO:
        part = part[:-1]
    return part


def _stripped_parts(parts: list[list[_Part]]) -> list[list[_Part]]:
    while parts and not _stripped(parts[-1]):
        parts = parts[:-1]
    return parts


@lru_cache(maxsize=4096)
def parsed_version(text: str) -> Version:
    """`Version(text)`, remembered: environments have many versions in common. Raises ValueError."""
    return Version(text)


@lru_cache(maxsize=4096)
def version_test(text: str) -> Test:
    """What tells whether a version meets `text`, as `>=3.1,<3.2|4.*`. Raises ValueError with the problem.

    `|` is weaker than `,`; parentheses group.
    """
    tokens = [token for token in re.split(r"([(),|])", text.replace(" ", "")) if token]
    if len(tokens) > _MOST_CONDITIONS:
        raise ValueError("it has too many conditions")
    test, rest = _either(tokens)
    if rest:
        raise ValueError(f"there is a '{rest[0]}' too many in '{text}'")
    return test


def _either(tokens: list[str]) -> tuple[Test, list[str]]:
    test, tokens = _both(tokens)
    while tokens and tokens[0] == "|":
        other, tokens = _both(tokens[1:])
        test = _any(test, other)
    return test, tokens


def _both(tokens: list[str]) -> tuple[Test, list[str]]:
    test, tokens = _one(tokens)
    while tokens and tokens[0] == ",":
        other, tokens = _one(tokens[1:])
        test = _all(test, other)
    return test, tokens


def _one(tokens: list[str]) -> tuple[Test, list[str]]:
    if not tokens or tokens[0] in "),|":
        raise ValueError("a condition is missing")
    if tokens[0] != "(":
        return _condition(tokens[0]), tokens[1:]
    test, rest = _either(tokens[1:])
    if not rest or rest[0] != ")":
        raise ValueError("a parenthesis is not closed")
    return test, rest[1:]


def _any(one: Test, two: Test) -> Test:
    return lambda version: one(version) or two(version)


def _all(one: Test, two: Test) -> Test:
    return lambda version: one(version) and two(version)


def _condition(text: str) -> Test:
    if text == "*":
        return lambda _: True
    sign = next((each for each in _OPERATORS if text.startswith(each)), "")
    rest = text[len(sign) :]
    if rest.startswith(_OPERATORS) or not rest:
        raise ValueError(f"'{text}' is not a condition")
    if rest == "*" and sign in ("=", "==", ">="):
        return lambda _: True
    begins = rest.endswith("*")
    if begins:
        rest = rest.rstrip("*").rstrip(".")
    if "*" in rest or not rest:
        raise ValueError(f"'{text}' has a * elsewhere than at its end")
    wanted = Version(rest)
    match sign:
        case "=":
            return lambda version: version.startswith(wanted)
        case "==" | "" if begins:
            return lambda version: version.startswith(wanted)
        case "==" | "":
            return lambda version: version == wanted
        case "!=" if begins:
            return lambda version: not version.startswith(wanted)
        case "!=":
            return lambda version: version != wanted
        case ">=":
            return lambda version: version >= wanted
        case ">":
            return lambda version: version > wanted
        case "<":
            return lambda version: version < wanted
        case "<=":
            return lambda version: version <= wanted
    if wanted.components() < 2:
        raise ValueError(f"'{text}' needs two numbers at least, as ~=1.2")
    series = wanted.first(wanted.components() - 1)
    return lambda version: version >= wanted and version.startswith(series)
