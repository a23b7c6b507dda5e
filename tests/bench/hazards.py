"""The port under attack: memory of the daemon, the longest call of somebody who has logged in, lines of log.

`python -m tests.bench.hazards [NAME ...]`. Goals: under 32 MiB, 100 ms, and 10 lines for each connection. TLS is
graded by sslscan and nmap where they are installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sksd import reactor as choose_reactor

choose_reactor.install()

from twisted.internet import defer, task  # noqa: E402

from sksd import paths  # noqa: E402
from sksd.wire.local import Note, read_note  # noqa: E402
from tests.attacks import ATTACKS  # noqa: E402
from tests.bench.host import daemon  # noqa: E402
from tests.system.watch import attack, warm  # noqa: E402

#: Attempts at a call's longest time on a machine that does other things.
ATTEMPTS = 3


async def measure(names: list[str]) -> None:
    """Print a line an attack; fails where a goal was missed."""
    missed = []
    async with daemon() as (here, _):
        note = read_note(paths.daemon_note())
        assert note is not None
        log = Path(os.environ["HOME"]).parent / "log"
        await warm(here)
        for name in names:
            # What else the machine does stalls calls, too: it is the attack's fault only if it does so each time.
            for _ in range(ATTEMPTS):
                seen = await attack(name, note, here, lambda: log.read_bytes().count(b"\n"))
                print(f"{name:17} {seen}", flush=True)
                if seen.stall < 100:
                    break
            if seen.growth >= 32 or seen.stall >= 100 or seen.lines >= 10:
                missed.append(name)
        grade(note)
        if b"Traceback" in log.read_bytes():
            missed.append("a traceback in the log")
    if missed:
        raise SystemExit(f"goals missed: {', '.join(missed)}")


def grade(note: Note) -> None:
    """Versions and ciphers, as the graders see them."""
    place = f"{note.address}:{note.port}"
    if shutil.which("sslscan"):
        said = subprocess.run(["sslscan", "--no-colour", place], capture_output=True, text=True).stdout
        on = [line.split()[0] for line in said.splitlines() if line.startswith(("SSL", "TLS")) and "enabled" in line]
        print(f"sslscan: enabled {', '.join(on)}")
        assert on == ["TLSv1.3"], said
    if shutil.which("nmap"):
        command = ["nmap", "-Pn", "-p", str(note.port), "--script", "ssl-enum-ciphers", note.address]
        said = subprocess.run(command, capture_output=True, text=True).stdout
        words = [line.strip("|_ ") for line in said.splitlines()]
        least = [line for line in words if line.startswith("least strength")]
        versions = [line.rstrip(":") for line in words if line.startswith(("TLSv", "SSLv"))]
        print(f"nmap: {', '.join(versions)}, {', '.join(least)}")
        assert (versions, least) == (["TLSv1.3"], ["least strength: A"]), said


def main(reactor: Any) -> defer.Deferred[None]:
    """For task.react."""
    return defer.ensureDeferred(measure(sys.argv[1:] or ["nothing", *ATTACKS]))


if __name__ == "__main__":
    task.react(main)
