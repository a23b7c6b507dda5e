"""The journal and the spool, against simple models, and on disks that fail."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, TestCase

from sksd.errors import CannotRead, CannotWrite, DiskFull, SksdError
from sksd.keeper.journal import Dropped, Journal
from sksd.keeper.spool import Spool
from sksd.link.zmtp import Scanner, join
from tests.system.daemon import ROOT

SIZES = {"size": 4000, "memory": 500}
FAR = st.integers(0, 2**30)
MESSAGE = st.lists(st.integers(0, 400), min_size=1, max_size=3).map(lambda sizes: join(map(os.urandom, sizes)))
STEP = st.one_of(
    st.tuples(st.just("append"), st.lists(MESSAGE, max_size=4), FAR),
    st.tuples(st.just("append"), st.lists(MESSAGE, max_size=4), FAR),
    st.tuples(st.just("pin"), st.sampled_from("ab"), FAR),
    st.tuples(st.just("unpin"), st.sampled_from("ab"), FAR),
    st.tuples(st.just("read"), FAR, st.integers(1, 3000)),
    st.tuples(st.just("reopen"), st.none(), FAR),
    st.tuples(st.just("kill"), st.none(), FAR),
)


@contextmanager
def folder() -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix="sksdj"))
    try:
        yield top / "journal"
    finally:
        shutil.rmtree(top, ignore_errors=True)


def whole(journal: Journal) -> bytes:
    """All that it has."""
    found = bytearray()
    while data := journal.read(journal.start + len(found), 700):
        assert len(data) <= 700
        found += data
    return bytes(found)


def small_disk(test: TestCase, where: Path) -> None:
    """A disk of 1 MiB at `where`."""
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(where)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        raise SkipTest("only root can mount a small disk, and not everywhere")
    test.addCleanup(subprocess.run, ["umount", "-l", str(where)], check=True)


class Model:
    """What a journal should say: every byte, and where each message ends."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.journal = Journal(where, **SIZES)
        self.data, self.ends = bytearray(), [0]
        self.rest = b""
        self.scanner = Scanner()
        self.pins: dict[str, int] = {}
        self.longest = 0

    def place(self, far: int) -> int:
        return self.journal.start + far % (self.journal.end - self.journal.start + 1)

    def append(self, messages: list[bytes], far: int) -> None:
        """Some bytes of what the kernel says, wherever they end."""
        self.rest += b"".join(messages)
        piece = self.rest[: far % (len(self.rest) + 1)]
        self.rest = self.rest[len(piece) :]
        _, boundary, count = self.scanner.feed(piece)
        before = len(self.data)
        self.journal.append(piece, boundary, count)
        self.data += piece
        self.longest = max(self.longest, len(piece))
        scanner = Scanner()
        for at in range(self.ends[-1], len(self.data)):
            if scanner.feed(self.data[at : at + 1])[2]:
                self.ends.append(at + 1)
        assert not boundary or self.ends[-1] == before + boundary
        kept, lowest = len(self.data) - self.journal.start, min(self.pins.values(), default=self.ends[-1])
        second = sorted(self.where.iterdir())[1:2]
        assert kept <= SIZES["size"] or not second or int(second[0].name[:20]) > lowest

    def pin(self, name: str, far: int) -> None:
        self.pins[name] = self.place(far)
        self.journal.pin(name, self.pins[name])

    def unpin(self, name: str, _: int) -> None:
        self.pins.pop(name, None)
        self.journal.unpin(name)

    def read(self, far: int, limit: int) -> None:
        at = self.place(far)
        data = self.journal.read(at, limit)
        assert data == self.data[at : min(self.ends[-1], at + len(data))]
        assert len(data) <= limit and (data or at == self.ends[-1])
        assert self.journal.boundary_at_or_before(at) == max(end for end in self.ends if end <= at)

    def reopen(self, _: None, __: int) -> None:
        """As after a kill in the middle of a message: what was begun is cut off, and the kernel says it no more."""
        self.journal.close()
        self.journal = Journal(self.where, **SIZES)
        del self.data[self.ends[-1] :]
        self.rest, self.scanner = b"", Scanner()
        for name, offset in list(self.pins.items()):
            self.pin(name, offset - self.journal.start) if offset <= self.journal.end else self.pins.pop(name)

    def kill(self, _: None, far: int) -> None:
        """The last file ends anywhere."""
        last = sorted(self.where.iterdir())[-1]
        size = far % (last.stat().st_size + 1)
        os.truncate(last, size)
        self.ends = [end for end in self.ends if end <= max(int(last.name[:20]), self.journal.start) + size]
        self.reopen(None, 0)

    def check(self) -> None:
        journal = self.journal
        here = [end for end in self.ends if end >= journal.start]
        assert here[0] == journal.start
        assert (journal.end, journal.partial) == (here[-1], len(self.data) - here[-1])
        assert journal.count == len(self.ends) - 1
        assert journal.dropped == Dropped(here[0], self.ends.index(here[0]))
        assert all(pin >= journal.start for pin in self.pins.values())
        assert journal.lag == journal.end - min(self.pins.values(), default=journal.end)
        assert whole(journal) == self.data[here[0] : here[-1]]
        wanted = [(a, bytes(self.data[a:b])) for a, b in pairwise(here)]
        assert list(journal.messages(journal.start)) == wanted
        assert journal._tail.end - journal._tail.start <= SIZES["memory"] + self.longest


class JournalTests(TestCase):
    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        self.top.mkdir()
        self.where = self.top / "journal"

    def files(self) -> list[Path]:
        return sorted(self.where.iterdir())

    def filled(self, count: int = 30, **options: int) -> Journal:
        """With `count` messages of 300 bytes, one at a time."""
        journal = Journal(self.where, **(SIZES | options))
        for number in range(count):
            self.add(journal, number)
        return journal

    def add(self, journal: Journal, number: int) -> None:
        journal.append(join([bytes([number % 256]) * 292]), 301, 1)

    @settings(max_examples=2000, deadline=None)
    @given(st.lists(STEP, max_size=40))
    def test_as_the_model(self, steps: list[tuple[str, Any, Any]]) -> None:
        """Appended, read, pinned, opened again and killed in any order."""
        with folder() as where:
            model = Model(where)
            for name, *arguments in steps:
                getattr(model, name)(*arguments)
                model.check()
            model.journal.close()

    def test_private(self) -> None:
        """Nobody else reads what a person's code prints."""
        self.filled().close()
        self.assertEqual(stat.S_IMODE(self.where.stat().st_mode), 0o700)
        self.assertEqual({stat.S_IMODE(path.stat().st_mode) for path in self.files()}, {0o600})

    def test_the_tail_needs_no_disk(self) -> None:
        """A reader near the end is served from memory."""
        journal = self.filled()
        for path in self.files():
            path.unlink()
        self.assertEqual(len(journal.read(journal.end - 500, 1000)), 500)
        self.assertRaises(CannotRead, journal.read, journal.start, 1000)
        self.assertRaises(ValueError, journal.read, journal.end + 1, 1)
        self.assertRaises(ValueError, journal.pin, "a", journal.start - 1)

    def test_a_large_message(self) -> None:
        """It makes a segment larger, and comes back whole."""
        journal = Journal(self.where, size=2**24, memory=2**16)
        data = join([b"topic", os.urandom(9 * 2**20)])
        scanner = Scanner()
        for raw in (data, join([b"next"])):
            for at in range(0, len(raw), 65536):
                piece = raw[at : at + 65536]
                journal.append(piece, *scanner.feed(piece)[1:])
        self.assertEqual([message for _, message in journal.messages(0)], [data, join([b"next"])])
        self.assertEqual(journal.boundary_at_or_before(5_000_000), 0)
        self.assertEqual(len(self.files()), 2)

    def test_remove(self) -> None:
        """Nothing is left."""
        self.filled().remove()
        self.assertFalse(self.where.exists())

    def test_messages_while_others_go(self) -> None:
        """The log view goes on where the journal begins now."""
        journal = self.filled(10)
        found = journal.messages(0)
        next(found)
        for number in range(100):
            self.add(journal, number)
        offsets = [offset for offset, _ in found]
        self.assertEqual(offsets[-1], journal.end - 301)
        self.assertEqual(offsets, sorted(set(offsets)))

    # -- what may be in the folder -----------------------------------------------------------------

    def test_foreign_files(self) -> None:
        """They are set aside, once, and the journal is as it was."""
        before = self.filled()
        before.close()
        (self.where / "notes.txt").write_text("x")
        (self.where / "folder").mkdir()
        (self.where / f"{99999:020}-{99:020}").symlink_to("/etc/passwd")
        (self.where / f"{99999:020}-{99:021}").write_text("x")
        for _ in range(2):
            after = Journal(self.where, **SIZES)
            self.assertEqual((after.start, whole(after)), (before.start, whole(before)))
            after.close()
        self.assertEqual(len([path for path in self.files() if path.name.endswith(".aside")]), 4)

    def test_a_damaged_end(self) -> None:
        """The journal goes on behind it: no offset means two things."""
        before = self.filled()
        before.close()
        with self.files()[-1].open("r+b") as file:
            file.write(b"\xff")
        after = Journal(self.where, **SIZES)
        self.assertEqual((after.start, after.end), (before.end, before.end))
        self.add(after, 7)
        self.assertEqual([offset for offset, _ in after.messages(after.start)], [before.end])

    def test_a_damaged_middle(self) -> None:
        """It is skipped to the end of its segment."""
        journal = self.filled()
        offsets = [offset for offset, _ in journal.messages(journal.start)]
        second = int(self.files()[1].name[:20])
        for wrong in (b"\xff", b"\x02\x00\x00\x01"):
            with self.files()[0].open("r+b") as file:
                file.seek(301)
                file.write(wrong)
            found = [offset for offset, _ in journal.messages(journal.start)]
            self.assertEqual(found, [offsets[0], *(offset for offset in offsets if offset >= second)])

    def test_a_gap(self) -> None:
        """What is in front of it is set aside."""
        self.filled(size=8000).close()
        files = self.files()
        self.assertGreater(len(files), 3)
        files[1].unlink()
        after = Journal(self.where, **SIZES)
        self.assertEqual(after.start, int(files[2].name[:20]))
        self.assertTrue(files[0].with_name(f"{files[0].name}.aside").exists())

    def test_killed(self) -> None:
        """kill -9: everything that had been appended is there, and what comes after follows it."""
        program = (
            "import sys; from pathlib import Path\n"
            "from sksd.keeper.journal import Journal; from sksd.link.zmtp import join\n"
            "journal, data = Journal(Path(sys.argv[1]), size=10**7, memory=0), join([b'x' * 292])\n"
            "while True:\n"
            "  journal.append(data + data[:100], 301, 1); journal.append(data[100:], 201, 1)\n"
            "  print(journal.end, flush=True)\n"
        )
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-c", program, str(self.where)], stdout=subprocess.PIPE, env=environ
        ) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline()) for _ in range(200)][-1]
            process.send_signal(signal.SIGKILL)
        journal = Journal(self.where, size=10**7, memory=0)
        self.assertGreaterEqual(journal.end, said)
        self.assertEqual((journal.end % 301, journal.partial, journal.count), (0, 0, journal.end // 301))
        self.assertEqual(whole(journal), join([b"x" * 292]) * journal.count)

    # -- disks that fail ---------------------------------------------------------------------------

    def fails_and_goes_on(self, journal: Journal, mend: Any, wanted: type[SksdError]) -> None:
        """Append until it fails: nothing of that is there; after `mend` the same goes in."""
        big = join([os.urandom(50_000)])
        # Beyond the end of a segment, so that two files are written.
        data, boundary = big + big + big[:40_000], 2 * len(big)
        failed = False
        for _ in range(400):
            before = journal.start, journal.end, journal.partial, journal.count, len(self.files()), whole(journal)
            try:
                journal.append(data, boundary, 2)
            except SksdError as error:
                self.assertIsInstance(error, wanted)
                after = journal.start, journal.end, journal.partial, journal.count, len(self.files()), whole(journal)
                self.assertEqual(before, after)
                failed = True
                break
            journal.append(big[40_000:], len(big) - 40_000, 1)
        self.assertTrue(failed)
        journal.close()
        journal = Journal(self.where, size=2**20, memory=1000)
        self.assertEqual((journal.end, journal.count), (before[1], before[3]))
        mend()
        journal.append(data, boundary, 2)
        self.assertEqual(journal.end, before[1] + boundary)
        self.assertEqual(Scanner().feed(whole(journal))[2], journal.count - journal.dropped.messages)

    def test_file_size_limit(self) -> None:
        """A write that is cut short in the middle."""
        journal = Journal(self.where, size=2**30, memory=1000)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        mend = partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        self.fails_and_goes_on(journal, mend, CannotWrite)

    def test_full_disk(self) -> None:
        """Full, and later it has room again."""
        small_disk(self, self.where)
        (self.where / "x.aside").write_bytes(bytes(250_000))
        journal = Journal(self.where, size=2**20, memory=1000)
        journal.pin("a", 0)
        self.fails_and_goes_on(journal, (self.where / "x.aside").unlink, DiskFull)

    def test_unwritable_folder(self) -> None:
        """A sentence at the start, and at the rotation when the folder is gone."""
        (self.top / "file").write_text("")
        self.assertRaises(CannotWrite, Journal, self.top / "file", **SIZES)
        journal = self.filled(1)
        shutil.rmtree(self.where)
        with self.assertRaises(CannotWrite):
            for number in range(10):
                self.add(journal, number)
        self.where.mkdir()
        end = journal.end
        self.add(journal, 9)
        self.assertEqual(journal.end, end + 301)


class SpoolTests(TestCase):
    @settings(max_examples=2000, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from(["append", "read", "release"]), st.integers(0, 400), FAR), max_size=60),
        st.integers(0, 500),
        st.integers(0, 1000),
    )
    def test_as_the_model(self, steps: list[tuple[str, int, int]], memory: int, disk: int) -> None:
        """First in, first out, across the end of the file and back."""
        with folder() as where:
            where.mkdir()
            spool, data = Spool(where, memory=memory, disk=disk), b""
            for name, size, far in steps:
                at = spool.start + far % (spool.size + 1)
                if name == "append":
                    piece = os.urandom(size)
                    if spool.append(piece):
                        data += piece
                    else:
                        self.assertTrue(spool.size and spool.size + size > disk, "there was room")
                elif name == "read":
                    got = spool.read(at, size)
                    self.assertEqual(got, data[at : at + len(got)])
                    self.assertTrue(got or not size or at == spool.end)
                else:
                    spool.release(at)
                self.assertEqual((spool.end, spool.size), (len(data), len(data) - spool.start))
                self.assertLessEqual(spool.size, max(memory, 400) + disk)
                self.assertEqual(list(where.iterdir()), [])
            while got := spool.read(spool.start, 300):
                self.assertEqual(got, data[spool.start : spool.start + len(got)])
                spool.release(spool.start + len(got))
            self.assertEqual(spool.size, 0)
            spool.close()

    def test_failing_disks(self) -> None:
        """A sentence, and what is there stays."""
        spool = Spool(Path("/nonexistent"), memory=100, disk=100)
        self.assertTrue(spool.append(bytes(100)))
        self.assertRaises(CannotWrite, spool.append, b"x")
        self.assertEqual((spool.read(0, 200), spool.size), (bytes(100), 100))
        self.assertRaises(ValueError, spool.read, 101, 1)
        self.assertRaises(ValueError, spool.release, 101)

    def test_full_disk(self) -> None:
        """The same, when the disk is full."""
        where = Path(self.mktemp())
        small_disk(self, where)
        spool = Spool(where, memory=10, disk=2**22)
        with self.assertRaises(DiskFull):
            while True:
                spool.append(bytes(100_000))
        self.assertEqual(len(spool.read(0, 100_000)), 100_000)
        spool.release(spool.end)
        self.assertTrue(spool.append(bytes(100_000)))
        spool.close()
