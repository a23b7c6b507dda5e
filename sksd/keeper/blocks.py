"""Bytes at offsets: in memory, and written to a file whole or not at all."""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path
from typing import Final

from sksd.errors import CannotRead, CannotWrite, DiskFull

Bytes = bytes | bytearray | memoryview

#: Small pieces are put together up to this size: an object for each would cost more than the bytes.
BLOCK: Final = 65536


class Blocks:
    """Bytes from `start` to `end`: put at the end, forgotten from the front, read anywhere between.

    `block`: how much is put together, and forgotten at once.
    """

    def __init__(self, start: int = 0, block: int = BLOCK) -> None:
        self._block = block
        self._blocks: deque[bytes | bytearray] = deque()
        self.start = self.end = start

    def append(self, data: Bytes) -> None:
        """Put `data`, which is copied unless it is bytes, at the end."""
        last = self._blocks[-1] if self._blocks else b""
        if type(last) is bytearray and len(last) + len(data) <= self._block:
            last += data
        elif data:
            self._blocks.append(bytearray(data) if len(data) < self._block // 2 else bytes(data))
        self.end += len(data)

    def read(self, offset: int, limit: int) -> bytes:
        """The bytes from `offset`, which is between `start` and `end`: `limit`, or what there is."""
        stop = min(offset + limit, self.end)
        parts: list[bytes | bytearray] = []
        at = self.end
        for block in reversed(self._blocks):
            begin = at - len(block)
            if begin < stop and at > offset:
                parts.append(block[max(offset - begin, 0) : stop - begin])
            if begin <= offset:
                break
            at = begin
        return b"".join(reversed(parts))

    def truncate(self, end: int) -> None:
        """Forget what is at `end`, which is not before `start`, and behind it."""
        while self._blocks and self.end - len(self._blocks[-1]) >= end:
            self.end -= len(self._blocks.pop())
        if self.end > end:
            self._blocks[-1] = self._blocks[-1][: len(self._blocks[-1]) - (self.end - end)]
        self.end = end
        self.start = min(self.start, end)

    def release(self, up_to: int) -> None:
        """Forget the blocks that end at or before `up_to`."""
        while self._blocks and self.start + len(self._blocks[0]) <= up_to:
            self.start += len(self._blocks.popleft())


def write(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of `data` at `position`. Raises OSError; part of it may be there then."""
    while data:
        done = os.pwrite(descriptor, data, position)
        data, position = data[done:], position + done


def unwritable(error: OSError, path: Path) -> DiskFull | CannotWrite:
    """What to raise when `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(path=str(path))
    return CannotWrite(path=str(path), problem=error.strerror or str(error))


def unreadable(error: OSError, path: Path) -> CannotRead:
    """What to raise when `path` could not be read."""
    return CannotRead(path=str(path), problem=error.strerror or str(error))
