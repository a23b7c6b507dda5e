"""What a relay leaves when it is killed, so that the next one goes on with its link: a private folder.

`link.json` says which link that is (with its ticket: a secret). `streams` is a table mapped into memory: for each
stream, how many bytes the front end was given. `in-N-BASE` is what was read from the front end of stream N from its
byte BASE on. `lock` is locked for as long as the relay lives. Nothing is synced to disk: it outlives
a program, not a machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
from pathlib import Path
from typing import Final

import msgspec
from twisted.logger import Logger

from sksd import paths
from sksd.errors import CannotWrite, StateInUse, StateOfAnother
from sksd.link.core import CHANNELS
from sksd.link.hello import Hello
from sksd.link.limits import MAX_STREAMS
from sksd.link.restart import Before, Past
from sksd.wire.messages import Ticket

log = Logger()

_VERSION: Final = 1
_LINK: Final = "link.json"
_STREAMS: Final = "streams"
_LOCK: Final = "lock"
_TAKEN: Final = re.compile(r"in-([0-9]{1,10})-([0-9]{1,16})")
#: The table is made of u64: `_MAGIC` and the last stream's number, then for each stream number (0: none), channel,
#: process, the stream that it goes on for, and bytes given.
_MAGIC: Final = 0x736B73642D310001
_HEAD: Final = 2
_ROW: Final = 5
_CELLS: Final = _HEAD + _ROW * MAX_STREAMS
#: A file of what was taken is begun anew when it is so long, and half of it is no longer needed.
_TRIM: Final = 1024 * 1024


class Kept(msgspec.Struct, kw_only=True, frozen=True):
    """`link.json`. `host` and `wanted`: what the person named; `file`: the connection file."""

    version: int = _VERSION
    hello: Hello
    ticket: Ticket
    transport: str
    ports: dict[str, int]
    host: str
    wanted: str
    file: str


class RelayState:
    """The state of one relay (a `sksd.link.link.Keep`), locked until `release` or `remove`.

    `kept` is None in a new one: call `begin` before the first stream. Raises StateInUse, StateOfAnother, CannotWrite.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: Kept | None = None
        self._files: dict[int, _Taken] = {}
        self._rows: dict[int, int] = {}
        self._broken = False
        #: iopub streams of the program before, and whose they were, latest first.
        self._heirs: list[tuple[int, int]] = []
        try:
            self._lock = _lock(folder)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self._read()
            self._open_table()
        except OSError as error:
            self.release()
            raise self._unwritable(error) from None
        except BaseException:
            self.release()
            raise

    def begin(self, kept: Kept) -> None:
        """This is the link. Raises CannotWrite."""
        try:
            paths.write_private(self.folder / _LINK, msgspec.json.encode(kept))
        except OSError as error:
            raise self._unwritable(error) from None
        self.kept = kept

    def before(self) -> Before:
        """What the program before has left. Call it once. Raises CannotWrite."""
        streams = []
        try:
            for row in range(_HEAD, _CELLS, _ROW):
                number, channel, who, after, handed = self._cells[row : row + _ROW].tolist()
                if not number:
                    continue
                self._rows[number] = row
                taken = self._files[number] = _Taken.found(self.folder, number)
                name = CHANNELS[channel]
                streams.append(Past(number, name, taken.base, taken.read(), handed, after))
                if name == "iopub" and who:
                    self._heirs.append((number, who))
        except OSError as error:
            raise self._unwritable(error) from None
        self._heirs.sort(reverse=True)
        return Before(tuple(sorted(streams)), self._cells[1])

    # -- sksd.link.link.Keep -----------------------------------------------------------------------

    def heir(self, channel: str, who: int) -> int:
        """As in Keep."""
        mine = [number for number, owner in self._heirs if owner == who and channel == "iopub"]
        self._heirs = [(number, owner) for number, owner in self._heirs if number not in mine[:1]]
        return mine[0] if mine else 0

    def opened(self, stream: int, channel: str, who: int, after: int) -> None:
        """As in Keep."""
        cells = self._cells
        # As many as there may be streams on a link.
        row = self._rows[stream] = next(row for row in range(_HEAD, _CELLS, _ROW) if not cells[row])
        for place, value in enumerate((CHANNELS.index(channel), who, after, 0), 1):
            cells[row + place] = value
        cells[1] = stream
        cells[row] = stream

    def took(self, stream: int, data: bytes) -> None:
        """As in Keep. Where nothing can be written the relay goes on, but another could not."""
        if self._broken:
            return
        try:
            taken = self._files.get(stream)
            if taken is None:
                taken = self._files[stream] = _Taken.new(self.folder, stream, 0, b"")
            taken.append(data)
        except OSError as error:
            self._broken = True
            log.warn("nothing can be kept in {folder}: {error}", folder=str(self.folder), error=str(error))
            with contextlib.suppress(OSError):
                (self.folder / _LINK).unlink()

    def handed(self, stream: int, size: int) -> None:
        """As in Keep."""
        self._cells[self._rows[stream] + 4] += size

    def passed(self, stream: int, size: int) -> None:
        """As in Keep."""
        taken = self._files.get(stream)
        if taken is None or self._broken:
            return
        taken.passed += size
        if taken.size > _TRIM and taken.passed * 2 > taken.size:
            # What cannot be made shorter stays as it is.
            with contextlib.suppress(OSError):
                base = taken.base + taken.passed
                shorter = _Taken.new(self.folder, stream, base, taken.read()[taken.passed :])
                taken.remove()
                self._files[stream] = shorter

    def over(self, stream: int) -> None:
        """As in Keep."""
        row = self._rows.pop(stream, None)
        if row is not None:
            self._cells[row] = 0
        taken = self._files.pop(stream, None)
        if taken is not None:
            taken.remove()

    # ----------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Leave it for another relay. Harmless when done before."""
        for taken in self._files.values():
            taken.close()
        self._files.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """The link is over: nothing of it is left. Harmless when done before."""
        if self._lock >= 0:
            # The link first, without which the rest is nothing; the lock last, so that nobody comes in between.
            with contextlib.suppress(OSError):
                ours = filter(_is_ours, os.listdir(self.folder))
                for name in sorted(ours, key=lambda name: (name == _LOCK, name != _LINK)):
                    (self.folder / name).unlink(missing_ok=True)
                self.folder.rmdir()
        self.release()

    def leave(self) -> None:
        """`release` it when there is something in it, else `remove` it."""
        if self.kept is None:
            self.remove()
        self.release()

    def _read(self) -> None:
        names = os.listdir(self.folder)
        strange = [name for name in names if not _is_ours(name)]
        if strange:
            raise StateOfAnother(path=str(self.folder), problem=f"holds something else ({strange[0]})")
        if _LINK not in names:
            # A relay was killed before it had a link, or could not keep it.
            for name in names:
                if name != _LOCK:
                    (self.folder / name).unlink()
            return
        try:
            kept = msgspec.json.decode(paths.read_private(self.folder / _LINK, 65536), type=Kept)
        except msgspec.MsgspecError:
            raise StateOfAnother(path=str(self.folder), problem="is not the state of a relay") from None
        if kept.version != _VERSION:
            raise StateOfAnother(path=str(self.folder), problem="is of another version of sksd")
        self.kept = kept

    def _open_table(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.folder / _STREAMS, flags, 0o600)
        try:
            os.ftruncate(descriptor, _CELLS * 8)
            self._cells = memoryview(mmap.mmap(descriptor, _CELLS * 8)).cast("Q")
        finally:
            os.close(descriptor)
        if self._cells[0] not in (0, _MAGIC):
            raise StateOfAnother(path=str(self.folder), problem="is of another version of sksd")
        self._cells[0] = _MAGIC

    def _unwritable(self, error: OSError) -> CannotWrite:
        return CannotWrite(host="this machine", path=str(self.folder), problem=error.strerror or str(error))


class _Taken:
    """A file with the bytes of a stream from `base` on; `passed` of them are no longer needed."""

    def __init__(self, path: Path, base: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self.base = base
        self.passed = 0
        self._path = path
        self._descriptor = os.open(path, flags, 0o600)
        self.size = os.fstat(self._descriptor).st_size

    @classmethod
    def new(cls, folder: Path, stream: int, base: int, data: bytes) -> _Taken:
        path = folder / f"in-{stream}-{base}"
        if data:
            # Whole or not at all: the file with the highest base counts.
            paths.write_private(path, data)
        return cls(path, base)

    @classmethod
    def found(cls, folder: Path, stream: int) -> _Taken:
        bases = []
        for name in os.listdir(folder):
            match = _TAKEN.fullmatch(name)
            if match is not None and int(match[1]) == stream:
                bases.append(int(match[2]))
        for old in sorted(bases)[:-1]:
            (folder / f"in-{stream}-{old}").unlink()
        return cls.new(folder, stream, max(bases, default=0), b"")

    def append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            count = os.write(self._descriptor, left)
            self.size += count
            left = left[count:]

    def read(self) -> bytes:
        return os.pread(self._descriptor, self.size, 0)

    def remove(self) -> None:
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._descriptor)


def _is_ours(name: str) -> bool:
    # write_private's unfinished files have a dot before and something behind.
    whole = re.sub(r"^\.(.*)\.[^.]*$", r"\1", name)
    return whole in (_LINK, _STREAMS, _LOCK) or _TAKEN.fullmatch(whole) is not None


def _lock(folder: Path) -> int:
    """A descriptor that holds the lock. Raises StateInUse and OSError."""
    if folder.exists() and not folder.is_dir():
        raise StateOfAnother(path=str(folder), problem="is no folder")
    if not folder.exists():
        folder.mkdir(mode=0o700)
    elif not all(map(_is_ours, os.listdir(folder))):
        # Before anything is put into it, or its mode is changed.
        raise StateOfAnother(path=str(folder), problem="holds something else")
    paths.private(folder)
    while True:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(folder / _LOCK).st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise StateInUse(path=str(folder)) from None
        except FileNotFoundError:
            # Its relay has just removed it.
            pass
        os.close(descriptor)
