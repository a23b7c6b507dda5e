"""One change of a prefix at a time: a lock in the person's state folder, never inside a prefix that is being made."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from sksd.paths import private, state


def folder() -> Path:
    """Where locks and notes of changes under way are kept (0700)."""
    return private(private(state()) / "environments")


def key(prefix: str) -> str:
    """What stands for a prefix in the names of files: the same for every way to write its path."""
    return hashlib.sha256(os.fsencode(os.path.realpath(prefix))).hexdigest()[:24]


class PrefixLock:
    """The lock of one prefix, held until the process and every child that got `descriptor` have ended.

    It is passed to pip, to conda and over an exec: whoever comes next waits for a child that outlived its parent.
    """

    def __init__(self, prefix: str) -> None:
        self.descriptor = os.open(private(folder() / "locks") / key(prefix), os.O_RDWR | os.O_CREAT, 0o600)

    def take(self) -> bool:
        """Whether it is ours now; does not wait."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let go; called where one process looks at several prefixes in turn."""
        os.close(self.descriptor)
