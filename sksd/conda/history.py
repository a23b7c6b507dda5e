"""conda-meta/history: what conda did to an environment, and which specs a person asked for.

conda reads from it what it must keep: without it a later `conda remove` would take every package away. Pure: text in,
text out. The format is that of conda/history.py.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterable
from typing import Final

_SPECS: Final = re.compile(r"#\s*(\w+)\s*specs:\s*(.+)?")
_NAME: Final = re.compile(r"\s*(?:[^\s]*::)?\s*([A-Za-z0-9_][A-Za-z0-9_.-]*|\*)")
_UPDATES: Final = frozenset({"update", "install", "create"})
_REMOVALS: Final = frozenset({"remove", "uninstall"})


def name_of(spec: str) -> str:
    """The package that a MatchSpec is about, lower case; empty where it names none."""
    match = _NAME.match(spec)
    return match.group(1).lower() if match else ""


def requested(text: str) -> dict[str, str]:
    """The specs that a person asked for, by package, as conda reads them; some may not be installed any more."""
    found: dict[str, str] = {}
    for comments in _blocks(text):
        if not any(re.match(r"#\s*cmd:\s*\S", line) for line in comments):
            continue
        item: dict[str, list[str]] = {}
        for line in comments:
            match = _SPECS.match(line)
            if match is None:
                continue
            kind = match.group(1)
            kind = "update" if kind in _UPDATES else "remove" if kind in _REMOVALS else kind
            # A later line of the same kind in one block replaces the earlier one, as in conda.
            if specs := _listed(match.group(2) or ""):
                item[kind] = specs
        for spec in item.get("remove", ()):
            found.pop(name_of(spec), None)
        for spec in (*item.get("update", ()), *item.get("neutered", ())):
            found[name_of(spec)] = spec
    found.pop("", None)
    return found


def installed(text: str) -> set[str]:
    """The distributions (`conda-forge/noarch::six-1.17-py_0`) that are installed according to the history."""
    state: set[str] = set()
    fresh: set[str] = set()
    for line in [*map(str.strip, text.splitlines()), "==> end <=="]:
        if line.startswith("==>"):
            # A block without signs is a whole state, as conda wrote it long ago.
            state = fresh or state
            fresh = set()
        elif line.startswith("-"):
            state = state - {line[1:]}
        elif line.startswith("+"):
            state = state | {line[1:]}
        elif line and not line.startswith("#"):
            fresh.add(line)
    return state


def block(
    when: float,
    command: str,
    before: Iterable[str],
    after: Iterable[str],
    update: Iterable[str] = (),
    remove: Iterable[str] = (),
) -> str:
    """What is appended after a change. `when`: seconds since the epoch; `before` and `after`: distributions;
    `update`, `remove`: the specs asked for. `command` stands for conda's own command line: one line, no secrets."""
    old, new = set(before), set(after)
    lines = [f"==> {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))} <==", f"# cmd: {command}"]
    lines += [f"-{dist}" for dist in sorted(old - new)]
    lines += [f"+{dist}" for dist in sorted(new - old)]
    for kind, specs in (("update", list(update)), ("remove", list(remove))):
        if specs:
            lines.append(f"# {kind} specs: {specs!r}")
    return "\n".join(lines) + "\n"


def _blocks(text: str) -> list[list[str]]:
    blocks: list[list[str]] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("==>"):
            blocks.append([])
        elif line.startswith("#") and blocks:
            blocks[-1].append(line)
    return blocks


def _listed(text: str) -> list[str]:
    if text.startswith("["):
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return []
        specs = [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
    else:
        specs = []
        for part in text.split(","):
            # Before conda 4.5: "python >=3,<4,six", where a comma separates specs and bounds alike.
            if specs and re.match(r"\s*[<>=!~]", part):
                specs[-1] += f",{part}"
            else:
                specs.append(part.strip())
    return [spec for spec in specs if spec and not spec.endswith("@")]
