"""A real conda channel, offline, and real environments made from it: what the system tests run on.

The `python` package of the channel is assembled from the interpreter that runs the tests; every other package
is a wheel of the package index, taken apart. All of it is made once and kept in the repository's `.cache/`,
so that only the very first run needs the network; `environments` is what tests call. `python -m
tests.channel` makes it ahead of time and prints the folder.

What this leans on: CEP 16 and the layout of `.conda` packages as py-rattler-build writes them, PEP 427 (the
layout of wheels), and the solver and installer of py-rattler, which run in a process of their own because the
interpreter may abort at exit after them.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache"

#: ipython: a later one breaks the channels of spyder-kernels 3.1.
#: pip: what comes with a Python, as conda has it.
KERNEL_WHEELS = ("spyder-kernels>=3.1,<3.2", "ipykernel", "ipython<9.18", "pip")
#: Out of the range >=3.1,<3.2 that the tests' front end accepts.
OLD_KERNEL_WHEEL = "spyder-kernels==3.0.5"

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PYTHON_VERSION = platform.python_version()
BUILD = f"py{sys.version_info.major}{sys.version_info.minor}_0"
#: noarch packages without a Python, by name and version: what each depends on. `left` and `right` cannot be together.
SMALL: dict[tuple[str, str], tuple[str, ...]] = {
    ("sksd-test-base", "1.0"): (),
    ("sksd-test-base", "1.5"): (),
    ("sksd-test-base", "2.0"): (),
    ("sksd-test-app", "1.0"): ("sksd-test-base <2",),
    ("sksd-test-app", "2.0"): ("sksd-test-base >=2",),
    ("sksd-test-left", "1.0"): ("sksd-test-base <2",),
    ("sksd-test-right", "1.0"): ("sksd-test-base >=2",),
    ("sksd-test-many", "1.0"): (),
    ("sksd-test-many", "2.0"): (),
}
#: Files of sksd-test-many: linking it takes long enough to be caught at it.
MANY = 2000
#: The environments of `environments`, by name: what each is made of.
SPECIFICATIONS: dict[str, tuple[str, ...]] = {
    "fits": ("python", "spyder-kernels >=3.1,<3.2", "ipykernel"),
    "wrong": ("python", "spyder-kernels 3.0.*"),
    "bare": ("python",),
    "nopython": ("sksd-test-tool",),
}
_NOT_NEEDED = (
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "config-*",
    "*.a",
)
#: So long may one step take on a slow machine, in seconds.
_DEADLINE = 300.0


def environments() -> Path:
    """The folder with the environments of `SPECIFICATIONS`, a folder for `envs_dirs` or CONDA_ENVS_PATH.

    Tests share it and change nothing in it; one that wants to change something makes its own with `install`.
    The first call takes tens of seconds, later ones a millisecond.
    """
    return _home() / "envs"


def channel() -> Path:
    """The channel's folder, with `noarch` and the platform's subfolder, made if need be."""
    return _home() / "channel"


def install(prefix: Path, specifications: Sequence[str]) -> None:
    """Make the environment `prefix` from the channel: 0.3 s for a Python with a kernel.

    `specifications` are conda's match specs. Raises CalledProcessError; what went wrong is on stderr.
    """
    _install(_home(), prefix, specifications)


def _home() -> Path:
    home = CACHE / f"channel-{BUILD}-{_key()}"
    complete = home / "complete"
    if complete.exists():
        return home
    CACHE.mkdir(exist_ok=True)
    with _locked(CACHE / "channel.lock"):
        if not complete.exists():
            shutil.rmtree(home, ignore_errors=True)
            _build_channel(home / "channel")
            for name, specifications in SPECIFICATIONS.items():
                _install(home, home / "envs" / name, specifications)
            _compile(home / "envs" / "fits")
            complete.touch()
    return home


def _key() -> str:
    import rattler
    import rattler_build

    parts = (
        sys.version,
        sys.base_prefix,
        platform.machine(),
        rattler.__version__,
        rattler_build.rattler_build_version(),
        Path(__file__).read_text(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- packages ------------------------------------------------------------------------------------------------


def _wheels() -> list[Path]:
    """The wheels of a Spyder kernel and the old one, fetched once: a change of this file needs no network."""
    wanted = hashlib.sha256(repr((KERNEL_WHEELS, OLD_KERNEL_WHEEL, platform.machine())).encode()).hexdigest()[
        :12
    ]
    folder = CACHE / f"wheels-{BUILD}-{wanted}"
    if not folder.exists():
        part = CACHE / f"{folder.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        fetch: list[str | Path] = [sys.executable, "-m", "pip", "download", "-qq", "--only-binary", ":all:"]
        downloads: tuple[list[str | Path], ...] = (
            ["--dest", part / "new", *KERNEL_WHEELS],
            ["--dest", part / "old", "--no-deps", OLD_KERNEL_WHEEL],
        )
        for arguments in downloads:
            subprocess.run([*fetch, *arguments], check=True, timeout=_DEADLINE)
        part.rename(folder)
    return sorted(folder.glob("*/*.whl"))


def _build_channel(folder: Path) -> None:
    subdir = str(_rattler().Platform.current())
    stages = folder.with_name("stages")
    (folder / "noarch").mkdir(parents=True)
    jobs: list[tuple[str, str, Path, list[str]]] = [("python", PYTHON_VERSION, _stage_python(stages), [])]
    tool = stages / "tool" / "bin" / "sksd-test-tool"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\necho a tool without Python\n")
    tool.chmod(0o755)
    jobs.append(("sksd-test-tool", "1.0", stages / "tool", []))
    for (name, version), needs in SMALL.items():
        stage = stages / f"{name}-{version}"
        share = stage / "share" / name
        share.mkdir(parents=True)
        (share / "version").write_text(f"{version}\n")
        (share / f"only-in-{version}").write_text(name)
        for number in range(MANY if name == "sksd-test-many" else 0):
            (share / f"{number}").write_text(f"{version} {number}\n")
        jobs.append((name, version, stage, list(needs)))
    for wheel in _wheels():
        name, version, _, _ = parse_wheel_filename(wheel.name)
        stage = stages / wheel.stem
        # The old kernel's upper bounds would rule out the one ipython there is; it is never started.
        needs = ["python", "ipykernel"] if wheel.parent.name == "old" else _stage_needs(wheel)
        _stage_wheel(wheel, stage)
        jobs.append((name, str(version), stage, needs))

    def assemble(job: tuple[str, str, Path, list[str]]) -> None:
        from rattler_build import assemble_package, collect_files

        name, version, stage, needs = job
        noarch = (name, version) in SMALL
        assemble_package(
            name,
            version,
            "noarch" if noarch else subdir,
            "0" if noarch else BUILD,
            folder / ("noarch" if noarch else subdir),
            noarch="generic" if noarch else None,
            depends=needs,
            compression_level=1,
            files=collect_files(stage, include_hidden=True),
            detect_prefix=False,
        )

    (folder / subdir).mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(assemble, jobs))
    shutil.rmtree(stages)
    _worker("index", folder)


def _stage_python(stages: Path) -> Path:
    """The base interpreter, laid out as conda lays out its own: bin/python, lib/pythonX.Y, lib/libpython."""
    stage = stages / "python"
    (stage / "bin").mkdir(parents=True)
    standard = Path(os.__file__).parent
    shutil.copytree(
        standard,
        stage / "lib" / PYTHON,
        ignore=shutil.ignore_patterns(*_NOT_NEEDED),
        symlinks=False,
        ignore_dangling_symlinks=True,
    )
    packages = stage / "lib" / PYTHON / "site-packages"
    packages.mkdir()
    (packages / "README.txt").write_text("Packages of this environment.\n")
    if standard.parent.joinpath("python3", "dist-packages").is_dir():
        # A Debian interpreter looks for its packages there.
        (stage / "lib" / "python3").mkdir()
        (stage / "lib" / "python3" / "dist-packages").symlink_to(f"../{PYTHON}/site-packages")
    libraries = str(sysconfig.get_config_var("LIBDIR") or "")
    library = Path(libraries, str(sysconfig.get_config_var("INSTSONAME") or "none"))
    if library.suffix != ".a" and library.is_file():
        shutil.copy2(library, stage / "lib" / library.name)
    # sys._base_executable: in a venv, the interpreter that the venv was made with.
    program = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable))).read_bytes()
    relative = b"$ORIGIN/../lib"
    absolute = libraries.encode()
    if len(absolute) >= len(relative):
        # The RPATH, so that the copy loads the copied library: the room in the file stays the same.
        program = program.replace(
            b"\0" + absolute + b"\0", b"\0" + relative.ljust(len(absolute), b"\0") + b"\0"
        )
    executable = stage / "bin" / PYTHON
    executable.write_bytes(program)
    executable.chmod(0o755)
    for name in ("python", "python3"):
        (stage / "bin" / name).symlink_to(PYTHON)
    return stage


def _stage_wheel(wheel: Path, stage: Path) -> None:
    packages = stage / "lib" / PYTHON / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    for data in packages.glob("*.data"):
        for scheme in data.iterdir():
            target = {"purelib": packages, "platlib": packages, "data": stage, "scripts": stage / "bin"}.get(
                scheme.name, stage / "include"
            )
            shutil.copytree(scheme, target, dirs_exist_ok=True)
        shutil.rmtree(data)


def _stage_needs(wheel: Path) -> list[str]:
    """The wheel's Requires-Dist as conda's match specs, those that apply on this machine."""
    with zipfile.ZipFile(wheel) as archive:
        entry = next(item for item in archive.namelist() if item.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(entry).decode())
    needs = ["python"]
    for line in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needs.append(f"{canonicalize_name(requirement.name)} {requirement.specifier}".strip())
    return needs


# -- what runs in a process of its own -----------------------------------------------------------------------


def _rattler() -> Any:
    import rattler

    return rattler


def _worker(*arguments: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.channel", *map(str, arguments)],
        cwd=REPOSITORY,
        check=True,
        timeout=_DEADLINE,
        stdin=subprocess.DEVNULL,
    )


def _install(home: Path, prefix: Path, specifications: Sequence[str]) -> None:
    _worker("install", home, prefix, *specifications)


def _compile(prefix: Path) -> None:
    """Byte code of what a kernel imports, so that the first start is as quick as the others."""
    python = prefix / "bin" / "python"
    subprocess.run(
        [python, "-c", "import spyder_kernels.console.start, spyder_kernels.console.kernel"],
        check=True,
        timeout=_DEADLINE,
        stdin=subprocess.DEVNULL,
    )


async def _index(folder: Path) -> None:
    from rattler.index import index_fs

    await index_fs(folder, write_zst=False, write_shards=False)


async def _solve_and_install(home: Path, prefix: Path, specifications: Sequence[str]) -> None:
    rattler = _rattler()
    gateway = rattler.Gateway(cache_dir=home / "repodata")
    source = rattler.Channel((home / "channel").as_uri())
    records = await rattler.solve(
        [source], list(specifications), gateway=gateway, virtual_packages=rattler.VirtualPackage.detect()
    )
    await rattler.install(records, prefix, cache_dir=home / "packages", show_progress=False)
    # rattler leaves the history empty; conda, meeting such an environment, would take everything for
    # unwanted.
    lines = [f"==> {time.strftime('%Y-%m-%d %H:%M:%S')} <==", "# cmd: sksd tests"]
    lines += [
        f"+{source.base_url}{record.subdir}::{record.name.normalized}-{record.version}-{record.build}"
        for record in records
    ]
    lines.append(f"# update specs: {list(specifications)!r}")
    with (prefix / "conda-meta" / "history").open("a") as history:
        history.write("\n".join(lines) + "\n")


def main(arguments: Sequence[str]) -> None:
    """What `python -m tests.channel` does: nothing given, make everything and print its folder."""
    match arguments:
        case ["index", folder]:
            asyncio.run(_index(Path(folder)))
        case ["install", home, prefix, *specifications]:
            asyncio.run(_solve_and_install(Path(home), Path(prefix), specifications))
        case _:
            print(environments())
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: the interpreter may abort on its way out when rattler was in it.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
