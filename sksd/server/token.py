"""Secrets that the daemon makes for itself at its first start, each in a private file.

The local login token is what proves in user mode that somebody may read the user's files, and so is the user:
the command line on the same machine reads it from `paths.token()`.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from sksd import paths
from sksd.errors import CannotWrite, ConfigurationFile

_RANDOM: Final = 32
_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{43}")


def _make(path: Path) -> None:
    """Make the file whole; of several that do so at once, the first wins."""
    paths.private(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(_RANDOM) + "\n")
            file.flush()
            os.fsync(descriptor)
        # Unlike a rename, a link does not replace what another process has made in the meantime.
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise CannotWrite(path=str(path), problem=error.strerror or str(error)) from None
    finally:
        part.unlink(missing_ok=True)


def _carefully(path: str, flags: int) -> int:
    # Neither held up by a FIFO, nor led elsewhere.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def secret(path: Path) -> str:
    """The secret in `path`, made there when there is none: 43 url-safe letters, 32 random bytes.

    Called at the daemon's start. Raises ConfigurationFile when others can read the file, or it holds
    something else; CannotWrite when it cannot be made.
    """
    if not os.path.lexists(path):
        _make(path)
    try:
        with open(path, "rb", opener=_carefully) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ConfigurationFile(file=str(path), problem="it is not an ordinary file: move it away")
            if about.st_uid != os.geteuid():
                raise ConfigurationFile(file=str(path), problem="it does not belong to you: move it away")
            if about.st_mode & 0o077:
                raise ConfigurationFile(
                    file=str(path),
                    problem="others can read this secret: delete it, and start again for a new one",
                )
            text = file.read(100).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigurationFile(file=str(path), problem=error.strerror or str(error)) from None
    if _SHAPE.fullmatch(text) is None:
        raise ConfigurationFile(
            file=str(path),
            problem="it does not hold a secret of sksd: delete it, and start again for a new one",
        )
    return text


def local() -> str:
    """The caller's local login token, made when there is none. Raises as `secret` does."""
    return secret(paths.token())


def matches(given: str, expected: str) -> bool:
    """Whether a client gave the right token; takes the same time wherever they differ. Never raises."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode("ascii"))
