"""How large an environment is and when it was last used: for people who tidy up, and only when they ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from sksd.proxy.prefixes import Prefix

#: Seconds for all environments of a listing together.
DETAIL_LIMIT: Final = 20.0
#: A block of st_blocks, whatever the file system's own (stat(2)).
_BLOCK: Final = 512


def last_use(prefix: Prefix) -> str | None:
    """When its Python was last started, or a package last changed: ISO 8601 in UTC.

    Python reads the folder of its standard library at each start, and folders are no hard links to a package cache.
    Most file systems note it (relatime) to a day's precision; one that is mounted with noatime does not.
    """
    places = [
        os.path.join(prefix.path, "conda-meta"),
        *(os.path.dirname(each) for each in prefix.folders[:1]),
    ]
    newest = 0.0
    for place in places:
        try:
            about = os.stat(place)
        except OSError:
            continue
        newest = max(newest, about.st_mtime, about.st_atime if place != places[0] else 0.0)
    return datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds") if newest else None


def size(path: str, go_on: Callable[[], bool]) -> int | None:
    """Bytes on disk below `path`, a file with several names once; None where `go_on` says that it takes too long.

    Links are not followed, and what cannot be read does not count.
    """
    total = 0
    seen: set[tuple[int, int]] = set()
    folders = [path]
    while folders:
        if not go_on():
            return None
        folder = folders.pop()
        try:
            descriptor = _open(folder)
        except OSError:
            continue
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    about = entry.stat(follow_symlinks=False)
                    key = (about.st_dev, about.st_ino)
                    if about.st_nlink > 1 and key in seen:
                        continue
                    seen.add(key)
                    total += about.st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(os.path.join(folder, entry.name))
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return total


def _open(folder: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        # Looking at it is no use of it.
        return os.open(folder, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(folder, flags)


class Details:
    """Sizes, remembered for as long as the packages of an environment stay the same."""

    def __init__(self, clock: Callable[[], float], limit: float = DETAIL_LIMIT) -> None:
        self._clock = clock
        self._limit = limit
        self._sizes: dict[str, tuple[Prefix, int]] = {}

    def of(
        self, prefixes: Iterable[Prefix], at: Callable[[str], bool]
    ) -> dict[str, tuple[int | None, str | None]]:
        """Path to (bytes, last use) of each; runs in a thread. What does not fit into the limit is None."""
        end = self._clock() + self._limit
        found: dict[str, tuple[int | None, str | None]] = {}
        for prefix in prefixes:
            path = prefix.path

            def go_on(path: str = path) -> bool:
                return at(path) and self._clock() < end

            if not go_on():
                found[path] = (None, None)
                continue
            used = last_use(prefix)
            known = self._sizes.get(path)
            if known is None or known[0] != prefix:
                bytes_there = size(path, go_on)
                if bytes_there is None:
                    found[path] = (None, used)
                    continue
                known = self._sizes[path] = (prefix, bytes_there)
            found[path] = (known[1], used)
        return found
