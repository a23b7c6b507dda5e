"""An engine's log: what its process writes to its own stdout and stderr, bounded on disk.

The engine holds the file open for appending and outlives the proxy, so the file cannot be replaced. What is beyond
the bound is punched out of its front (fallocate(2), FALLOC_FL_PUNCH_HOLE): the engine goes on appending, no byte is
lost between, and offsets go on counting every byte ever written. Where the file system cannot do that, the file is
emptied instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any, Final

from twisted.internet import inotify
from twisted.logger import Logger
from twisted.python.filepath import FilePath

log = Logger()

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_BLOCK: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def open_log(path: Path) -> int:
    """A descriptor to append to, for the engine's stdout and stderr. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def read_log(path: Path, offset: int, limit: int) -> tuple[bytes, int, int]:
    """(bytes, offset they begin at, size so far) of a log; a negative `offset` counts from the end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b"", 0, 0
    try:
        size = os.fstat(descriptor).st_size
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        if start < size:
            with contextlib.suppress(OSError):
                start = os.lseek(descriptor, start, os.SEEK_DATA)
        return os.pread(descriptor, limit, start), start, size
    finally:
        os.close(descriptor)


def tail(path: Path, lines: int = 20, limit: int = 8192) -> str:
    """The last lines of a log, for a person to read."""
    data, _, _ = read_log(path, -limit, limit)
    return "\n".join(data.decode("utf-8", "replace").strip().splitlines()[-lines:])


def without_banner(text: str) -> str:
    """The end of a log, without what every ipykernel says when it starts."""
    _, banner, after = text.rpartition("    --existing ")
    return after.partition("\n")[2] if banner else text


def bound(path: Path, size: int, kept: int) -> int:
    """Keep a log to `size` bytes of disk; `kept`: where it began the last time. Answers where it begins now."""
    try:
        end = os.stat(path).st_size
    except FileNotFoundError:
        return kept
    if end < kept:
        kept = 0
    if end - kept <= size:
        return kept
    start = (end - size // 2) // _BLOCK * _BLOCK
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        punched = _libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(start))
        if punched != 0:
            os.ftruncate(descriptor, 0)
            return 0
        return start
    finally:
        os.close(descriptor)


class BoundedLogs:
    """Keeps every log it is given to `size` bytes, when it is written to: nothing to do while nobody writes."""

    def __init__(self, reactor: Any, size: int) -> None:
        self._size = size
        self._reactor = reactor
        self._kept: dict[str, int] = {}
        self._notifier: inotify.INotify | None = None

    def resize(self, size: int) -> None:
        """A daemon with another configuration has come."""
        self._size = size
        for path in list(self._kept):
            self._bound(path)

    def add(self, path: Path) -> None:
        """Watch the log at `path`, which exists. Never raises: an engine with a log too large is better than none."""
        self._kept[str(path)] = 0
        try:
            if self._notifier is None:
                notifier = inotify.INotify(self._reactor)
                notifier.startReading()
                self._notifier = notifier
            self._notifier.watch(FilePath(str(path)), mask=inotify.IN_MODIFY, callbacks=[self._written])
        except inotify.INotifyError as error:
            log.warn("the log {path} is not bounded (fs.inotify limits?): {error!r}", path=str(path), error=error)
        self._bound(str(path))

    def remove(self, path: Path) -> None:
        """Watch it no longer; called before the file is removed."""
        if self._kept.pop(str(path), None) is not None and self._notifier is not None:
            with contextlib.suppress(KeyError):
                self._notifier.ignore(FilePath(str(path)))

    def _written(self, _: Any, path: FilePath[str], mask: int) -> None:
        self._bound(path.path if isinstance(path.path, str) else os.fsdecode(path.path))

    def _bound(self, path: str) -> None:
        if path not in self._kept:
            return
        try:
            self._kept[path] = bound(Path(path), self._size, self._kept[path])
        except OSError as error:
            log.warn("the log {path} cannot be bounded: {error}", path=path, error=error)
