"""Runs the body of a command under asyncio's reactor, with Ctrl-C and SIGTERM leading to an orderly end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import attrs

from sksd.cli.output import Output

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

T = TypeVar("T")

#: What a shell takes for "ended by this signal".
_BY_SIGNAL: Final = 128


class Stopped(Exception):
    """SIGINT or SIGTERM ended the command; `exit_code` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = _BY_SIGNAL + number


@attrs.define
class Scope:
    """What the body of a command gets. While `on_interrupt` is set, it is called for Ctrl-C instead of the end;
    `end` ends the body all the same."""

    reactor: Any
    output: Output
    on_interrupt: Callable[[], None] | None = None
    end: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def interrupts(self, called: Callable[[], None]) -> Iterator[None]:
        """Have `called` called for Ctrl-C."""
        before, self.on_interrupt = self.on_interrupt, called
        try:
            yield
        finally:
            self.on_interrupt = before


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """While a person is asked and the reactor stands still: Ctrl-C raises KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(output: Output, body: Callable[[Scope], Coroutine[Any, Any, T]]) -> T:
    """`await body(scope)`, in a reactor that lives as long; called once a process, by a command.

    Raises what the body raises, and Stopped. A signal cancels what the body waits for, so that its `finally`
    blocks do their work; a second one ends the process at once.
    """
    from sksd import reactor as choice

    choice.install()
    from twisted.internet import defer, reactor
    from twisted.python.failure import Failure

    loop: Any = reactor
    scope = Scope(loop, output)
    result: list[T | Failure] = []
    stopped: list[int] = []

    def over(value: T | Failure) -> None:
        result.append(value)
        loop.stop()

    def begin() -> None:
        def end(number: int = signal.SIGINT) -> None:
            if stopped:
                os._exit(_BY_SIGNAL + number)
            stopped.append(number)
            running.cancel()

        def told(number: int) -> None:
            if number == signal.SIGINT and scope.on_interrupt is not None and not stopped:
                scope.on_interrupt()
            else:
                end(number)

        # A handler of Python's runs at any place; the reactor's own thread is told to come back to it. It is set
        # before the first step of the body, which may be a long one.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: loop.callFromThread(told, number))
        scope.end = end
        running = defer.Deferred.fromCoroutine(body(scope))
        running.addBoth(over)

    loop.callWhenRunning(begin)
    loop.run()
    if stopped:
        raise Stopped(stopped[0])
    if not result:
        raise Stopped(signal.SIGINT)
    value = result[0]
    if isinstance(value, Failure):
        value.raiseException()
    return value  # type: ignore[return-value]


class Job(Generic[T]):
    """Work under way that several may wait for: whoever gives up waiting does not end it, `cancel` does."""

    def __init__(self, work: Deferred[T]) -> None:
        self._work = work
        self._result: list[T | Failure] = []
        self._waiting: list[Deferred[None]] = []
        work.addBoth(self._over)

    def _over(self, result: T | Failure) -> None:
        self._result.append(result)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:
                each.callback(None)

    @property
    def done(self) -> bool:
        """It has ended, in whatever way."""
        return bool(self._result)

    def cancel(self) -> None:
        """End it; harmless when it has ended."""
        self._work.cancel()

    async def wait(self) -> T:
        """Its result; raises what it raised."""
        await first_of(self)
        result = self._result[0]
        from twisted.python.failure import Failure

        if isinstance(result, Failure):
            result.raiseException()
        return result


async def first_of(*jobs: Job[Any]) -> None:
    """Returns when one of `jobs` has ended."""
    from twisted.internet import defer

    if not any(job.done for job in jobs):
        ended: Deferred[None] = defer.Deferred()
        for job in jobs:
            job._waiting.append(ended)
        await ended


async def in_asyncio(work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine of asyncio's in a body. Cancelled, it ends in CancelledError even where the work is done
    already, which Deferred.fromFuture would not: Ctrl-C must not be lost."""
    import asyncio

    from twisted.internet import defer

    task = asyncio.ensure_future(work)

    def done() -> Deferred[None]:
        waiting: Deferred[None] = defer.Deferred()
        task.add_done_callback(lambda _: None if waiting.called else waiting.callback(None))
        return waiting

    try:
        await done()
    except defer.CancelledError:
        if task.cancel():
            await done()
        raise
    finally:
        # Whoever gives up does not ask how it ended, and asyncio would complain.
        if task.done() and not task.cancelled():
            task.exception()
    return task.result()


async def finished(awaitable: Awaitable[T]) -> T | None:
    """The end of an orderly end: the result of `awaitable`, None where it fails, because the host is gone or so."""
    from sksd.errors import SksdError

    try:
        return await awaitable
    except SksdError:
        return None
