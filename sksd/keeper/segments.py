"""The files of a journal: START-NUMBER, the offset of the first byte and how many messages there were before it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from twisted.logger import Logger

log = Logger()

_NAME: Final = re.compile(r"(\d{20})-(\d{20})")
_ASIDE: Final = ".aside"


class Segment(NamedTuple):
    """One file."""

    start: int
    number: int

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return f"{self.start:020}-{self.number:020}"


def create(folder: Path, segment: Segment) -> int:
    """A descriptor of a new, empty file. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(folder / segment.name, flags, 0o600)


def find(folder: Path) -> tuple[list[Segment], int]:
    """The newest segments that follow one another without a gap, oldest first, and the last one's size.

    Whatever else is in the folder is set aside. Raises OSError.
    """
    sizes: dict[Segment, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                sizes[Segment(int(match[1]), int(match[2]))] = entry.stat().st_size
            elif not entry.name.endswith(_ASIDE):
                set_aside(folder, entry.name, "it is no segment")
    found = sorted(sizes)
    # Of a rotation that came no further, or was undone.
    while len(found) > 1 and not sizes[found[-1]]:
        os.unlink(folder / found.pop().name)
    chain: list[Segment] = []
    for segment in reversed(found):
        # One may be longer than it should: what an append that failed has left there.
        if not chain or segment.start < chain[0].start <= segment.start + sizes[segment]:
            chain.insert(0, segment)
        else:
            set_aside(folder, segment.name, "what follows it is missing")
    return chain, sizes[chain[-1]] if chain else 0


def set_aside(folder: Path, name: str, problem: str) -> None:
    """Rename a file that is no use, and say so in the log; the journal's removal takes it along."""
    log.warn("{path} is set aside: {problem}", path=str(folder / name), problem=problem)
    try:
        os.rename(folder / name, folder / f"{name}{_ASIDE}")
    except OSError as error:
        log.warn("{path} cannot be set aside: {error}", path=str(folder / name), error=error)
