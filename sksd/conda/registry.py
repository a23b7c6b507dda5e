"""~/.conda/environments.txt, where conda notes every environment of a person, so that it can list them."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

from sksd.paths import home


def default() -> Path:
    """Where conda keeps it."""
    return home() / ".conda" / "environments.txt"


def register(file: Path, prefix: str) -> None:
    """Add `prefix`, if it does not stand there. Raises OSError."""
    _edit(file, lambda lines: lines if prefix in map(str.strip, lines) else [*lines, prefix])


def unregister(file: Path, prefix: str) -> None:
    """Take every line of `prefix` out; the other lines stay as they are. Raises OSError."""
    if file.exists():
        _edit(file, lambda lines: [line for line in lines if line.strip() != prefix])


def _edit(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # A file that is a link (into a synchronized home) stays one.
    file = file.resolve()
    with open(file.with_name(f".{file.name}.sksd-lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            text = ""
        lines = text.splitlines()
        changed = change(lines)
        if changed == lines:
            return
        part = file.with_name(f".{file.name}.sksd-part")
        part.write_text("".join(f"{line}\n" for line in changed), encoding="utf-8", errors="surrogateescape")
        if text:
            part.chmod(file.stat().st_mode & 0o777)
        part.replace(file)
