"""Whose turn it is to change an environment: one change of a prefix at a time, and not too many in all. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from attrs import define, field

#: Changes of different environments at once: each is a process that computes, and they share disk and network.
AT_ONCE: Final = 4
#: Changes that wait, in all.
MOST_WAITING: Final = 256


@define
class Turns:
    """Tasks in the order in which they came; each holds the places (prefixes) that nobody else may change."""

    at_once: int = AT_ONCE
    running: dict[Hashable, frozenset[str]] = field(factory=dict)
    waiting: dict[Hashable, frozenset[str]] = field(factory=dict)

    def ask(self, task: Hashable, places: frozenset[str]) -> bool:
        """Whether `task` may begin now; otherwise it waits."""
        self.waiting[task] = places
        return task in self._begin()

    def over(self, task: Hashable) -> list[Hashable]:
        """`task` has ended, or waits no longer; answers those whose turn has come."""
        self.running.pop(task, None)
        self.waiting.pop(task, None)
        return self._begin()

    def full(self) -> bool:
        """Whether no more may wait."""
        return len(self.waiting) >= MOST_WAITING

    def in_the_way(self, task: Hashable) -> bool:
        """Whether a waiting task waits for one of its own places, not just for its turn."""
        places = self.waiting.get(task, frozenset())
        return any(places & others for others in self.running.values())

    def _begin(self) -> list[Hashable]:
        """Who came first to a place has it first, though others may overtake for another place."""
        begun: list[Hashable] = []
        wanted: set[str] = set()
        for task, places in list(self.waiting.items()):
            taken = wanted.union(*self.running.values())
            if len(self.running) < self.at_once and not places & taken:
                self.running[task] = self.waiting.pop(task)
                begun.append(task)
            else:
                wanted |= places
        return begun
