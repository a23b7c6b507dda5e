"""Where sksd keeps its files: the one place that knows the platform's folders.

The XDG base directory specification; every folder is made with mode 0700 and must belong to the caller.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

from sksd.errors import CannotWrite

#: A UNIX socket's path is at most 107 bytes (sun_path); this leaves room for `/e/<10 letters>/k-65535`.
_LONGEST_RUNTIME = 72

#: The variable that tells a guest's processes which guest that is; made by the gate.
GUEST: Final = "SKSD_GUEST_ID"

#: Bytes of a log of a process of ours; a longer one is put aside when another is started, as NAME.log.1.
LOG_LIMIT: Final = 1024 * 1024


def home() -> Path:
    """The caller's home: $HOME, else as the account says."""
    return Path(os.path.expanduser("~"))


def _xdg(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "")
    # The specification: relative paths are to be ignored.
    return (Path(value) if os.path.isabs(value) else default) / "sksd"


def configuration_file() -> Path:
    """The configuration of the caller's own daemon."""
    return _xdg("XDG_CONFIG_HOME", home() / ".config") / "sksd.conf"


def guest() -> str:
    """The id of the guest whom this process serves; empty for a person. Guests share an account, and nothing else."""
    return os.environ.get(GUEST, "")


def _of_guest(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-guest-{guest()}") if guest() else folder


def state() -> Path:
    """Certificate, secrets, known hosts, records and logs of the caller."""
    return _of_guest(_xdg("XDG_STATE_HOME", home() / ".local" / "state"))


def guest_home() -> Path:
    """What is the home in a guest's kernels; it goes with the guest."""
    return state() / "home"


def cache() -> Path:
    """What may be thrown away at any time, such as names for tab completion."""
    return _xdg("XDG_CACHE_HOME", home() / ".cache")


def runtime() -> Path:
    """Sockets: $XDG_RUNTIME_DIR/sksd, or a folder under /tmp where that is not set or too long for a socket."""
    wanted = _of_guest(_xdg("XDG_RUNTIME_DIR", Path(f"/run/user/{os.geteuid()}")))
    if os.path.isdir(wanted.parent) and os.access(wanted.parent, os.W_OK) and len(str(wanted)) <= _LONGEST_RUNTIME:
        return wanted
    # Another home, or another runtime folder, is another instance: it must not meet this one's sockets.
    distinct = hashlib.sha256(f"{wanted}\0{state()}".encode()).hexdigest()[:8]
    return Path(f"/tmp/sksd-{os.geteuid()}-{distinct}")


def private(folder: Path) -> Path:
    """Make `folder` (and its parents) if need be; it must belong to the caller and be closed to everybody else.

    Raises CannotWrite, in words for the user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = os.lstat(folder)
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            raise CannotWrite(host="this machine", path=str(folder), problem="it is not a folder of yours")
        if about.st_mode & 0o077:
            os.chmod(folder, 0o700)
    except OSError as error:
        raise CannotWrite(host="this machine", path=str(folder), problem=error.strerror or str(error)) from None
    return folder


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all, mode 0600. Raises OSError."""
    # Under a name that nobody can foresee: `path` may be in a folder where others can make files, as /tmp.
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def read_private(path: Path, most: int) -> bytes:
    """The first `most` bytes of the caller's own ordinary file; raises OSError where it is another's, or a link.

    For files by which a program is led somewhere: their folder may be one that others can make (under /tmp).
    """
    # O_NONBLOCK: not to be held up by a FIFO in the place of the file.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "it is not a private file of yours", str(path))
        return file.read(most)


def daemon_note() -> Path:
    """Where the caller's daemon says how to reach it (a JSON object, `sksd.wire.local`)."""
    return runtime() / "daemon.json"


def system_state() -> Path:
    """Root's part of the state of a shared host's daemon: two closed folders, the gate's and the daemon's."""
    return Path(os.environ.get("SKSD_SYSTEM_STATE") or "/var/lib/sksd")


def system_runtime() -> Path:
    """Where the daemon of a shared host leaves its note and listens for this machine; only root writes there."""
    return Path(os.environ.get("SKSD_SYSTEM_RUNTIME") or "/run/sksd")


def system_note() -> Path:
    """As `daemon_note`, of a shared host's daemon."""
    return system_runtime() / "daemon.json"


def system_socket() -> Path:
    """Where a shared host's daemon takes people of the same machine without a password."""
    return system_runtime() / "sksd.sock"


def token() -> Path:
    """The local login token of user mode."""
    return state() / "token"


def proxy_socket() -> Path:
    """Where the caller's proxy listens."""
    return runtime() / "proxy.sock"


def keeper_socket() -> Path:
    """Where the caller's keeper listens."""
    return runtime() / "keeper.sock"


def open_log(name: str) -> tuple[Path, int]:
    """A log of the caller's processes called `name`, open for appending (0600); one that has grown long is put aside.
    Raises CannotWrite."""
    path = private(state()) / f"{name}.log"
    try:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_LIMIT:
                os.replace(path, path.with_suffix(".log.1"))
        return path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotWrite(host="this machine", path=str(path), problem=error.strerror or str(error)) from None


def executables() -> Path:
    """The folder of this interpreter's own executables."""
    return Path(sys.executable).parent
