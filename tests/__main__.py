"""`make test`: lint, types, and trial, a process a module, one more at a time than there are cores.

A module of tests.system that fails is run once more, alone. The last line is "N passed, N failed".

`python -m tests [-j N] [WORD ...]` runs only the modules whose name holds one of the words, without lint.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
#: Seconds a module may take.
LIMIT = 400
#: With more failures than that it is not the machine.
MOST_AGAIN = 3
CHECKS = {
    "ruff": [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format", "concise", "."],
    "mypy": [sys.executable, "-m", "mypy", "-p", "sksd"],
}


def modules() -> Iterator[str]:
    """Slow ones first, so that the last to end is a short one."""
    for folder in ("system", "wire", "unit"):
        for path in sorted((HERE / folder).glob("test_*.py")):
            yield f"tests.{folder}.{path.stem}"


def run(name: str, command: list[str], folder: Path) -> tuple[str, int, int, int, str, float]:
    """(name, passed, failed, skipped, output, seconds) of one process, in folders of its own."""
    home = folder / "h"
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "SKSD_", "CONDA_"))}
    environ |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    home.mkdir(parents=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = threading.Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
    late.start()
    output = process.communicate()[0]
    late.cancel()
    took = time.monotonic() - started
    found = re.findall(r"^(?:PASSED|FAILED)(?: \((.*)\))?$", output, re.MULTILINE)
    if not found:
        failed = int(process.returncode != 0)
        return name, 1 - failed, failed, 0, output, took
    counts = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", found[-1])}
    failed = counts.get("failures", 0) + counts.get("errors", 0) + counts.get("unexpectedSuccesses", 0)
    if process.returncode and not failed:
        failed = 1
    return name, counts.get("successes", 0), failed, counts.get("skips", 0), output, took


def main() -> int:
    """Run, print, and count."""
    parser = argparse.ArgumentParser(prog="python -m tests")
    parser.add_argument("-j", type=int, default=(os.cpu_count() or 2) + 1)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    jobs = {} if given.words else dict(CHECKS)
    top = Path(tempfile.mkdtemp(prefix="sksdt"))
    for module in modules():
        if not given.words or any(word in module for word in given.words):
            temporary = str(top / module)
            jobs[module] = [sys.executable, "-m", "twisted.trial", "--reactor=asyncio"]
            jobs[module] += [f"--temp-directory={temporary}", module]
    passed = failed = skipped = 0
    alone: list[tuple[str, int, int, int]] = []
    try:
        with ThreadPoolExecutor(given.j) as pool:
            waiting = [
                pool.submit(run, name, command, top / str(number))
                for number, (name, command) in enumerate(jobs.items())
            ]
            for each in waiting:
                name, good, bad, skips, output, took = each.result()
                passed, failed, skipped = passed + good, failed + bad, skipped + skips
                if bad or given.words:
                    print(output)
                print(f"{'FAILED' if bad else 'ok':6} {name} ({good} passed, {bad} failed, {took:.1f} s)", flush=True)
                if bad and name.startswith("tests.system."):
                    alone.append((name, good, bad, skips))
        # What talks to real processes within limits may fail for want of a processor: it has one more try, with the
        # machine to itself, and the output says so.
        for number, (name, *before) in enumerate(alone[:MOST_AGAIN]):
            command = [part.replace(str(top / name), str(top / f"{name}-again")) for part in jobs[name]]
            _, good, bad, skips, output, took = run(name, command, top / f"again{number}")
            passed, failed, skipped = passed + good - before[0], failed + bad - before[1], skipped + skips - before[2]
            if bad:
                print(output)
            said = "FAILED again" if bad else "ok when run alone:"
            print(f"{said} {name} ({good} passed, {bad} failed, {took:.1f} s)", flush=True)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main())
