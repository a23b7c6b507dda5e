"""What the daemon of a shared host does with root's rights before it gives them up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

import sksd
import twisted
from sksd.errors import CannotWrite, NeedsRoot, NoGuestAccount, NoRunAs, NotForOthers
from sksd.server.configuration import Configuration

_PR_SET_NO_NEW_PRIVS: Final = 38


def daemon_account(configuration: Configuration) -> pwd.struct_passwd:
    """Whom the daemon is to run as. Raises NeedsRoot, NoRunAs."""

    def place(key: str) -> dict[str, str | int]:
        return {"file": str(configuration.file or "sksd.conf"), "line": configuration.line("sksd", key)}

    if os.geteuid() != 0:
        raise NeedsRoot(**place("mode"))
    try:
        found = pwd.getpwnam(configuration.run_as)
    except KeyError:
        found = None
    if found is None or found.pw_uid == 0:
        key = "run_as" if configuration.line("sksd", "run_as") else "mode"
        raise NoRunAs(account=configuration.run_as, **place(key))
    return found


def check_guest(configuration: Configuration) -> None:
    """Whether guests' account can be used, where one is named. Raises NoGuestAccount."""
    name = configuration.guest_account
    try:
        usable = not name or (pwd.getpwnam(name).pw_uid != 0 and name != configuration.run_as)
    except KeyError:
        usable = False
    if not usable:
        line = configuration.line("guest", "guest_account")
        raise NoGuestAccount(file=str(configuration.file), line=line, account=name)


@contextlib.contextmanager
def acting_as(account: pwd.struct_passwd) -> Iterator[None]:
    """With this account's rights, and none of a group's but its own, until the end of the block."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def give_up(account: pwd.struct_passwd) -> None:
    """Be this account for good, with no way back."""
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def folder(path: Path, mode: int, account: pwd.struct_passwd | None = None) -> Path:
    """Root's folder, or that of `account` within one of root's, made if need be. Raises CannotWrite where somebody
    else owns it, or may write there."""
    uid, gid = (account.pw_uid, account.pw_gid) if account else (0, 0)
    try:
        path.mkdir(mode=0o700, parents=account is None, exist_ok=True)
        about = os.lstat(path)
        if not stat.S_ISDIR(about.st_mode) or about.st_uid not in (0, uid):
            raise CannotWrite(host="this machine", path=str(path), problem="it is not a folder of root's")
        os.chown(path, uid, gid)
        os.chmod(path, mode)
    except OSError as error:
        raise CannotWrite(host="this machine", path=str(path), problem=error.strerror or str(error)) from None
    return path


def check_installation(account: pwd.struct_passwd) -> None:
    """Whether other accounts can run what this process runs, and none of them change it. Raises NotForOthers."""
    modules = [Path(module.__file__ or "/").parent for module in (os, sksd, twisted, msgspec)]
    for wanted in (Path(sys.executable), Path(sys.prefix), *modules):
        for path in (wanted, wanted.resolve()):
            for part in (*reversed(path.parents), path):
                # Of what only leads there nothing has to be listed.
                if problem := _problem(part, account, os.X_OK if part != path else os.R_OK | os.X_OK):
                    raise NotForOthers(program=sys.executable, problem=problem, path=str(part))
    alone = [sys.executable, "-I", "-c", "import sksd.gate.gate"]
    if subprocess.run(alone, cwd="/", env={}, stderr=subprocess.DEVNULL, check=False).returncode:
        problem = "without PYTHONPATH and the working folder it finds no sksd that works"
        raise NotForOthers(program=sys.executable, problem=problem, path=sys.prefix)


def _problem(path: Path, account: pwd.struct_passwd, wanted: int) -> str:
    about = os.lstat(path)
    if about.st_uid != 0:
        return "somebody else than root could change it, who owns what is"
    if not stat.S_ISLNK(about.st_mode) and about.st_mode & 0o002 and not about.st_mode & stat.S_ISVTX:
        return "everybody could change what is"
    with acting_as(account):
        if not os.access(path, wanted, effective_ids=True):
            return "other accounts cannot reach what is"
    return ""
