"""A queue of bytes that is taken out in pieces of another size than it was put in, without joining."""

from __future__ import annotations

from collections import deque
from typing import Final

Piece = bytes | bytearray | memoryview

#: Pieces up to this size are put together: an object for each byte would cost forty times the bytes.
_SMALL: Final = 2048


class Chunks:
    """Bytes in order; `size` of them wait."""

    __slots__ = ("_offset", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self._offset = 0
        self.size = 0

    def append(self, data: bytes) -> None:
        """Put `data` at the end."""
        if not data:
            return
        self.size += len(data)
        if len(data) <= _SMALL:
            if len(self._pieces) > 1:
                last = self._pieces[-1]
                # The first piece may have views on it, and a bytearray with views cannot grow.
                if type(last) is bytearray and len(last) <= _SMALL:
                    last += data
                    return
            if self._pieces:
                self._pieces.append(bytearray(data))
                return
        self._pieces.append(data)

    def take(self, most: int, into: list[Piece]) -> int:
        """Move up to `most` bytes from the front to `into`; answers how many."""
        wanted = left = min(most, self.size)
        pieces = self._pieces
        while left:
            head, offset = pieces[0], self._offset
            available = len(head) - offset
            if available <= left:
                into.append(memoryview(head)[offset:] if offset else head)
                pieces.popleft()
                self._offset = 0
                left -= available
            else:
                into.append(memoryview(head)[offset : offset + left])
                self._offset = offset + left
                left = 0
        self.size -= wanted
        return wanted

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._offset = 0
        self.size = 0
