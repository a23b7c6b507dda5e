"""Files that lead a program somewhere: written whole, read only where nobody else could have put them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from sksd import paths
from sksd.wire.local import Note, read_note


class PrivateFiles(SynchronousTestCase):
    """`write_private`, `read_private`, and the note that tells where the daemon is."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "daemon.json"
        note = Note(pid=os.getpid(), address="127.0.0.1", port=1, fingerprint="f", name="n", version="1")
        self.data = msgspec.json.encode(note)

    def test_round_trip(self) -> None:
        paths.write_private(self.path, b"old")
        paths.write_private(self.path, self.data)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(os.listdir(self.folder), ["daemon.json"])
        found = read_note(self.path)
        assert found is not None
        self.assertEqual(found.port, 1)

    def test_nothing_is_left_of_a_file_that_cannot_be_put_in_place(self) -> None:
        self.path.mkdir()
        self.assertRaises(OSError, paths.write_private, self.path, self.data)
        self.assertEqual(os.listdir(self.folder), ["daemon.json"])

    def test_foreseen_name_is_not_written_through(self) -> None:
        caught = self.folder / "caught"
        (self.folder / f".daemon.json.{os.getpid()}").symlink_to("caught")
        paths.write_private(self.path, self.data)
        self.assertFalse(caught.exists())

    def test_note_that_another_could_have_put_there(self) -> None:
        own = self.folder / "own"
        paths.write_private(own, self.data)
        self.path.symlink_to("own")
        self.assertIsNone(read_note(self.path))
        self.path.unlink()
        self.path.write_bytes(self.data)
        self.path.chmod(0o666)
        self.assertIsNone(read_note(self.path))
        self.path.unlink()
        os.mkfifo(self.path)
        self.assertIsNone(read_note(self.path))

    def test_note_that_makes_no_sense(self) -> None:
        for data in (b"", b"{}", b"\xff", self.data.replace(str(os.getpid()).encode(), b"9" * 18)):
            paths.write_private(self.path, data)
            self.assertIsNone(read_note(self.path))
