"""`~/.ssh/authorized_keys` (sshd(8), "AUTHORIZED_KEYS FILE FORMAT"): which keys open an account, and from where.

What an option of a line forbids in ssh it forbids here. A key that sshd would let do one thing only (`command=`) is
no key to a Python prompt, and so is refused; what limits forwarding or the terminal changes nothing here.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import fnmatch
import ipaddress
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sksd.wire import sshkey

#: Bytes of the file.
LARGEST: Final = 1024 * 1024
#: Options that take nothing from somebody who is let in to run code, by their lower-case names.
_HARMLESS: Final = frozenset(
    {"restrict", "pty", "no-pty", "port-forwarding", "no-port-forwarding", "agent-forwarding", "no-agent-forwarding"}
    | {"x11-forwarding", "no-x11-forwarding", "user-rc", "no-user-rc", "no-touch-required", "environment"}
    | {"permitopen", "permitlisten"}
)
_OPTION: Final = re.compile(r'([A-Za-z0-9-]+)(?:="((?:[^"\\]|\\.)*)")?(,|[ \t]+)')
_KINDS: Final = re.compile(r"(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[A-Za-z0-9@.-]+[ \t]")


def _matches(address: str, patterns: str) -> bool:
    """`from=`: addresses, networks, wildcards; `!` before one that is kept out. Names are not looked up."""
    allowed = False
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    for pattern in patterns.lower().split(","):
        wanted = pattern.strip().removeprefix("!")
        try:
            hit = ip in ipaddress.ip_network(wanted, strict=False)
        except ValueError:
            hit = fnmatch.fnmatchcase(str(ip), wanted.replace("[", "[[]"))
        if hit and pattern.strip().startswith("!"):
            return False
        allowed = allowed or hit
    return allowed


def _expired(value: str, now: datetime.datetime) -> bool:
    """`expiry-time`: YYYYMMDD[HHMM[SS]], of the host's own time, or with Z of UTC. Nonsense has expired."""
    digits = value.upper().removesuffix("Z")
    form = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if form is None or not digits.isascii() or not digits.isdigit():
        return True
    try:
        until = datetime.datetime.strptime(digits, form)
    except ValueError:
        return True
    aware = until.replace(tzinfo=datetime.UTC) if value.upper().endswith("Z") else until.astimezone()
    return now >= aware


def _permits(options: Iterable[tuple[str, str]], address: str, now: datetime.datetime) -> bool:
    for name, value in options:
        match name.lower():
            case "from":
                if not _matches(address, value.replace('\\"', '"')):
                    return False
            case "expiry-time":
                if _expired(value, now):
                    return False
            case known if known not in _HARMLESS:
                return False
    return True


def _line(line: str) -> tuple[list[tuple[str, str]], bytes] | None:
    """The options and the key of a line; None for one that is empty, a comment, or cannot be read."""
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    options: list[tuple[str, str]] = []
    if not _KINDS.match(text):
        more = True
        while more:
            found = _OPTION.match(text)
            if found is None:
                return None
            options.append((found[1], found[2] or ""))
            text, more = text[found.end() :], found[3] == ","
    words = text.split()
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        return None
    return (options, blob) if sshkey.kind(blob) == words[0] else None


def permits(text: str, key: bytes, address: str, now: datetime.datetime) -> bool:
    """Whether the file's `text` lets somebody in with `key` (a blob) who comes from `address` at `now` (aware)."""
    spelled = base64.b64encode(key).decode("ascii").rstrip("=")
    for line in text.splitlines():
        # The file may be long, and strangers make us look: only what can be the line is taken apart.
        found = _line(line) if spelled in line else None
        if found is not None and found[1] == key and _permits(found[0], address, now):
            return True
    return False


def place(home: Path) -> Path:
    """Where the keys to the account with this home are."""
    return home / ".ssh" / "authorized_keys"


def read(home: Path) -> str:
    """The text of the caller's own file; empty where there is none, or where others may write it or what leads to it.

    To be called by a process that runs as the user, for it follows the user's links.
    """
    path = place(home)
    try:
        for folder in (home, path.parent):
            about = os.stat(folder)
            if about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022:
                return ""
        # Not to be held up by a FIFO in the place of the file.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022:
                return ""
            return file.read(LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""


def admits(home: Path, user: str, attempt: sshkey.Attempt) -> bool:
    """Whether an attempt to log in as `user` proves a key that the account takes. Called as that user."""
    keys = sshkey.proven(user, attempt)
    if not keys:
        return False
    text, now = read(home), datetime.datetime.now(datetime.UTC)
    return any(permits(text, key, attempt.address, now) for key in keys)
