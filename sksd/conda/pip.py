"""pip packages, by the environment's own pip, after the conda packages."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sksd.conda.children import run
from sksd.conda.condarc import Condarc
from sksd.conda.out import Out
from sksd.conda.secrets import mask
from sksd.errors import DiskFull, NoPip, PipFailed

#: Seconds that pip waits for an answer, and how often it asks.
_TIMEOUT = 15
_RETRIES = 2
_FULL = "No space left on device"
_SAID = re.compile(r"(Collecting|Downloading|Building wheel for|Installing collected packages:|Uninstalling) ?(.*)")
#: Variables that would lead pip elsewhere.
_FOREIGN = frozenset(
    {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}
)


def python_of(prefix: str) -> str:
    """The environment's Python."""
    return os.path.join(prefix, "bin", "python")


def check(prefix: str, name: str) -> None:
    """Raises NoPip where there is no Python, or no pip, in the environment."""
    if not os.path.exists(python_of(prefix)):
        raise NoPip(name=name, what="a Python")
    if not any(Path(prefix, "lib").glob("python3.*/site-packages/pip/__main__.py")):
        raise NoPip(name=name, what="pip")


class Pip:
    """One run of pip at a time. `lock`: a descriptor that pip keeps open, so that the prefix stays locked until it
    has ended, whatever happens to this process."""

    def __init__(self, prefix: str, name: str, settings: Condarc, offline: bool, out: Out, lock: int) -> None:
        self._prefix, self._name, self._out, self._lock = prefix, name, out, lock
        self._environ = environ(prefix, settings, offline)

    async def install(self, lines: Sequence[str], upgrade: bool = False) -> None:
        """Install what `lines` of a requirements file say. Raises NoPip, PipFailed, DiskFull."""
        check(self._prefix, self._name)
        with tempfile.NamedTemporaryFile("w", prefix="sksd-pip-", suffix=".txt") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            more = ["--upgrade"] if upgrade else []
            await self._run("install", *more, "-r", file.name)

    async def uninstall(self, names: Sequence[str]) -> None:
        """Take packages out that pip had installed. Raises NoPip, PipFailed."""
        check(self._prefix, self._name)
        await self._run("uninstall", "--yes", *names)

    async def _run(self, *arguments: str) -> None:
        def heard(line: str) -> None:
            if said := sentence(line.strip()):
                self._out.progress("pip", said)

        self._out.progress("pip", "pip is starting.")
        command = [python_of(self._prefix), "-m", "pip", *arguments]
        code, errors, output = await run(command, self._environ, self._lock, heard)
        if code:
            lines = [*map(str.strip, output.splitlines()), *map(str.strip, errors)]
            if any(_FULL in line for line in lines):
                raise DiskFull(path=self._prefix)
            raise PipFailed(name=self._name, problem=problem(lines, code))


def sentence(line: str) -> str:
    """What a line of pip's output says to a person; empty: nothing."""
    match = _SAID.match(line)
    if match is None:
        return ""
    what = re.sub(r"\s*\(from .*", "", match[2])
    word = "Installing" if match[1].startswith("Installing") else match[1]
    return mask(f"pip: {word} {what}".rstrip(".") + ".")[:300]


def problem(lines: Sequence[str], code: int) -> str:
    """Why pip failed, from what it said."""
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = errors or [line for line in lines if line][-3:] or [f"exit code {code}"]
    return mask(" ".join(dict.fromkeys(said)))[:2000]


def environ(prefix: str, settings: Condarc, offline: bool, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables pip runs with: as in the activated environment, and nothing of another Python's."""
    base = os.environ if base is None else base
    kept = {k: v for k, v in base.items() if not k.startswith("CONDA_") and k not in _FOREIGN}
    kept |= {
        "PATH": f"{prefix}/bin{os.pathsep}{base.get('PATH', os.defpath)}",
        "CONDA_PREFIX": prefix,
        "PYTHONNOUSERSITE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    kept.setdefault("PIP_DEFAULT_TIMEOUT", str(_TIMEOUT))
    kept.setdefault("PIP_RETRIES", str(_RETRIES))
    if isinstance(settings.ssl_verify, str):
        kept.setdefault("PIP_CERT", settings.ssl_verify)
    if offline:
        kept["PIP_NO_INDEX"] = "1"
    return kept


