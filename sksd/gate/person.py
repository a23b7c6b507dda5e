"""An account of this machine, and how to be it."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import json
import os
import pwd
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from sksd import paths
from sksd.wire.who import Rules, account_of, guest_of

#: What a login has where nobody says otherwise.
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
#: Never from PAM: a gate that was started anew has to find the proxy without opening a session.
_OURS: Final = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")
#: Seconds a proxy has to take a connection.
_CONNECT: Final = 5.0
_NONE_RUNS: Final = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError, PermissionError)
_CAPABILITY_VERSION_3: Final = 0x20080522


Person = pwd.struct_passwd


def find(account: str | int) -> Person | None:
    """The account of that name (or guest) or uid; None when there is none."""
    try:
        return pwd.getpwnam(account_of(account)) if isinstance(account, str) else pwd.getpwuid(account)
    except (KeyError, ValueError):
        return None


def problem(account: str, rules: Rules) -> str | None:
    """Why an account may not come in, for all that it has proved; None for one that may."""
    groups = []
    for number in os.getgrouplist(account, pwd.getpwnam(account).pw_gid):
        with contextlib.suppress(KeyError):
            groups.append(grp.getgrgid(number).gr_name)
    return rules.problem(account, groups)


def environment(who: Person, user: str, lang: str, granted: dict[str, str]) -> dict[str, str]:
    """The variables of a clean login; `user`: the person, or guest, who is `who` here; `granted`: from PAM."""
    ours = {"HOME": who.pw_dir, "USER": who.pw_name, "LOGNAME": who.pw_name, "SHELL": who.pw_shell or "/bin/sh"}
    if os.path.isdir(runtime := f"/run/user/{who.pw_uid}"):
        ours["XDG_RUNTIME_DIR"] = runtime
    if guest := guest_of(user):
        ours[paths.GUEST] = guest
    given = {name: value for name, value in granted.items() if name not in _OURS}
    return {"PATH": _PATH, "LANG": lang, **given, **ours}


@contextlib.contextmanager
def acting_as(who: Person) -> Iterator[None]:
    """With this person's rights until the end of the block.

    The real user id stays root's: no process of the person's can signal or trace this one, nor hold it up with a
    file system of its own (FUSE asks for all three ids).
    """
    os.initgroups(who.pw_name, who.pw_gid)
    os.setegid(who.pw_gid)
    os.seteuid(who.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def connect(who: Person, user: str, lang: str) -> socket.socket | None:
    """A connection to the proxy of `user`, who is `who` here; None when none runs. Raises OSError when one does not
    answer."""
    os.environ.update(environment(who, user, lang, {}))
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.settimeout(_CONNECT)
    with acting_as(who), contextlib.suppress(*_NONE_RUNS):
        found.connect(str(paths.proxy_socket()))
        # In /tmp anybody could have put a socket there.
        if struct.unpack("3i", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] == who.pw_uid:
            return found
    found.close()
    return None


def begin(module: str, order: dict[str, Any], who: Person | None = None) -> str:
    """Start `python -m module ORDER`, as root or as `who`. It says on its stdout how that went, {"ready": true} or
    {"error": sentence}; answers what went wrong, in words, empty where nothing did."""
    groups = os.getgrouplist(who.pw_name, who.pw_gid) if who else None
    begun = subprocess.Popen(
        [sys.executable, "-I", "-m", module, json.dumps(order)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": order["lang"]},
        start_new_session=True, user=who and who.pw_uid, group=who and who.pw_gid, extra_groups=groups,
    )  # fmt: skip
    try:
        return str(json.loads(begun.stdout.readline(4096) if begun.stdout else b"").get("error", ""))
    except (ValueError, AttributeError):
        return "it ended at once: its log there, ~/.local/state/sksd/proxy.log, tells more"


def become(who: Person) -> None:
    """Be this person for good, with the groups that are set already and no capability."""
    os.setresgid(who.pw_gid, who.pw_gid, who.pw_gid)
    os.setresuid(who.pw_uid, who.pw_uid, who.pw_uid)
    # The kernel has taken all but those that an exec may inherit.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capabilities could not be dropped")
