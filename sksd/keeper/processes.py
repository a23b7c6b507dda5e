"""Processes, as Linux has them: who one is, watching one that is not a child, signals, sessions.

The one module of the proxy that knows the platform.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet import abstract

from sksd.keeper.records import Identity
from sksd.wire.groups import signal_group


def boot_id() -> str:
    """What this boot of the machine is called (random(4), /proc/sys/kernel/random/boot_id)."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def identify(pid: int) -> Identity | None:
    """Who `pid` is now; None when there is no such process (or only its remains)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name in parentheses may itself hold spaces and parentheses.
            fields = file.read().rpartition(")")[2].split()
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return Identity(boot=boot_id(), pid=pid, started=int(fields[19]), uid=owner)


def cpu_by_session() -> dict[int, float]:
    """Seconds of processor time that the processes of each session (setsid(2)) have taken, with that of their
    children which have ended."""
    tick, found = os.sysconf("SC_CLK_TCK"), Counter[int]()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
                found[int(fields[3])] += sum(map(int, fields[11:15]))
    return {session: ticks / tick for session, ticks in found.items()}


def sweep(pid: int) -> None:
    """Kill what a session leader that has ended has left in its process group."""
    signal_group(pid, signal.SIGKILL)


class Watch(abstract.FileDescriptor):
    """Calls `ended` once when a process that is not our child ends (pidfd_open(2)).

    Raises OSError where the process is not there, or is another than `identity` says.
    """

    def __init__(self, reactor: Any, identity: Identity, ended: Callable[[], None]) -> None:
        super().__init__(reactor)
        self._fd = os.pidfd_open(identity.pid)
        self._ended = ended
        # Asked again now that the descriptor holds the pid: it may have been used again before.
        if identify(identity.pid) != identity:
            os.close(self._fd)
            raise ProcessLookupError(identity.pid)
        self.connected = True
        self.startReading()

    def fileno(self) -> int:
        """For the reactor."""
        return self._fd

    def doRead(self) -> None:
        """Called by the reactor when the process has ended."""
        self.stop()
        self._ended()

    def stop(self) -> None:
        """Watch no longer."""
        if self._fd >= 0:
            self.stopReading()
            os.close(self._fd)
            self._fd = -1
