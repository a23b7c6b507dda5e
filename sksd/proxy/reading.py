"""Reading that may hang (a file server that is gone), off the reactor's thread and with a limit for each folder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from twisted.internet import defer
from twisted.python.failure import Failure

from sksd.errors import FolderSilent
from sksd.proxy.sources import At

T = TypeVar("T")

#: Seconds that one folder has to answer.
FOLDER_LIMIT: Final = 2.0


class Reader:
    """Runs functions that read folders in threads, and goes on without a folder that does not answer.

    A thread cannot be ended: the one that hangs is left behind (it is a daemon thread, the process can end), and
    its folder is left alone until it comes back, so that at most one thread hangs for each folder.
    """

    def __init__(self, reactor: Any, limit: float = FOLDER_LIMIT) -> None:
        self._reactor = reactor
        self._limit = limit
        #: Folders that some thread waits for now, beyond the limit.
        self._silent: dict[str, int] = {}

    async def read(self, function: Callable[[At], T]) -> tuple[T, list[str]]:
        """`function(at)` and the folders that did not answer. `function` calls `at(folder)` before it reads
        anything there, and is called again from its beginning where one hangs; it runs in another thread. Raises
        what it raises, and FolderSilent where it reads a folder all the same."""
        while True:
            attempt = _Attempt(self._reactor, function, frozenset(self._silent), self._limit)
            try:
                return await attempt.result, sorted(attempt.left_out)
            except Hangs as hangs:
                if hangs.folder in attempt.skip:
                    raise FolderSilent(folder=hangs.folder) from None
                self._left_behind(hangs.folder, attempt)

    def _left_behind(self, folder: str, attempt: _Attempt[Any]) -> None:
        self._silent[folder] = self._silent.get(folder, 0) + 1

        def back(_: Any) -> None:
            self._silent[folder] -= 1
            if not self._silent[folder]:
                del self._silent[folder]

        attempt.back.addBoth(back)


class Hangs(Exception):
    """A folder does not answer."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder


class _Attempt(Generic[T]):
    """One run of the function in one thread. `result` fails with Hangs; `back` fires when the thread has ended."""

    def __init__(self, reactor: Any, function: Callable[[At], T], skip: frozenset[str], limit: float) -> None:
        self.result: defer.Deferred[T] = defer.Deferred()
        self.back: defer.Deferred[None] = defer.Deferred()
        self.left_out: set[str] = set()
        self._reactor = reactor
        self.skip = skip
        self._limit = limit
        self._place = ""
        self._step = self._seen = 0
        self._given_up = False
        self._timer = reactor.callLater(limit, self._look)
        threading.Thread(target=self._run, args=(function,), name="reading", daemon=True).start()

    def _at(self, folder: str) -> bool:
        # In the thread.
        if self._given_up:
            raise Hangs(folder)
        for silent in self.skip:
            if folder == silent or folder.startswith(f"{silent}/"):
                self.left_out.add(silent)
                return False
        self._place = folder
        self._step += 1
        return True

    def _run(self, function: Callable[[At], T]) -> None:
        try:
            result: T | Failure = function(self._at)
        except BaseException:
            result = Failure()
        self._reactor.callFromThread(self._over, result)

    def _over(self, result: T | Failure) -> None:
        if self._timer.active():
            self._timer.cancel()
        if not self._given_up:
            self.result.callback(result)
        self.back.callback(None)

    def _look(self) -> None:
        if self._step == self._seen:
            self._given_up = True
            self.result.errback(Failure(Hangs(self._place)))
            return
        self._seen = self._step
        self._timer = self._reactor.callLater(self._limit, self._look)
