"""Workers (`python -m sksd.conda`) in private folders, on the real offline channel."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial import unittest

from sksd.conda.messages import Done, Event, Failed, Plan, Progress, read_event
from tests import channel

ROOT = Path(__file__).parents[2]
#: Seconds a worker may take.
LIMIT = 90.0


class Worker:
    """One worker that runs."""

    def __init__(self, job: dict[str, Any], environ: dict[str, str]) -> None:
        self.events: list[Event] = []
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sksd.conda"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            cwd="/",
            start_new_session=True,
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.write(msgspec.json.encode(job))
        self.process.stdin.close()

    def until(self, wanted: Callable[[Event], bool]) -> Event | None:
        """The first event that is `wanted`, read as it comes; None: it ended without."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.events.append(read_event(line))
            if wanted(self.events[-1]):
                return self.events[-1]
        return None

    def step(self, name: str) -> Event | None:
        """The first progress of one step."""
        return self.until(lambda event: isinstance(event, Progress) and event.step == name)

    def end(self) -> Event | None:
        """Wait for its end; the last event."""
        self.until(lambda event: False)
        self.process.wait(LIMIT)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        return self.events[-1] if self.events else None

    def kill(self, number: int = signal.SIGKILL) -> Event | None:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.end()

    @property
    def plan(self) -> Plan:
        """Its plan."""
        return next(event for event in self.events if isinstance(event, Plan))

    @property
    def actions(self) -> dict[str, str]:
        """What the plan does with each package."""
        return {action.name: action.action for action in self.plan.actions}

    @property
    def steps(self) -> list[str]:
        """The steps it told of, in order, each once."""
        return list(dict.fromkeys(event.step for event in self.events if isinstance(event, Progress)))


class WorkerCase(unittest.SynchronousTestCase):
    """A home with a .condarc that knows the offline channel alone."""

    timeout = 300

    def setUp(self) -> None:
        self.url = channel.channel().as_uri()
        self.top = Path(os.path.realpath(tempfile.mkdtemp(prefix="sksd", dir="/tmp")))
        self.addCleanup(shutil.rmtree, self.top, True)
        self.home = self.top / "home"
        self.home.mkdir()
        self.condarc(channels=[self.url])
        ours = ("XDG_", "SKSD_", "CONDA", "MAMBA", "PIP_", "RATTLER")
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        # One package cache for all tests: what fills it is not what is tested.
        cache = channel.channel().parent / "rattler"
        self.environ |= {"HOME": str(self.home), "PYTHONPATH": str(ROOT), "RATTLER_CACHE_DIR": str(cache)}

    def condarc(self, **settings: Any) -> None:
        """Write ~/.condarc (JSON is YAML)."""
        (self.home / ".condarc").write_bytes(msgspec.json.encode(settings))

    def start(self, operation: str, name: str = "", **job: Any) -> Worker:
        """Start a worker."""
        worker = Worker({"operation": operation, "name": name, **job}, self.environ)
        self.addCleanup(worker.process.kill)
        return worker

    def run_job(self, operation: str, name: str = "", **job: Any) -> Worker:
        """A worker that has ended."""
        worker = self.start(operation, name, **job)
        worker.end()
        return worker

    def done(self, operation: str, name: str = "", **job: Any) -> Worker:
        """A worker that has done its job."""
        worker = self.run_job(operation, name, **job)
        self.assertIsInstance(worker.events[-1], Done, str(worker.events[-1]))
        self.assertEqual(worker.process.returncode, 0)
        return worker

    def fails(self, operation: str, name: str = "", **job: Any) -> Failed:
        """The error of a worker."""
        worker = self.run_job(operation, name, **job)
        last = worker.events[-1]
        assert isinstance(last, Failed), last
        self.assertEqual(worker.process.returncode, 1)
        self.assertNotIn("Traceback", last.message)
        return last

    def prefix(self, name: str) -> Path:
        """Where an environment with a plain name goes."""
        return self.home / ".conda" / "envs" / name

    def packages(self, name: str) -> dict[str, str]:
        """What is installed, by the worker's own account."""
        last = self.done("packages", name).events[-1]
        assert isinstance(last, Done) and last.packages is not None
        return {package.name: package.version for package in last.packages}

    def registered(self) -> list[str]:
        """The lines of environments.txt."""
        file = self.home / ".conda" / "environments.txt"
        return file.read_text().splitlines() if file.exists() else []

    def pending(self) -> list[str]:
        """The notes of changes under way."""
        folder = self.home / ".local" / "state" / "sksd" / "environments" / "pending"
        return [path.name for path in folder.glob("*.json")]

    def files(self, name: str) -> dict[str, bytes]:
        """Everything in an environment but byte code, and but what depends on time."""
        top = self.prefix(name)
        return {
            str(path.relative_to(top)): b"" if path.is_symlink() else path.read_bytes()
            for path in top.rglob("*")
            if (path.is_file() or path.is_symlink()) and not {"__pycache__", "conda-meta"} & set(path.parts)
        }

    def wheel(self, name: str, version: str) -> Path:
        """A wheel of a module `name`, in a folder for pip's --find-links."""
        import zipfile

        folder = self.top / "wheels"
        folder.mkdir(exist_ok=True)
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", f"{name}/__init__.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
        self.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
        return folder


def elapsed(since: float) -> float:
    """Seconds."""
    return time.monotonic() - since
