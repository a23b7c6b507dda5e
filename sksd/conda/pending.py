"""Notes of changes under way, so that whatever kills a worker leaves something to mend it by.

A note is written before anything of a prefix is touched and removed after the last step. It lies in the state folder,
outside of the prefix. `sksd.conda.undo` acts by it: what is found while nobody holds the prefix's lock is unfinished.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from sksd.conda.messages import BackendName
from sksd.conda.prefixlock import folder, key
from sksd.paths import private, write_private


class Note(msgspec.Struct, kw_only=True):
    """One change under way.

    `operation`: `make` (the prefix is new: undone by removing it), `change` (undone by going back to `old`) or
    `remove` (finished by removing the rest). `name`: as a person calls it. `existed`: the empty folder was there
    before. `old`: the conda-meta documents before the change, without the lists of files. `new`: names of the
    packages to be put in, as `six-1.17-py_0`. `cache`: the package cache. `history`: bytes of conda-meta/history
    before. `pip`: what pip had installed, by name. `names`: what lay in `bin` and among Python's packages before pip
    ran; empty: it does not run. `registry`: conda's list of environments. `pid`, `started`: the worker's, by which it
    is told from a child of its that has the prefix locked still.
    """

    operation: str
    prefix: str
    name: str
    existed: bool = False
    old: list[dict[str, Any]] = []
    new: list[str] = []
    cache: str = ""
    history: int = 0
    pip: dict[str, str] = {}
    names: list[str] = []
    registry: str = ""
    backend: BackendName = "rattler"
    executable: str = ""
    pid: int = 0
    started: str = ""

    @property
    def alive(self) -> bool:
        """Whether the worker that wrote it lives."""
        return self.pid > 0 and self.started == _started(self.pid)


def _file(prefix: str) -> Path:
    return private(folder() / "pending") / f"{key(prefix)}.json"


def write(note: Note) -> None:
    """Called before a change starts. Raises OSError."""
    note.pid, note.started = os.getpid(), _started(os.getpid())
    write_private(_file(note.prefix), msgspec.json.encode(note))


def read(prefix: str) -> Note | None:
    """The note of a prefix, if there is one that can be read."""
    return _read(_file(prefix))


def remove(prefix: str) -> None:
    """Called when nothing is left to do."""
    _file(prefix).unlink(missing_ok=True)


def everything() -> list[Note]:
    """All notes of this person, also those of changes that go on now."""
    found = (_read(path) for path in sorted((folder() / "pending").glob("*.json")))
    return [note for note in found if note is not None]


def _started(pid: int) -> str:
    """When a process started, in the kernel's own unit; empty: there is none. Numbers of processes come again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # Z, X: it has ended, and nobody has asked for how yet.
    return "" if fields[0] in "ZX" else fields[19]


def _read(path: Path) -> Note | None:
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=Note)
    return None
