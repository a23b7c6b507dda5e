"""Processes that are started in a session of their own, with all that they start (setsid(2)): for the rooms that
start some on a user's behalf."""

from __future__ import annotations

import contextlib
import os
import shutil


def session_command(arguments: list[str]) -> list[str]:
    """`arguments`, run in a session of its own with the pid that the caller gets (setsid(1) of util-linux)."""
    setsid = shutil.which("setsid")
    if setsid is None:
        return arguments
    return [setsid, *arguments]


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a session leader and all in its process group; whoever is gone does not matter."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
