"""The audit log: who came, from where, by which method, and what was started and stopped.

One JSON object a line, an `Entry`, into journald or a file. Its fields are named here one by one, so that nothing
else, a secret least of all, can get in.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from attrs import Factory, define
from twisted.logger import Logger

from sksd.server.throttle import group

log = Logger()

#: Where journald takes entries (systemd-journald.service(8)).
JOURNAL: Final = "/run/systemd/journal/socket"
#: Bytes of the file before it is put aside as audit.log.1, and how many of those are kept.
SIZE: Final = 4 * 1024 * 1024
KEPT: Final = 4
#: Seconds between two refusals of one address that are recorded: a stranger must not fill the log until it has lost
#: what went before. And the addresses that this is remembered of.
PAUSE: Final = 1.0
REMEMBERED: Final = 1024


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One event. `login` is the same for all that one login did; what does not belong to an event is left out.

    Events: daemon-started, daemon-stopped, certificate-loaded (`fingerprint`); login, login-refused (`reason`: the
    code of the error), logout; engine-started, engine-restarted, engine-stopped, each by somebody who asked for it;
    engine-ended (`reason`: how), by itself; environment-changed (`change`: the call that did it); link-opened,
    link-refused, link-closed.
    """

    #: ISO 8601 in UTC.
    time: str
    event: str
    login: str | None = None
    user: str | None = None
    address: str | None = None
    port: int | None = None
    method: str | None = None
    engine: str | None = None
    environment: str | None = None
    change: str | None = None
    reason: str | None = None
    #: How many of this event and address were left out since the last one.
    left_out: int | None = None
    fingerprint: str | None = None


class Sink(Protocol):
    """Where entries go. `write` raises OSError."""

    def write(self, entry: Entry) -> None:
        """Keep one."""


class Nowhere:
    """`audit = no`."""

    def write(self, entry: Entry) -> None:
        """Drop it."""


class File:
    """A file of mode 0600 that is put aside when it has grown."""

    def __init__(self, path: Path, size: int = SIZE) -> None:
        self._path = path
        self._size = size

    def write(self, entry: Entry) -> None:
        """Append a line."""
        line = msgspec.json.encode(entry) + b"\n"
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size + len(line) > self._size:
                self._put_aside()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def _put_aside(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{number}") for number in range(1, KEPT + 1))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)


class Journal:
    """journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram an entry, each field by itself,
    and the line as its message."""

    def __init__(self, path: str = JOURNAL) -> None:
        self._path = path

    def write(self, entry: Entry) -> None:
        """Send it."""
        fields = {f"SKSD_{name.upper()}": str(value) for name, value in msgspec.to_builtins(entry).items()}
        fields |= {"MESSAGE": msgspec.json.encode(entry).decode(), "SYSLOG_IDENTIFIER": "sksd", "PRIORITY": "5"}
        datagram = b"".join(_field(name, value) for name, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # A journal that hangs must not hang the daemon.
            sender.setblocking(False)
            sender.sendto(datagram, self._path)


def _field(name: str, value: str) -> bytes:
    # Not the form NAME=VALUE: a value with a line feed in it would end there, and begin another field.
    data = value.encode("utf-8", "backslashreplace")
    return name.encode("ascii") + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


def sink(where: str, state: Path) -> Sink:
    """The place that the key `audit` names: `auto` is journald where there is one, else audit.log in the folder
    `state`. Called at the daemon's start."""
    if where == "no":
        return Nowhere()
    if where == "journal" or (where == "auto" and os.path.exists(JOURNAL)):
        return Journal()
    return File(state / "audit.log")


@define
class Audit:
    """What the daemon records its events with. A log that cannot be written is told of in the daemon's own, once, and
    keeps nobody from working."""

    _sink: Sink
    _clock: Callable[[], float] = time.monotonic
    _broken: bool = False
    #: By event and address: when one was recorded, and how many were left out since.
    _refused: OrderedDict[tuple[str, str], tuple[float, int]] = Factory(OrderedDict)

    def _left_out(self, event: str, address: str) -> int | None:
        """None for a refusal that is not to be recorded, else how many were left out before it."""
        now, key = self._clock(), (event, group(address))
        at, count = self._refused.pop(key, (now - PAUSE, 0))
        if now - at < PAUSE:
            self._refused[key] = (at, count + 1)
            return None
        self._refused[key] = (now, 0)
        while len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)
        return count

    def record(self, event: str, **fields: Any) -> None:
        """One event, now; `fields` are those of `Entry`."""
        if event.endswith("-refused"):
            left_out = self._left_out(event, fields.get("address", ""))
            if left_out is None:
                return
            fields["left_out"] = left_out or None
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            self._sink.write(Entry(time=now, event=event, **fields))
        except OSError as error:
            if not self._broken:
                log.error("the audit log cannot be written: {why}", why=error.strerror or str(error))
            self._broken = True
        else:
            self._broken = False
