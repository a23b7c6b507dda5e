"""An account of this machine, and how to be it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sksd import paths

#: What a login has where nobody says otherwise.
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
#: Never from PAM: a gate that was started anew has to find the proxy without opening a session.
_OURS: Final = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")
#: Seconds a proxy has to take a connection.
_CONNECT: Final = 5.0
_CAPABILITY_VERSION_3: Final = 0x20080522


@dataclass(frozen=True)
class Person:
    """As in passwd(5)."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


def named(name: str) -> Person | None:
    """The account `name`, by the name that the system has for it; None when there is none."""
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None
    return Person(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir, found.pw_shell)


def name_of(uid: int) -> str:
    """The name of an account; empty when there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def environment(who: Person, lang: str, granted: dict[str, str]) -> dict[str, str]:
    """The variables of a clean login; `granted` are those that PAM has given."""
    ours = {"HOME": who.home, "USER": who.name, "LOGNAME": who.name, "SHELL": who.shell or "/bin/sh"}
    if os.path.isdir(runtime := f"/run/user/{who.uid}"):
        ours["XDG_RUNTIME_DIR"] = runtime
    given = {name: value for name, value in granted.items() if name not in _OURS}
    return {"PATH": _PATH, "LANG": lang, **given, **ours}


@contextlib.contextmanager
def acting_as(who: Person) -> Iterator[None]:
    """With this person's rights until the end of the block.

    The real user id stays root's: no process of the person's can signal or trace this one, nor hold it up with a
    file system of its own (FUSE asks for all three ids).
    """
    os.initgroups(who.name, who.gid)
    os.setegid(who.gid)
    os.seteuid(who.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def connect(who: Person, environ: dict[str, str]) -> socket.socket | None:
    """A connection to the person's proxy; None when none runs. Raises OSError when one does not answer."""
    os.environ.update(environ)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.settimeout(_CONNECT)
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, NotADirectoryError, PermissionError):
        found.connect(str(paths.proxy_socket()))
        # In /tmp anybody could have put a socket there.
        if struct.unpack("3i", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] == who.uid:
            return found
    found.close()
    return None


def become(who: Person) -> None:
    """Be this person for good, with the groups that are set already and no capability."""
    os.setresgid(who.gid, who.gid, who.gid)
    os.setresuid(who.uid, who.uid, who.uid)
    # The kernel has taken all but those that an exec may inherit.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capabilities could not be dropped")
