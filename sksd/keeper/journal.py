"""A bounded journal of raw messages on disk, which survives the process that writes it.

One engine's output as one stream of bytes, made of whole ZMTP messages (sksd.link.zmtp); offsets count every byte
ever appended. It is kept in segments (sksd.keeper.segments), which begin and, but for the last, end with a message.
Bytes are written as they come, without fsync: a process that is killed loses nothing, a machine that loses power may.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from twisted.logger import Logger

from sksd import paths
from sksd.errors import CannotRead, ZmtpProtocol
from sksd.keeper.blocks import BLOCK, Blocks, Bytes, unreadable, unwritable, write
from sksd.keeper.segments import Segment, create, find, set_aside
from sksd.link.zmtp import Scanner, boundaries

log = Logger()

_SEGMENT: Final = 4 * 2**20
_WINDOW: Final = 2**20


class Dropped(NamedTuple):
    """What has left the journal at its front, ever."""

    bytes: int
    messages: int


class Journal:
    """The journal in `folder`, which is made if need be, and belongs to the journal alone.

    `size`: bytes on disk beyond which the oldest segments go, unless somebody pins them; `memory`: bytes of the tail
    that are kept in memory as well, so that a reader near the end never waits for a disk. What a process before this
    one has left is taken over, but for a message that it had not finished; a file that is none of ours, or damaged,
    is set aside. Nothing goes before the first `append`: pin before it. Raises CannotWrite and DiskFull.

    `end` is where the last whole message ends, `partial` how many bytes of the next one are there already, and
    `count` how many messages have ever been appended.
    """

    def __init__(self, folder: Path, *, size: int, memory: int) -> None:
        self._folder = paths.private(folder)
        self._size = size
        self._memory = memory
        #: A small journal goes in small steps.
        self._segment = max(1, min(_SEGMENT, size // 4))
        self._pins: dict[object, int] = {}
        self._segments: list[Segment] = []
        self._descriptor = -1
        self.end = self._written = self.count = 0
        try:
            self._recover()
        except OSError as error:
            raise unwritable(error, folder) from None
        self._tail = Blocks(self._written, min(BLOCK, memory // 4))

    @property
    def start(self) -> int:
        """The offset of the first message that is still there."""
        return self._segments[0].start

    @property
    def partial(self) -> int:
        """Bytes that were appended after `end`."""
        return self._written - self.end

    @property
    def dropped(self) -> Dropped:
        """What is no longer there."""
        return Dropped(*self._segments[0])

    @property
    def lag(self) -> int:
        """Bytes that the slowest of those who pin has not taken."""
        return self.end - min(self._pins.values(), default=self.end)

    # -- writing -----------------------------------------------------------------------------------

    def append(self, data: Bytes, boundary: int, messages: int) -> None:
        """Put a `Piece` at the end. Raises DiskFull and CannotWrite.

        Then nothing of `data` was taken, and all is as it was before: stop reading where it came from, and append the
        same again later.
        """
        view, last = memoryview(data), self._segments[-1]
        behind = self._written + boundary
        full = boundary > 0 and behind - last.start >= self._segment
        here = boundary if full else len(view)
        following, descriptor = Segment(behind, self.count + messages), -1
        try:
            write(self._descriptor, view[:here], self._written - last.start)
            if full:
                descriptor = create(self._folder, following)
                write(descriptor, view[here:], 0)
        except OSError as error:
            # The new file first: were the process killed between the two, one would not follow the other.
            with contextlib.suppress(OSError):
                if descriptor >= 0:
                    os.close(descriptor)
                    os.unlink(self._folder / following.name)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._written - last.start)
            raise unwritable(error, self._folder) from None
        if full:
            self.close()
            self._descriptor = descriptor
            self._segments.append(following)
        if boundary:
            self.end = behind
            self.count += messages
        self._written += len(view)
        self._tail.append(data)
        self._tail.release(self._written - self._memory)
        self.trim()

    def drop_partial(self) -> None:
        """The rest of an unfinished message will never come: forget its beginning. Harmless without one."""
        if self.partial:
            # What stays behind in the file is written over by the next message, or cut off by who opens it next.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.end - self._segments[-1].start)
            self._tail.truncate(self.end)
            self._written = self.end

    def pin(self, name: object, offset: int) -> None:
        """Keep what is at `offset` and behind it, for whoever calls itself `name`; again: moves its pin."""
        self._check(offset)
        self._pins[name] = offset

    def unpin(self, name: object) -> None:
        """`name` needs nothing any more. Harmless without a pin."""
        self._pins.pop(name, None)

    def trim(self) -> None:
        """Drop the oldest segments that are beyond `size` and not pinned; `append` calls it."""
        pinned = min(self._pins.values(), default=self.end)
        while len(self._segments) > 1 and self._written - self.start > self._size:
            if self._segments[1].start > pinned:
                break
            gone = self._segments.pop(0)
            try:
                os.unlink(self._folder / gone.name)
            except OSError as error:
                log.warn("{path} cannot be dropped: {error}", path=str(self._folder / gone.name), error=error)

    def close(self) -> None:
        """Write no more; what is there stays, for another process. Harmless when closed."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Close, and remove the folder with all that is in it."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- reading -----------------------------------------------------------------------------------

    def read(self, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of whole messages from `offset`, anywhere from `start` to `end`; fewer than there are,
        but none only at `end`. Raises CannotRead, and ValueError for another offset."""
        self._check(offset)
        limit = min(limit, self.end - offset)
        if offset >= self._tail.start:
            return self._tail.read(offset, limit)
        return self._from_disk(offset, limit)

    def boundary_at_or_before(self, offset: int) -> int:
        """Where the message begins that the byte at `offset` belongs to. Raises as `read`."""
        self._check(offset)
        return offset if offset == self.end else self._scan(self._segment_of(offset).start, offset)[0]

    def count_between(self, start: int, stop: int) -> int:
        """How many messages there are from `start` to `stop`, where messages begin: of those that are still there;
        0 where that cannot be read."""
        start, stop = (max(self.start, offset) for offset in (start, stop))
        try:
            return self._number(stop) - self._number(start) if start < stop else 0
        except CannotRead:
            return 0

    def _number(self, offset: int) -> int:
        segment = self._segment_of(offset)
        return segment.number + self._scan(segment.start, offset)[1]

    def messages(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """(offset, raw message) of each message from `offset`, where one begins, to the end.

        What is appended meanwhile comes too, what is dropped meanwhile is skipped, and so is, to the end of its
        segment, what is damaged. Raises CannotRead.
        """
        at, held = offset, bytearray()
        while True:
            if at < self.start:
                at, held = self.start, bytearray()
            segment, have, done = self._segment_of(at), at + len(held), 0
            data = self.read(have, min(_WINDOW, self._end_of(segment) - have))
            if not data and not held:
                return
            held += data
            try:
                for end in boundaries(held):
                    yield at + done, bytes(held[done:end])
                    done = end
                if not data:
                    raise ZmtpProtocol(problem="a message without an end")
            except ZmtpProtocol as error:
                log.warn("{path} is damaged: {error}", path=str(self._folder / segment.name), error=error)
                at, held = self._end_of(segment), bytearray()
                continue
            at += done
            del held[:done]

    def _check(self, offset: int) -> None:
        if not self.start <= offset <= self.end:
            raise ValueError(f"{offset} is not between {self.start} and {self.end}")

    def _segment_of(self, offset: int) -> Segment:
        return self._segments[bisect_right(self._segments, offset, key=lambda segment: segment.start) - 1]

    def _end_of(self, segment: Segment) -> int:
        following = bisect_right(self._segments, segment)
        return self._segments[following].start if following < len(self._segments) else self.end

    def _from_disk(self, offset: int, limit: int) -> bytes:
        segment = self._segment_of(offset)
        path = self._folder / segment.name
        limit = min(limit, self._end_of(segment) - offset)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, limit, offset - segment.start)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unreadable(error, path) from None
        if not data and limit > 0:
            raise CannotRead(path=str(path), problem="it is shorter than it was")
        return data

    def _scan(self, start: int, stop: int) -> tuple[int, int, bool]:
        """(where the last message ends, how many there are, whether all is well) between a message's start and
        `stop`. Raises CannotRead."""
        scanner, at, end, count = Scanner(), start, start, 0
        while at < stop:
            data = self.read(at, min(_WINDOW, stop - at))
            try:
                read, boundary, messages = scanner.feed(data)
            except ZmtpProtocol:
                return end, count, False
            if messages:
                end, count = at + boundary, count + messages
            if read < len(data):
                return end, count, False
            at += len(data)
        return end, count, True

    # -- what another process has left -------------------------------------------------------------

    def _recover(self) -> None:
        self._segments, size = find(self._folder)
        if not self._segments:
            self._begin(Segment(0, 0))
            return
        last = self._segments[-1]
        self.count, self.end = last.number, last.start + size
        # All of it is on disk.
        self._tail = Blocks(self.end)
        try:
            self._descriptor = os.open(self._folder / last.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            end, messages, well = self._scan(last.start, self.end)
        except (OSError, CannotRead):
            end, messages, well = self.end, 0, False
        self.count += messages
        if well:
            os.ftruncate(self._descriptor, end - last.start)
            self.end = self._written = end
            return
        # Behind it, and never at offsets that somebody may have read something else at.
        for segment in self._segments:
            set_aside(self._folder, segment.name, "the last of them is damaged")
        self.close()
        self._begin(Segment(self.end, self.count))

    def _begin(self, segment: Segment) -> None:
        self._descriptor = create(self._folder, segment)
        self._segments = [segment]
        self.end = self._written = segment.start
        self.count = segment.number
