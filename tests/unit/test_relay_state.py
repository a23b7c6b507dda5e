"""What a relay leaves for the one after it, on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import TestCase

from sksd.client.state import Kept, RelayState
from sksd.errors import CannotWrite, StateInUse, StateOfAnother
from sksd.link.hello import new_hello
from sksd.link.restart import Past
from sksd.wire.messages import Ticket

KEPT = Kept(
    hello=new_hello("secret"),
    ticket=Ticket(ticket="secret", engine="abc", key="k", kernel_name="python3"),
    transport="tcp",
    ports={"shell": 5},
    host="lab",
    wanted="",
    file="/f.json",
)


class StateTests(TestCase):
    def setUp(self) -> None:
        self.top = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)
        self.folder = self.top / "state"

    def open(self) -> RelayState:
        state = RelayState(self.folder)
        self.addCleanup(state.release)
        return state

    def begun(self) -> RelayState:
        state = self.open()
        state.begin(KEPT)
        return state

    def test_goes_on(self) -> None:
        """All is there again, and of a stream that is over nothing."""
        state = self.begun()
        state.opened(1, "shell", 77, 0)
        state.took(1, b"over")
        state.opened(2, "iopub", 77, 0)
        state.opened(3, "control", 0, 0)
        state.took(3, b"stop")
        state.took(3, b" it")
        state.handed(2, 1000)
        state.handed(2, 24)
        state.over(1)
        # As the system does with a process that is killed.
        state.release()
        again = self.open()
        self.assertEqual(again.kept, KEPT)
        before = again.before()
        self.assertEqual(before.last, 3)
        self.assertEqual(
            before.streams, (Past(2, "iopub", 0, b"", 1024), Past(3, "control", 0, b"stop it", 0))
        )

    def test_heirs(self) -> None:
        """Each stream of the program before has one heir, of the same process; the last one's streams come first."""
        state = self.begun()
        for number, who in ((1, 7), (2, 8), (3, 7), (4, 0)):
            state.opened(number, "iopub", who, 0)
        state.opened(5, "shell", 9, 0)
        state.release()
        again = self.open()
        self.assertEqual(again.before().streams[2].stream, 3)
        self.assertEqual([again.heir("iopub", who) for who in (7, 7, 7, 8, 0, 9)], [3, 1, 0, 2, 0, 0])
        self.assertEqual(again.heir("shell", 7), 0)
        again.opened(6, "iopub", 7, 3)
        again.release()
        self.assertEqual(self.open().before().streams[-1], Past(6, "iopub", 0, b"", 0, 3))

    def test_does_not_grow(self) -> None:
        """What the other end has is dropped from the file, and what it has not is not."""
        state = self.begun()
        state.opened(1, "shell", 0, 0)
        said = b""
        for step in range(50):
            piece = bytes([step]) * 100_000
            state.took(1, piece)
            said += piece
            if step:
                state.passed(1, 100_000)
        (file,) = self.folder.glob("in-*")
        self.assertLess(file.stat().st_size, 3 * 2**20)
        state.release()
        # One that was killed between the two.
        (self.folder / "in-1-0").write_bytes(b"old")
        (past,) = self.open().before().streams
        self.assertLessEqual(past.base, 49 * 100_000)
        self.assertEqual(past.taken, said[past.base :])

    def test_private(self) -> None:
        """It holds a ticket."""
        state = self.begun()
        state.opened(1, "shell", 0, 0)
        state.took(1, b"x")
        self.assertEqual(os.stat(self.folder).st_mode & 0o777, 0o700)
        for path in self.folder.iterdir():
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)

    def test_one_at_a_time(self) -> None:
        """And nothing is left in the end."""
        state = self.begun()
        self.assertIn(str(self.folder), str(self.assertRaises(StateInUse, RelayState, self.folder)))
        state.remove()
        self.assertFalse(self.folder.exists())
        state.remove()
        self.assertIsNone(self.open().kept)

    def test_not_ours(self) -> None:
        """Nobody's files are touched."""
        self.folder.mkdir()
        (self.folder / "thesis.tex").write_text("x")
        self.assertRaises(StateOfAnother, RelayState, self.folder)
        self.assertEqual(os.listdir(self.folder), ["thesis.tex"])
        file = self.top / "file"
        file.write_text("x")
        self.assertRaises(StateOfAnother, RelayState, file)
        self.assertRaises(CannotWrite, RelayState, self.top / "not" / "there")

    def test_broken(self) -> None:
        """What is no state, or of another version, is refused and left; what never became one is not in the way."""
        self.begun().release()
        whole = (self.folder / "link.json").read_bytes()
        for bad in (b"{}", b"\xff", whole.replace(b'"version":1,"hello"', b'"version":2,"hello"')):
            (self.folder / "link.json").write_bytes(bad)
            self.assertRaises(StateOfAnother, RelayState, self.folder)
        (self.folder / "link.json").unlink()
        (self.folder / "in-1-0").write_text("x")
        state = self.open()
        self.assertIsNone(state.kept)
        self.assertEqual(state.before().streams, ())
        state.leave()
        self.assertFalse(self.folder.exists())

    def test_full_disk(self) -> None:
        """A relay that can keep nothing goes on, and leaves nothing that would be wrong."""
        state = self.begun()
        state.opened(1, "shell", 0, 0)
        state.took(1, b"x")
        shutil.rmtree(self.folder)
        state.opened(2, "shell", 0, 0)
        state.took(2, b"x")
        state.took(1, b"x")
        state.passed(1, 1)
        state.over(1)
        state.remove()
