"""What one end has sent and the other has not acknowledged: kept to be sent again after a cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sksd.link.chunks import Piece


class Retained:
    """Whole sequenced frames, oldest first; `size` bytes of them. Positions count sequenced bytes, as ACK does."""

    __slots__ = ("_again", "_frames", "_start", "size")

    def __init__(self) -> None:
        self._start = 0
        self.size = 0
        self._frames: deque[tuple[int, Sequence[Piece]]] = deque()
        #: Frames that are to be sent again, before anything new.
        self._again: deque[tuple[int, Sequence[Piece]]] = deque()

    @property
    def replaying(self) -> int:
        """Frames that are still to be sent again."""
        return len(self._again)

    def append(self, size: int, pieces: Sequence[Piece]) -> None:
        """One frame of `size` bytes leaves now."""
        self._frames.append((size, pieces))
        self.size += size

    def release(self, upto: int) -> None:
        """The other end has everything before `upto`."""
        frames = self._frames
        while frames and self._start + frames[0][0] <= upto:
            count = frames.popleft()[0]
            self._start += count
            self.size -= count

    def rewind(self, to: int) -> bool:
        """Everything from `to` on is to be sent again; False where no frame begins there."""
        self.release(to)
        if self._start != to:
            return False
        self._again = deque(self._frames)
        return True

    def replay(self, limit: int, into: list[Piece]) -> int:
        """Put frames that are to be sent again into `into`, `limit` bytes or a frame more; answers how many bytes."""
        size = 0
        while self._again and size < limit:
            count, pieces = self._again.popleft()
            into.extend(pieces)
            size += count
        return size

    def clear(self) -> None:
        """Forget everything, and count from 0 again."""
        self._frames.clear()
        self._again.clear()
        self._start = self.size = 0
