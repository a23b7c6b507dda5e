"""What rattler says went wrong, as the errors that a person reads."""

from __future__ import annotations

import re
from typing import Final

from rattler.exceptions import (
    GatewayError,
    InvalidMatchSpecError,
    InvalidPackageNameError,
    InvalidVersionSpecError,
    SolverError,
)

from sksd.conda.secrets import mask
from sksd.conda.sources import Sources
from sksd.errors import (
    BadSpec,
    CannotWrite,
    ChangeFailed,
    ChannelRefused,
    ChannelUnreachable,
    DiskFull,
    NoSuchPackage,
    NotCached,
    SksdError,
    Unsolvable,
)

_FULL: Final = ("No space left on device", "Disk quota exceeded", "File too large")
_STATUS: Final = re.compile(r"\((40[0-9][^)]*)\)|HTTP status.*?(40\d\b[^)\n]*)")
_URL: Final = re.compile(r"https?://[^\s)>]+|file://[^\s')>]+")
_NOTHING: Final = re.compile(r"because of: No candidates were found for (.+?)\.\s*$", re.DOTALL)
#: Of a solver's explanation.
_LONGEST: Final = 4000


def translated(error: BaseException, prefix: str, name: str, sources: Sources) -> SksdError:
    """`error` of rattler, or of the system, as one of sksd's. `prefix`, `name`: what was being changed."""
    if isinstance(error, SksdError):
        return error
    text = mask(str(error)).strip()
    if any(words in text for words in _FULL):
        return DiskFull(path=prefix)
    if isinstance(error, PermissionError) or "Permission denied" in text:
        path = getattr(error, "filename", None)
        return CannotWrite(path=str(path or prefix), problem="permission denied")
    if isinstance(error, (InvalidMatchSpecError, InvalidPackageNameError, InvalidVersionSpecError)):
        return BadSpec(name=name, spec="?", problem=text)
    if isinstance(error, SolverError):
        return _solver(text, name, sources)
    found = _URL.search(text)
    url = found.group(0) if found else ", ".join(place.url for place in sources.places)
    status = _STATUS.search(text)
    if status:
        return ChannelRefused(name=name, url=url, problem=status.group(1) or status.group(2))
    if isinstance(error, GatewayError):
        if sources.offline:
            return NotCached(name=name, package=f"the package list of {url}")
        return ChannelUnreachable(name=name, url=url, problem=_last(text))
    if found and "error sending request" in text:
        return ChannelUnreachable(name=name, url=url, problem=_last(text))
    return ChangeFailed(name=name, problem=_last(text) or type(error).__name__)


def _solver(text: str, name: str, sources: Sources) -> SksdError:
    missing = _NOTHING.search(text)
    if missing and "\n" not in missing.group(1):
        spec = missing.group(1).removesuffix(" *")
        return NoSuchPackage(name=name, spec=spec, channels=", ".join(sources.names))
    text = text.removeprefix("Cannot solve the request because of:").strip()
    return Unsolvable(name=name, problem=text[:_LONGEST])


def _last(text: str) -> str:
    """The innermost cause, which is the one that says something."""
    lines = [line.removeprefix("Caused by: ").strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "")[:1000]
