"""One change of a prefix at a time, and not too many in all; reading that hangs; sizes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some
from twisted.internet import reactor
from twisted.trial import unittest

from sksd.conda import pending as notes
from sksd.errors import FolderSilent
from sksd.proxy.changing import pending
from sksd.proxy.details import Details, last_use, size
from sksd.proxy.environments import gather
from sksd.proxy.prefixes import CONDA, Prefix, PrefixReader
from sksd.proxy.reading import Reader
from sksd.proxy.sources import At, Sources
from sksd.proxy.turns import Turns
from tests.system.daemon import until
from tests.unit.test_environments import make_conda, make_venv

_places = some.frozensets(some.sampled_from("abcdef"), min_size=1, max_size=2)


class TurnsTests(unittest.TestCase):
    """Who may begin."""

    @given(some.lists(some.tuples(_places, some.booleans()), max_size=30), some.integers(1, 4))
    def test_all_get_their_turn(self, asked: list[tuple[frozenset[str], bool]], at_once: int) -> None:
        turns = Turns(at_once)
        begun: list[object] = []
        for number, (places, one_ends) in enumerate(asked):
            if turns.ask(number, places):
                begun.append(number)
            if one_ends and turns.running:
                begun += turns.over(next(iter(turns.running)))
            held = [place for places in turns.running.values() for place in places]
            self.assertEqual(len(held), len(set(held)))
            self.assertLessEqual(len(turns.running), at_once)
        while turns.running:
            begun += turns.over(next(iter(turns.running)))
        self.assertEqual(sorted(map(str, begun)), sorted(map(str, range(len(asked)))))
        self.assertFalse(turns.waiting)

    def test_first_come(self) -> None:
        turns = Turns(2)
        self.assertTrue(turns.ask("one", frozenset("a")))
        self.assertFalse(turns.ask("two", frozenset("ab")))
        self.assertFalse(turns.ask("three", frozenset("b")))
        self.assertTrue(turns.in_the_way("two"))
        self.assertTrue(turns.ask("four", frozenset("c")))
        self.assertEqual(turns.over("one"), ["two"])

    def test_giving_up(self) -> None:
        turns = Turns(1)
        turns.ask("one", frozenset("a"))
        turns.ask("two", frozenset("a"))
        self.assertEqual(turns.over("two"), [])
        self.assertEqual(turns.over("one"), [])


class ReaderTests(unittest.TestCase):
    """A folder that hangs."""

    timeout = 60

    async def test_left_out(self) -> None:
        """One environment is on a file server that is gone; what is elsewhere is listed, at once the second time."""
        home = Path(os.path.realpath(self.mktemp()))
        make_conda(home / ".conda" / "envs" / "fine")
        venv = make_venv(home / ".venvs" / "hangs")
        (venv / "pyvenv.cfg").unlink()
        # Opening it waits for somebody who writes, as a hard-mounted NFS waits for its server.
        os.mkfifo(venv / "pyvenv.cfg")
        sources = Sources(str(home), root=str(home / "root"))
        reader, prefixes = Reader(reactor, 0.2), PrefixReader()
        for limit in (5.0, 0.15):
            started = time.monotonic()
            found, silent = await reader.read(lambda at: gather(sources, prefixes, at))
            self.assertEqual([each.name for each in found], ["fine"])
            self.assertEqual(silent, [str(home / ".venvs")])
            self.assertLess(time.monotonic() - started, limit)
        # The one that read the rest may be on its way out.
        await until(
            lambda: [each.name for each in threading.enumerate()].count("reading") == 1, "one thread hangs"
        )
        with open(venv / "pyvenv.cfg", "w") as file:
            file.write("home = /nowhere/bin\nversion = 3.11.7\n")
        (venv / "pyvenv.cfg").unlink()
        (venv / "pyvenv.cfg").write_text("home = /nowhere/bin\nversion = 3.11.7\n")
        while silent:
            found, silent = await reader.read(lambda at: gather(sources, prefixes, at))
        self.assertEqual([each.name for each in found], ["fine", "hangs"])

    async def test_no_way_around(self) -> None:
        going_on = threading.Event()
        self.addCleanup(going_on.set)

        def stubborn(at: At) -> None:
            at("/x")
            going_on.wait()

        with self.assertRaises(FolderSilent):
            await Reader(reactor, 0.1).read(stubborn)

    async def test_errors_come_through(self) -> None:
        def fails(at: At) -> None:
            raise ValueError("hm")

        with self.assertRaises(ValueError):
            await Reader(reactor).read(fails)


class DetailsTests(unittest.TestCase):
    """Sizes and last uses."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        (self.folder / "conda-meta").mkdir(parents=True)
        (self.folder / "one").write_bytes(b"x" * 100_000)
        os.link(self.folder / "one", self.folder / "two")

    def test_size(self) -> None:
        found = size(str(self.folder), lambda: True)
        assert found is not None
        self.assertTrue(100_000 <= found < 200_000, found)
        self.assertIsNone(size(str(self.folder), lambda: False))

    def test_looking_is_no_use(self) -> None:
        library = self.folder / "lib" / "python3.11"
        (library / "site-packages").mkdir(parents=True)
        for folder in (library, self.folder / "conda-meta"):
            os.utime(folder, (1e9, 1e9 - 5))
        prefix = Prefix(path=str(self.folder), kind=CONDA, folders=(str(library / "site-packages"),))
        details = Details(time.monotonic)
        for _ in range(2):
            found = details.of([prefix], lambda _: True)[prefix.path]
            self.assertEqual(found[1], "2001-09-09T01:46:40+00:00")
        self.assertEqual(last_use(prefix), found[1])

    def test_out_of_time(self) -> None:
        prefix = Prefix(path=str(self.folder), kind=CONDA)
        self.assertEqual(
            Details(time.monotonic, -1.0).of([prefix], lambda _: True), {prefix.path: (None, None)}
        )


class PendingTests(unittest.TestCase):
    """The proxy looks where workers note what they do."""

    def test_same_folder(self) -> None:
        self.patch(os, "environ", {**os.environ, "XDG_STATE_HOME": os.path.abspath(self.mktemp())})
        notes.write(notes.Note(operation="make", prefix="/x", name="x"))
        self.assertEqual(len(list(pending().glob("*.json"))), 1)
