"""All engines of this user: starting one, finding one, and adopting those that an earlier proxy left."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from twisted.logger import Logger

from sksd import paths
from sksd.errors import BadFolder, CannotWrite, NoSuchEngine, SksdError
from sksd.proxy import processes, records
from sksd.proxy.engine import Engine, runtime_folder
from sksd.proxy.kernels import MODULES
from sksd.proxy.log import BoundedLogs
from sksd.wire import messages
from sksd.wire.names import DEAD

log = Logger()

#: Dead engines that are still listed, with their last words; only in memory.
KEEP_DEAD: Final = 16
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH: Final = 10
_CHANNELS: Final = ("shell", "iopub", "stdin", "control", "hb")


class Engines:
    """`changed` is called with an engine at every new state of it."""

    def __init__(self, reactor: Any, logs: BoundedLogs, changed: Callable[[Engine], None]) -> None:
        self._reactor = reactor
        self._logs = logs
        self._changed = changed
        self._engines: dict[str, Engine] = {}

    def adopt(self) -> None:
        """Called once, when the proxy starts: engines that live are taken over, the remains of others removed."""
        for record in records.load_all():
            engine = Engine(self._reactor, record, self._logs, self._engine_changed)
            try:
                if record.identity is None or processes.identify(record.identity.pid) != record.identity:
                    raise ProcessLookupError
                engine.adopt()
            except OSError:
                log.info("engine {id} ended while no proxy watched it", id=record.id)
                records.remove(record)
                continue
            self._engines[record.id] = engine
            log.info("engine {id} goes on", id=record.id)
        known = set(self._engines)
        if records.sockets().is_dir():
            for folder in records.sockets().iterdir():
                if folder.name not in known:
                    records.remove_folder(folder)

    def get(self, engine: str) -> Engine:
        """An engine by its id; raises NoSuchEngine."""
        try:
            return self._engines[engine]
        except KeyError:
            raise NoSuchEngine(engine=engine) from None

    def all(self) -> list[Engine]:
        """Oldest first."""
        return sorted(self._engines.values(), key=lambda engine: engine.record.started)

    def living(self) -> int:
        """How many have a process, or will."""
        return sum(engine.state != DEAD for engine in self._engines.values())

    def running_in(self, prefix: str) -> list[str]:
        """Ids of the living engines of one prefix."""
        return [engine.record.id for engine in self.all() if engine.record.prefix == prefix and engine.state != DEAD]

    async def start(
        self,
        wish: messages.SpinUp,
        name: str,
        prefix: str,
        python: str,
        version: str | None,
        kernel: messages.Kernel,
        variables: dict[str, str],
    ) -> Engine:
        """Start an engine with the interpreter `python` of the environment `name`, activated as `variables`.

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
        # A record takes only UTF-8: a kernel without such a variable is better than none.
        variables = {name: value for name, value in variables.items() if _is_utf8(name + value)}
        for name, value in wish.variables.items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
        record = records.Record(
            id=engine,
            environment=name,
            prefix=prefix,
            python=version or "",
            kernel=kernel,
            cwd=cwd,
            label=wish.label,
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            linger=wish.linger,
            ready_within=wish.timeout,
            # Frozen modules would hide the standard library from the debugger.
            arguments=[python, "-Xfrozen_modules=off", "-m", MODULES[kernel.package], "-f", str(file)],
            variables=variables,
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
        started = Engine(self._reactor, record, self._logs, self._engine_changed)
        self._engines[engine] = started
        try:
            await started.start()
        except SksdError:
            # The sentence that the caller gets says it all.
            self._engines.pop(engine, None)
            raise
        return started

    def _engine_changed(self, engine: Engine) -> None:
        if engine.state == DEAD:
            if engine.how() == "stopped":
                self._engines.pop(engine.record.id, None)
            dead = [each for each in self.all() if each.state == DEAD]
            for forgotten in dead[: max(0, len(dead) - KEEP_DEAD)]:
                del self._engines[forgotten.record.id]
        self._changed(engine)

    def forget(self, engine: str) -> None:
        """A dead engine need not be listed any longer."""
        self._engines.pop(engine, None)

    def release(self) -> None:
        """Called when the proxy ends."""
        for engine in self._engines.values():
            engine.release()


def new_id() -> str:
    """A new engine's id: 50 random bits, never used again."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


def _is_utf8(text: str) -> bool:
    # os.environ holds other bytes as lone surrogates.
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _check_folder(cwd: str) -> None:
    if not os.path.isabs(cwd):
        raise BadFolder(path=cwd, problem="it must be an absolute path")
    if not os.path.isdir(cwd):
        raise BadFolder(path=cwd, problem="there is none")
    if not os.access(cwd, os.X_OK):
        raise BadFolder(path=cwd, problem="permission denied")
