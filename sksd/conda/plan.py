"""What a change will do, package by package. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sksd.conda.messages import Action, ActionName
from sksd.conda.secrets import mask


def actions(
    before: Mapping[str, Action], after: Mapping[str, Action], newer: Callable[[str, str], bool]
) -> list[Action]:
    """The way from `before` to `after`, packages by name (their `action` and `old_version` are not looked at).

    `newer(a, b)`: whether version `a` comes after `b` in conda's order.
    """
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if new is None:
            assert old is not None
            found.append(_as("remove", old))
        elif old is None:
            found.append(_as("install", new))
        elif (old.version, old.build) != (new.version, new.build):
            kind: ActionName = "reinstall"
            if old.version != new.version:
                kind = "upgrade" if newer(new.version, old.version) else "downgrade"
            found.append(_as(kind, new, old.version))
    return found


def _as(kind: ActionName, package: Action, old: str = "") -> Action:
    return Action(
        action=kind,
        name=package.name,
        version=package.version,
        build=package.build,
        channel=mask(package.channel),
        size=None if kind == "remove" else package.size,
        old_version=old,
    )
