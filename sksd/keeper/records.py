"""What the disk knows of an engine, so that a later proxy can find it again."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

import msgspec
from twisted.logger import Logger

from sksd import paths
from sksd.errors import CannotWrite, DiskFull, SksdError
from sksd.wire.messages import Kernel

log = Logger()


class Identity(msgspec.Struct, frozen=True):
    """Which process, beyond doubt: a pid alone is used again. `started`: field 22 of /proc/PID/stat (proc(5))."""

    boot: str
    pid: int
    started: int
    uid: int


class Ended(msgspec.Struct):
    """How an engine ended. `at`: seconds since 1970. `asked`: somebody has stopped it; of others record, log and
    journal stay for a while."""

    how: str
    at: float
    asked: bool = False
    exit_code: int | None = None
    signal: int | None = None


class Record(msgspec.Struct, kw_only=True):
    """One engine, as it stands in `state/engines/ID.json` (0600). `connection`: the Jupyter connection file's
    content; `runtime`: the folder of its sockets."""

    id: str
    environment: str
    prefix: str
    python: str
    kernel: Kernel
    cwd: str
    label: str
    started: str
    linger: float | None
    ready_within: float
    arguments: list[str]
    variables: dict[str, str]
    connection: dict[str, str | int]
    runtime: str
    identity: Identity | None = None
    ended: Ended | None = None


def folder() -> Path:
    """Where the records and logs are."""
    return paths.state() / "engines"


def record_path(engine: str) -> Path:
    """The record of an engine."""
    return folder() / f"{engine}.json"


def log_path(engine: str) -> Path:
    """The log of an engine."""
    return folder() / f"{engine}.log"


def journal_path(engine: str) -> Path:
    """The folder of an engine's journal."""
    return folder() / f"{engine}.journal"


def seen_path(engine: str) -> Path:
    """The file that says where begins what no front end has had of the journal."""
    return folder() / f"{engine}.seen"


def save(record: Record) -> None:
    """Write a record whole. Raises OSError."""
    paths.write_private(record_path(record.id), msgspec.json.encode(record))


def load_all() -> list[Record]:
    """The records there are; one that cannot be read is removed, with a line in the log."""
    found = []
    for path in sorted(folder().glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Record))
        except (OSError, msgspec.MsgspecError) as error:
            log.warn("the record {path} cannot be used: {error}", path=str(path), error=error)
            path.unlink(missing_ok=True)
    return found


def remove(record: Record) -> None:
    """Remove all that an engine has on disk: sockets, connection file, record and log."""
    runtime = Path(record.runtime)
    if runtime.parent == sockets():
        remove_folder(runtime)
    log_path(record.id).unlink(missing_ok=True)
    seen_path(record.id).unlink(missing_ok=True)
    shutil.rmtree(journal_path(record.id), ignore_errors=True)
    record_path(record.id).unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove an engine's runtime folder with the sockets in it, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            os.unlink(entry.path)
        folder.rmdir()


def cannot_keep(failed: OSError | CannotWrite, path: Path) -> SksdError:
    """What to tell a person when an engine's files cannot be written."""
    if isinstance(failed, CannotWrite):
        return failed
    where = str(failed.filename or path)
    if failed.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(path=where)
    return CannotWrite(path=where, problem=failed.strerror or str(failed))


def sockets() -> Path:
    """The folder of the engines' runtime folders."""
    return paths.runtime() / "e"
