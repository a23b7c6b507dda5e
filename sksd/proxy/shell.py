"""The thin end of activation: a program run over Twisted, answering through a descriptor of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from sksd.proxy.activation import ShellFailed

#: Bytes of an answer; the kernel's own limit on a process's variables is of that order.
ANSWER_LIMIT: Final = 8 * 1024 * 1024
#: Bytes of stderr kept, and lines shown, of a shell that failed.
_COMPLAINT_BYTES: Final = 4096
_COMPLAINT_LINES: Final = 3
_STDERR, _ANSWER = 2, 3


async def run(reactor: Any, arguments: Sequence[str], environ: Mapping[str, str], seconds: float) -> bytes:
    """What the program wrote to descriptor 3; its stdin is empty, its stdout thrown away.

    `arguments`: the program's absolute path first. `reactor`: IReactorProcess and IReactorTime; with it bound
    this is a `sksd.proxy.activation.Runner`. Raises ShellFailed with the last lines of stderr when the
    program cannot be started, fails, answers too much, or is not done after `seconds`; then it and all its
    children have been killed. What it leaves running in the background otherwise is left alone. Cancelling
    kills it.
    """
    process = _Process(reactor, seconds)
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        cast(IReactorProcess, reactor).spawnProcess(
            process,
            os.fsencode(arguments[0]),
            [os.fsencode(argument) for argument in arguments],
            env={os.fsencode(key): os.fsencode(value) for key, value in environ.items()},
            path="/",
            childFDs={0: nothing, 1: nothing, _STDERR: "r", _ANSWER: "r"},
        )
    except OSError as error:
        process.abandon()
        raise ShellFailed(f"{arguments[0]} cannot be started ({error.strerror})") from None
    finally:
        os.close(nothing)
    return await process.answer


class _Process(ProcessProtocol):
    """Done when the program has exited and its answer is whole; stderr may be held open by its children."""

    def __init__(self, reactor: Any, seconds: float) -> None:
        self.answer: Deferred[bytes] = Deferred(lambda _: self.stop("it was cancelled"))
        self._parts: list[bytes] = []
        self._size = 0
        self._complaint = b""
        self._exit: Failure | None = None
        self._closed = False
        self._problem: str | None = None
        self._done = False
        self._limit = cast(IReactorTime, reactor).callLater(
            seconds, self.stop, f"its activation scripts were not done after {seconds:g} s"
        )

    def abandon(self) -> None:
        """It could not be started."""
        self._limit.cancel()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD != _ANSWER:
            self._complaint = (self._complaint + data)[-_COMPLAINT_BYTES:]
            return
        self._size += len(data)
        if self._size > ANSWER_LIMIT:
            self.stop(f"its variables take more than {ANSWER_LIMIT} bytes")
        else:
            self._parts.append(data)

    def childConnectionLost(self, childFD: int) -> None:
        if childFD == _ANSWER:
            self._closed = True
            self._settle()

    def processExited(self, reason: Failure) -> None:
        self._exit = reason
        self._settle()

    def stop(self, problem: str) -> None:
        """Kill the program and its children; the answer is then `problem`, once it has exited."""
        self._problem = self._problem or problem
        pid = cast(Any, self.transport).pid
        try:
            # The children found first, then its end: orphans could not be found any more.
            family = psutil.Process(pid).children(recursive=True) if pid else []
            cast(IProcessTransport, self.transport).signalProcess("KILL")
            for child in family:
                child.kill()
        except (psutil.Error, ProcessExitedAlready):
            pass
        self._settle()

    def _settle(self) -> None:
        if self._done or self._exit is None or not (self._closed or self._problem):
            return
        value: Any = self._exit.value
        if self._problem is None and not self._exit.check(ProcessDone):
            how = f"signal {value.signal}" if value.signal else f"exit code {value.exitCode}"
            self._problem = f"its activation scripts ended with {how}"
        if self._problem is None:
            self._finish(b"".join(self._parts))
        else:
            self._finish(ShellFailed(self._with_complaint(self._problem)))

    def _finish(self, result: bytes | ShellFailed) -> None:
        self._done = True
        if self._limit.active():
            self._limit.cancel()
        transport = cast(IProcessTransport, self.transport)
        transport.loseConnection()
        transport.closeChildFD(_ANSWER)
        if isinstance(result, bytes):
            self.answer.callback(result)
        else:
            self.answer.errback(result)

    def _with_complaint(self, problem: str) -> str:
        lines = self._complaint.decode(errors="replace").strip().splitlines()[-_COMPLAINT_LINES:]
        return f"{problem}: {' / '.join(line.strip() for line in lines)}" if lines else problem
