"""This side of a program that runs elsewhere: its output, its input, its pictures."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import sys
import termios
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sksd.cli.output import at_terminal, plain
from sksd.errors import CannotWrite

_CHUNK: Final = 64 * 1024
#: Bytes that wait for a terminal or pipe; what exceeds them waits on its way here.
_MOST: Final = 4 * 1024 * 1024


class Writer:
    """Writes to descriptors in a thread: a pager that nobody scrolls must not keep the link from being served."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._problem: OSError | None = None
        self._changed = threading.Condition()
        self._empty: list[tuple[Any, asyncio.Future[None]]] = []
        # A daemon: whoever ends the command does not wait for the pager.
        threading.Thread(target=self._work, daemon=True, name="sksd output").start()

    async def write(self, descriptor: int, data: bytes) -> None:
        """Takes `data`; waits while more than _MOST bytes are on their way. Raises the OSError of an earlier write,
        such as BrokenPipeError."""
        with self._changed:
            if self._problem is not None:
                raise self._problem
            self._waiting.append((descriptor, data))
            self._size += len(data)
            full = self._size > _MOST
            self._changed.notify()
        if full:
            await self.flush()

    async def flush(self) -> None:
        """Returns when all is written; raises as `write`."""
        loop = asyncio.get_running_loop()
        with self._changed:
            if self._problem is not None:
                raise self._problem
            if not self._size:
                return
            empty: asyncio.Future[None] = loop.create_future()
            self._empty.append((loop, empty))
        await empty

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                descriptor, data = self._waiting.popleft()
                more = [data]
                while self._waiting and self._waiting[0][0] == descriptor:
                    more.append(self._waiting.popleft()[1])
            problem = _write(descriptor, b"".join(more))
            with self._changed:
                self._size -= sum(map(len, more))
                self._problem = self._problem or problem
                if not self._size or problem is not None:
                    for loop, empty in self._empty:
                        with contextlib.suppress(RuntimeError):
                            loop.call_soon_threadsafe(_settle, empty, self._problem)
                    self._empty.clear()


def _write(descriptor: int, data: bytes) -> OSError | None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view[: 16 * _CHUNK]) :]
    except OSError as error:
        return error
    return None


def _settle(done: asyncio.Future[None], problem: OSError | None) -> None:
    if not done.done():
        if problem is None:
            done.set_result(None)
        else:
            done.set_exception(problem)


class Reader:
    """Lines of stdin, read only when somebody asks for one, in a thread that can be called off."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._held = b""
        self._ended = False

    async def line(self, password: bool) -> str | None:
        """The next line without its end; None at the end of the input. With `password` it is not shown."""
        if self._ended and not self._held:
            return None
        wake, cancel = os.pipe()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[bytes | None] = loop.create_future()

        def answered(value: bytes | None) -> None:
            if not result.done():
                result.set_result(value)

        def read() -> None:
            try:
                value = self._read(wake, password)
            finally:
                os.close(wake)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(answered, value)

        thread = threading.Thread(target=read, daemon=True, name="sksd input")
        thread.start()
        try:
            found = await result
        finally:
            os.close(cancel)
            thread.join()
        return None if found is None else found.decode(sys.stdin.encoding or "utf-8", "replace")

    def _read(self, wake: int, password: bool) -> bytes | None:
        with self._unseen() if password else contextlib.nullcontext():
            while b"\n" not in self._held and not self._ended:
                ready, _, _ = select.select([self._descriptor, wake], [], [])
                if wake in ready:
                    return None
                try:
                    data = os.read(self._descriptor, _CHUNK)
                except OSError:
                    data = b""
                self._ended = not data and not os.isatty(self._descriptor)
                self._held += data
                if not data:
                    break
        if not self._held:
            return None
        line, _, self._held = self._held.partition(b"\n")
        return line.removesuffix(b"\r")

    @contextlib.contextmanager
    def _unseen(self) -> Iterator[None]:
        try:
            before = termios.tcgetattr(self._descriptor)
        except termios.error:
            yield
            return
        silent = list(before)
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, silent)
        try:
            yield
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)


class Screen:
    """A `sksd.jupyter.execute.Front` on this process's stdin, stdout and stderr.

    Pictures go into the folder `figures`, as figure-1.png and so on; without it only their text is shown.
    """

    def __init__(self, figures: Path | None, stdin: bool = True) -> None:
        self._figures = Figures(figures) if figures is not None else None
        self._stdin = stdin
        self._writer = Writer()
        self._reader = Reader()
        self._colours = at_terminal(sys.stderr) and not os.environ.get("NO_COLOR")
        self._hinted = False

    async def stream(self, name: str, text: str) -> None:
        """Called by Rendering."""
        file, descriptor = (sys.stderr, 2) if name == "stderr" else (sys.stdout, 1)
        await self._writer.write(descriptor, text.encode(file.encoding or "utf-8", "backslashreplace"))

    async def result(self, text: str) -> None:
        """Called by Rendering."""
        await self.stream("stdout", f"{text}\n")

    async def traceback(self, text: str) -> None:
        """Called by Rendering."""
        await self.stream("stderr", (text if self._colours else plain(text)) + "\n")

    async def flush(self) -> None:
        """Returns when everything is on the screen."""
        await self._writer.flush()

    async def clear(self) -> None:
        """Called by Rendering: of what a terminal shows, the line that is not ended can be taken back."""
        if at_terminal(sys.stdout):
            await self.stream("stdout", "\r\x1b[2K")

    async def picture(self, kind: str, data: bytes, text: str, display: str | None) -> None:
        """Called by Rendering."""
        if self._figures is None:
            await self.result(text or f"<{kind}, {len(data)} bytes>")
            if not self._hinted:
                self._hinted = True
                await self.stream("stderr", "sksd: --figures FOLDER saves pictures.\n")
            return
        await self.stream("stderr", f"sksd: saved {self._figures.save(kind, data, display)}\n")

    async def input(self, prompt: str, password: bool) -> str | None:
        """Called by Rendering."""
        if not self._stdin:
            return None
        if prompt:
            await self.stream("stdout", prompt)
        line = await self._reader.line(password)
        if password and at_terminal(sys.stdout):
            await self.stream("stdout", "\n")
        return line


class Record:
    """A `sksd.jupyter.execute.Front` that keeps everything for one JSON document. Input comes from stdin."""

    def __init__(self, figures: Path | None, stdin: bool = True) -> None:
        self.text: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.results: list[str] = []
        self.error: str | None = None
        self._figures = Figures(figures) if figures is not None else None
        self._stdin = stdin
        self._reader = Reader()

    async def stream(self, name: str, text: str) -> None:
        """Called by Rendering."""
        self.text["stderr" if name == "stderr" else "stdout"].append(text)

    async def result(self, text: str) -> None:
        """Called by Rendering."""
        self.results.append(text)

    async def traceback(self, text: str) -> None:
        """Called by Rendering."""
        self.error = plain(text)

    async def picture(self, kind: str, data: bytes, text: str, display: str | None) -> None:
        """Called by Rendering."""
        if self._figures is None:
            self.results.append(text)
        else:
            self._figures.save(kind, data, display)

    async def clear(self) -> None:
        """Called by Rendering; all that was said is kept."""

    async def input(self, prompt: str, password: bool) -> str | None:
        """Called by Rendering."""
        await self.stream("stdout", prompt)
        return await self._reader.line(password) if self._stdin else None

    async def flush(self) -> None:
        """Nothing waits."""

    @property
    def saved(self) -> list[Path]:
        """The pictures that were kept."""
        return self._figures.saved if self._figures is not None else []

    def document(self, exit_code: int) -> dict[str, Any]:
        """What `sksd run --json` prints."""
        return {
            "exit_code": exit_code,
            "stdout": "".join(self.text["stdout"]),
            "stderr": "".join(self.text["stderr"]),
            "results": self.results,
            "traceback": self.error,
            "figures": [str(path) for path in self.saved],
        }


class Figures:
    """Pictures that are kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.saved: list[Path] = []
        self._folder = folder
        self._displays: dict[tuple[str, str], Path] = {}

    def save(self, kind: str, data: bytes, display: str | None) -> Path:
        """Write a picture: in the place of the one with the same `display`, else under the next free name. Raises
        CannotWrite."""
        before = self._displays.get((display, kind)) if display is not None else None
        path = _write_picture(self._folder, kind, data, before)
        if before is None:
            self.saved.append(path)
        if display is not None:
            self._displays[display, kind] = path
        return path


def _write_picture(folder: Path, kind: str, data: bytes, path: Path | None) -> Path:
    """Leaves no part of a picture; the folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1) if path is None else ():
            path = folder / f"figure-{number}.{kind}"
            with contextlib.suppress(FileExistsError), open(path, "xb"):
                break
        assert path is not None
        try:
            path.write_bytes(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        problem = error.strerror or str(error)
        raise CannotWrite(host="this machine", path=str(folder), problem=problem) from None
    return path
