"""Bytes that wait for one reader who is away: in memory, then on disk, both bounded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, Any

from sksd.keeper.blocks import Blocks, Bytes, unreadable, unwritable, write


class Spool:
    """Bytes from `start` to `end`, first in, first out; offsets count every byte ever appended.

    Up to `memory` bytes are in memory. What comes when these are taken goes to a file without a name in `folder`, of
    at most `disk` bytes, until the reader has taken everything; nothing of it outlives the process. When nothing
    waits, a piece of any length is taken.
    """

    def __init__(self, folder: Path, *, memory: int, disk: int) -> None:
        self._folder = folder
        self._memory = memory
        self._disk = disk
        self._blocks = Blocks()
        #: The byte at `offset` stands at `offset % disk`.
        self._file: IO[Any] | None = None
        self.start = self.end = 0

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self.end - self.start

    def append(self, data: Bytes) -> bool:
        """Put `data` at the end; False: there is no room, and nothing of it was taken.

        Raises DiskFull and CannotWrite, and then nothing of it was taken either. In each case ask again later, when
        the reader has released something or the disk has room.
        """
        if not data:
            return True
        # One that is larger than all there is room for must come through, too.
        if not self.size or (self._blocks.end == self.end and self.size + len(data) <= self._memory):
            self._blocks.append(data)
        elif self.end - max(self.start, self._blocks.end) + len(data) <= self._disk:
            try:
                self._write(memoryview(data))
            except OSError as error:
                raise unwritable(error, self._folder) from None
        else:
            return False
        self.end += len(data)
        return True

    def read(self, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes from `offset`; fewer than there are, but none only at the end. Raises CannotRead."""
        if not self.start <= offset <= self.end:
            raise ValueError(f"{offset} is not between {self.start} and {self.end}")
        if offset < self._blocks.end:
            return self._blocks.read(offset, limit)
        limit = min(limit, self.end - offset)
        if self._file is None or limit <= 0:
            return b""
        position = offset % self._disk
        try:
            return os.pread(self._file.fileno(), min(limit, self._disk - position), position)
        except OSError as error:
            raise unreadable(error, self._folder) from None

    def release(self, up_to: int) -> None:
        """The reader has everything before `up_to`."""
        if not self.start <= up_to <= self.end:
            raise ValueError(f"{up_to} is not between {self.start} and {self.end}")
        self.start = up_to
        self._blocks.release(up_to)
        if up_to == self.end:
            self._blocks = Blocks(up_to)
            self.close()

    def close(self) -> None:
        """Forget what is on disk."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, data: memoryview) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        position = self.end % self._disk
        before_the_wrap = self._disk - position
        write(self._file.fileno(), data[:before_the_wrap], position)
        write(self._file.fileno(), data[before_the_wrap:], 0)
