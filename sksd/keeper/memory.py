"""Whether a process was killed because memory ran out.

Linux counts that for each control group: `memory.events` (cgroups v2), `memory.oom_control` (v1).
Where neither can be read, nobody knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")


class Memory:
    """Counts from now on for the group of `pid`."""

    def __init__(self, pid: int) -> None:
        self._file = _events(pid)
        self._before = _count(self._file)

    def ran_out(self) -> bool:
        """The machine has killed something in that group meanwhile, for want of memory."""
        return _count(self._file) > self._before


def _events(pid: int) -> Path | None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            candidates = [_GROUPS / "memory" / group.lstrip("/") / "memory.oom_control"]
        elif not controllers:
            candidates = [_GROUPS / group.lstrip("/") / "memory.events"]
        else:
            continue
        for file in candidates:
            if file.exists():
                return file
    return None


def _count(file: Path | None) -> int:
    if file is None:
        return 0
    try:
        found = dict(line.split() for line in file.read_text().splitlines())
        return int(found.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
