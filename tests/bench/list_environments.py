"""How long a listing of 50 environments takes, read from files and asked of each environment's own Python.

Run with `python -m tests.bench.list_environments [COUNT]`. The environments are real enough for both ways:
venvs of this interpreter with the metadata of 100 packages each, half of them with a conda-meta folder of 100
records too.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sksd.proxy.environments import list_environments
from sksd.proxy.prefixes import PrefixReader
from sksd.proxy.sources import Sources
from sksd.wire.messages import Accept

ACCEPTS = [Accept(package="spyder-kernels", low="3.1", high="3.2")]
PACKAGES = 100
_ASK = "import sys, importlib.metadata as m; print(sys.version_info[:3], m.version('spyder-kernels'))"


def make_environments(folder: Path, count: int = 50) -> list[Path]:
    """`count` environments below `folder`, every other a conda environment.

    Each has a Python that runs and spyder-kernels' metadata (no kernel that would start).
    """
    made = []
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    for number in range(count):
        prefix = folder / f"environment-{number:02}"
        packages = prefix / "lib" / f"python{version}" / "site-packages"
        (prefix / "bin").mkdir(parents=True)
        packages.mkdir(parents=True)
        for name in ("python", "python3", f"python{version}"):
            (prefix / "bin" / name).symlink_to(home)
        # Both kinds have it: a conda environment of links needs it to run.
        (prefix / "pyvenv.cfg").write_text(f"home = {home.parent}\nversion = {sys.version.split()[0]}\n")
        names = ["spyder_kernels-3.1.6", *(f"package_{item}-1.{item}.0" for item in range(PACKAGES - 1))]
        for name in names:
            information = packages / f"{name}.dist-info"
            information.mkdir()
            project, _, number_of_it = name.partition("-")
            (information / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {project}\nVersion: {number_of_it}\n"
            )
        if number % 2:
            records = prefix / "conda-meta"
            records.mkdir()
            (records / "history").write_text("")
            for name in (f"python-{sys.version.split()[0]}", *names):
                (records / f"{name.replace('_', '-')}-py_0.json").write_text("{}")
        made.append(prefix)
    age(folder)
    return made


def age(folder: Path, seconds: float = 60.0) -> None:
    """Make everything below `folder` look `seconds` older: what has just been made is not remembered."""
    then = time.time() - seconds
    for root, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            path = os.path.join(root, name)
            if not os.path.islink(path):
                os.utime(path, (then, then))


def milliseconds(action: Callable[[], Any]) -> float:
    """How long `action` takes, in ms."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def ask_each(prefixes: list[Path]) -> None:
    for prefix in prefixes:
        subprocess.run([prefix / "bin" / "python", "-c", _ASK], check=True, stdout=subprocess.DEVNULL)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top, "envs")
        print(f"{count} environments with {PACKAGES} packages each")
        print(
            f"made in                       {milliseconds(lambda: make_environments(folder, count)):9.1f} ms"
        )
        prefixes = sorted(folder.iterdir())
        sources = Sources(top, {"CONDA_ENVS_PATH": str(folder)}, root=top)
        found = list_environments(sources, PrefixReader(), ACCEPTS)
        assert len(found) == count and all(environment.fits for environment in found), found
        cold = [milliseconds(lambda: list_environments(sources, PrefixReader(), ACCEPTS)) for _ in range(20)]
        reader = PrefixReader()
        list_environments(sources, reader, ACCEPTS)
        warm = [milliseconds(lambda: list_environments(sources, reader, ACCEPTS)) for _ in range(20)]
        print(f"read from files, nothing known{statistics.median(cold):9.1f} ms")
        print(f"read from files, again        {statistics.median(warm):9.1f} ms")
        print(f"asked of each one's Python    {milliseconds(lambda: ask_each(prefixes)):9.1f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
