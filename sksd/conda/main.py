"""The process: one job from stdin, events to stdout, and the end.

`python -P -m sksd.conda`; with `--undo PREFIX OUT FAILURE LOCK` it is what a failed change becomes by exec, so that
no thread of rattler's goes on in the prefix while it is mended: the descriptors OUT (events), FAILURE (the `Failed`
event to end with) and LOCK (of the prefix) are inherited.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from sksd.conda import pending
from sksd.conda.messages import LARGEST_JOB, Done, Failed, Job
from sksd.conda.out import Out, failed
from sksd.errors import BadRequest, Cancelled, InternalError, SksdError, from_code

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: Sequence[str]) -> NoReturn:
    """What `python -m sksd.conda` does. Does not return: the interpreter may abort on its way out when rattler was in
    it."""
    match list(arguments):
        case ["--undo", prefix, out, failure, lock]:
            code = _undo(prefix, Out(int(out)), int(failure), int(lock))
        case _:
            # Only events go to stdout, whatever a library may print.
            events = os.dup(1)
            os.dup2(2, 1)
            code = _job(Out(events))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _job(out: Out) -> int:
    early: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda caught, _frame: early.append(caught))
    try:
        data = sys.stdin.buffer.read(LARGEST_JOB + 1)
        job = msgspec.json.decode(data, type=Job)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        out.event(failed(BadRequest(problem=str(error))))
        return 2
    # Here, not above: rattler comes with it, and a job that cannot be read needs none.
    from sksd.conda.operations import run
    from sksd.conda.work import Work

    work = Work(job, out)
    loop = asyncio.new_event_loop()
    task = loop.create_task(run(work))

    def cancel() -> None:
        if not work.final:
            task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, cancel)
    if early:
        cancel()
    try:
        out.event(loop.run_until_complete(task))
        return 0
    except BaseException as error:
        return _failed(work, error)


def _failed(work: object, error: BaseException) -> int:
    from sksd.conda.reasons import translated
    from sksd.conda.work import Work

    assert isinstance(work, Work)
    name = work.name or work.job.name or work.job.prefix
    if isinstance(error, asyncio.CancelledError):
        reason: SksdError = Cancelled(name=name)
    else:
        try:
            reason = translated(error, work.prefix or work.job.prefix, name, work.sources)
        except SksdError as other:
            reason = other
    reason.fields.setdefault("name", name)
    if work.note is None:
        reason.fields.setdefault("undone", "Nothing was changed.")
        work.out.event(failed(reason))
        return 1
    _become_undo(work.note.prefix, work.out, failed(reason), work.lock_of(work.note.prefix))


def _become_undo(prefix: str, out: Out, failure: Failed, lock: int) -> NoReturn:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    memory = os.memfd_create("failure")
    os.write(memory, msgspec.json.encode(failure))
    for descriptor in (memory, out.descriptor, lock):
        os.set_inheritable(descriptor, True)
    descriptors = map(str, (out.descriptor, memory, lock))
    os.execv(sys.executable, [sys.executable, "-P", "-m", "sksd.conda", "--undo", prefix, *descriptors])


def _undo(prefix: str, out: Out, memory: int, lock: int) -> int:
    from sksd.conda.undo import mend

    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    failure = msgspec.json.decode(os.pread(memory, LARGEST_JOB, 0), type=Failed)
    reason = from_code(failure.code, failure.message, failure.fields)
    note = pending.read(prefix)
    try:
        if note is None:
            said = "Nothing is left to undo."
        else:
            said = asyncio.new_event_loop().run_until_complete(mend(note, out, lock))
            if note.operation == "remove":
                out.event(Done(prefix=prefix, name=note.name, changed=True))
                return 0
        reason.fields["undone"] = said
        out.event(failed(reason))
    except SksdError as error:
        error.fields["undone"] = f"It began with this: {reason}"
        out.event(failed(error))
    except Exception as error:
        out.event(failed(InternalError(problem=repr(error), log_id="(no log)")))
    return 1
