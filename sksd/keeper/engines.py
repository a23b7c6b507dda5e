"""All engines of this user: starting one, finding one, and adopting those that an earlier proxy left."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from twisted.logger import Logger

from sksd import paths
from sksd.errors import BadFolder, CannotWrite, NoSuchEngine, SksdError
from sksd.keeper import processes, records
from sksd.keeper.engine import Engine, Sizes, runtime_folder
from sksd.keeper.log import BoundedLogs
from sksd.wire import messages
from sksd.wire.names import CONNECTION_FILE, DEAD

log = Logger()

#: Engines that nobody has stopped and that are dead: how many are listed still, with what they said, and for how many
#: seconds.
KEEP_DEAD: Final = 16
KEEP_DEAD_FOR: Final = 7 * 24 * 3600.0
#: Until a daemon says what its configuration has.
SIZES: Final = Sizes(journal=256 * 2**20, buffer=1024 * 2**20, memory=4 * 2**20)
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH: Final = 10
_CHANNELS: Final = ("shell", "iopub", "stdin", "control", "hb")


class Engines:
    """`changed` is called with an engine at every new state of it; `sizes` are for those that are started or adopted
    from then on."""

    def __init__(self, reactor: Any, logs: BoundedLogs, changed: Callable[[Engine], None]) -> None:
        self.sizes = SIZES
        self._reactor = reactor
        self._logs = logs
        self._changed = changed
        self._engines: dict[str, Engine] = {}

    def adopt(self) -> None:
        """Called once, when the keeper starts: engines that live are taken over; of those that have ended, what they
        had said is kept for a while."""
        for record in records.load_all():
            if record.ended is not None and record.ended.asked:
                records.remove(record)
                continue
            engine = self._make(record)
            identity = record.identity
            try:
                if identity is None or processes.identify(identity.pid) != identity:
                    raise ProcessLookupError
                engine.adopt()
                log.info("engine {id} goes on", id=record.id)
            except (OSError, SksdError) as failed:
                if not isinstance(failed, ProcessLookupError):
                    log.error("engine {id} cannot be adopted: {failed}", id=record.id, failed=failed)
                engine.bury()
            self._engines[record.id] = engine
        self._forget_old()
        known = {engine.record.id for engine in self._engines.values() if engine.state != DEAD}
        if records.sockets().is_dir():
            for folder in records.sockets().iterdir():
                if folder.name not in known:
                    records.remove_folder(folder)

    def get(self, engine: str) -> Engine:
        """An engine by its id; raises NoSuchEngine."""
        found = self._engines.get(engine)
        if found is None or (found.state == DEAD and found.stopped):
            raise NoSuchEngine(engine=engine)
        return found

    def all(self) -> list[Engine]:
        """Those that are listed, oldest first: not those that somebody has stopped."""
        listed = [engine for engine in self._engines.values() if engine.state != DEAD or not engine.stopped]
        return sorted(listed, key=lambda engine: engine.record.started)

    def living(self) -> int:
        """How many have a process, or will."""
        return sum(engine.state != DEAD for engine in self._engines.values())

    def _make(self, record: records.Record) -> Engine:
        return Engine(self._reactor, record, self._logs, self.sizes, self._engine_changed, self._engine_gone)

    async def start(self, wish: messages.StartEngine) -> Engine:
        """Start an engine as a proxy wishes.

        Returns when its kernel has answered. Raises BadFolder, DiskFull, CannotWrite, KernelDied, KernelSilent;
        nothing is left behind then.
        """
        cwd = wish.cwd or str(paths.home())
        _check_folder(cwd)
        engine = new_id()
        folder = runtime_folder(engine)
        file = folder / "kernel.json"
        connection: dict[str, str | int] = {
            "transport": "ipc",
            "ip": str(folder / "k"),
            "key": secrets.token_hex(32),
            "signature_scheme": "hmac-sha256",
            "kernel_name": "",
        }
        connection |= {f"{channel}_port": number for number, channel in enumerate(_CHANNELS, 1)}
        record = records.Record(
            id=engine,
            environment=wish.environment,
            prefix=wish.prefix,
            python=wish.python,
            kernel=wish.kernel,
            cwd=cwd,
            label=wish.label,
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            linger=wish.linger,
            ready_within=wish.timeout,
            arguments=[each.replace(CONNECTION_FILE, str(file)) for each in wish.arguments],
            variables=wish.variables,
            connection=connection,
            runtime=str(folder),
        )
        try:
            for each in (paths.runtime(), records.sockets(), folder, paths.state(), records.folder()):
                paths.private(each)
            paths.write_private(file, msgspec.json.encode(connection))
            records.save(record)
        except (OSError, CannotWrite) as failed:
            records.remove_folder(folder)
            records.record_path(engine).unlink(missing_ok=True)
            raise records.cannot_keep(failed, folder) from None
        started = self._make(record)
        self._engines[engine] = started
        try:
            await started.start()
        except SksdError:
            # The sentence that the caller gets says it all.
            self.forget(engine)
            raise
        return started

    def _engine_changed(self, engine: Engine) -> None:
        self._changed(engine)
        if engine.state == DEAD:
            self._forget_old()

    def _engine_gone(self, engine: Engine) -> None:
        """Nobody is to be told anything of it any more."""
        if engine.stopped:
            self.forget(engine.record.id)
        elif not engine.unheard:
            # It is listed as long as this process lives; there is nothing to come back for.
            engine.remove()

    def _forget_old(self) -> None:
        dead = [engine for engine in self.all() if engine.state == DEAD and engine.closed]
        dead.sort(key=lambda engine: engine.died)
        old = time.time() - KEEP_DEAD_FOR
        for number, engine in enumerate(dead):
            if len(dead) - number > KEEP_DEAD or engine.died < old:
                self.forget(engine.record.id)

    def forget(self, engine: str) -> None:
        """A dead engine need not be listed any longer, and nothing of it be kept."""
        dead = self._engines.pop(engine, None)
        if dead is not None:
            dead.remove()

    def release(self) -> None:
        """Called when the keeper ends."""
        for engine in self._engines.values():
            engine.release()


def new_id() -> str:
    """A new engine's id: 50 random bits, never used again."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


def _check_folder(cwd: str) -> None:
    if not os.path.isabs(cwd):
        raise BadFolder(path=cwd, problem="it must be an absolute path")
    if not os.path.isdir(cwd):
        raise BadFolder(path=cwd, problem="there is none")
    if not os.access(cwd, os.X_OK):
        raise BadFolder(path=cwd, problem="permission denied")
