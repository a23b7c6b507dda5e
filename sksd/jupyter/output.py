"""What an engine says on iopub, as something to show: for a program that runs, for a log, for a console."""

from __future__ import annotations

import base64
import contextlib
from typing import Any, Final, Protocol

#: Pictures, in order of preference, and what their files are called.
_PICTURES: Final = {"image/png": "png", "image/svg+xml": "svg", "image/jpeg": "jpeg", "application/pdf": "pdf"}
_DISPLAYS: Final = ("display_data", "execute_result", "update_display_data")


class Page(Protocol):
    """Where output goes; called in the order in which the engine said it, one call at a time."""

    async def stream(self, name: str, text: str) -> None:
        """Text on `stdout` or `stderr`."""

    async def result(self, text: str) -> None:
        """The value of a cell's last expression, or something displayed, as text."""

    async def picture(self, kind: str, data: bytes, text: str, display: str | None) -> None:
        """A picture: `kind` is png, svg, jpeg or pdf; `text` is what stands for it where there are no pictures. One
        with the same `display` takes the place of an earlier one."""

    async def traceback(self, text: str) -> None:
        """An exception, with colours."""

    async def clear(self) -> None:
        """What comes takes the place of what was shown, where that can be taken back."""


class Rendering:
    """Shows messages on a page. Says nothing of what is no output."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._clear = False
        #: What was last shown under an id that updates name.
        self._shown: dict[str, dict[str, Any]] = {}

    async def show(self, kind: str, content: dict[str, Any]) -> bool:
        """A message; whether it was any output."""
        # What is not as it should be is no output: kernels are many.
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            return await self._show(kind, content)
        return False

    async def _show(self, kind: str, content: dict[str, Any]) -> bool:
        page = self._page
        if kind == "clear_output":
            self._clear = True
            if not content.get("wait"):
                await self._cleared()
        elif kind == "stream":
            name, text = content["name"], content["text"]
            await self._cleared()
            await page.stream(name, text)
        elif kind in _DISPLAYS:
            await self._display(kind, content["data"], content.get("transient", {}).get("display_id"))
        elif kind == "error" and content["ename"] != "SystemExit":
            lines = "\n".join(content["traceback"])
            await self._cleared()
            await page.traceback(lines)
        else:
            return False
        return True

    async def _cleared(self) -> None:
        if self._clear:
            self._clear = False
            await self._page.clear()

    async def _display(self, kind: str, data: dict[str, Any], display: str | None) -> None:
        if display is not None:
            if kind == "update_display_data" and self._shown.get(display) == data:
                return
            self._shown[display] = data
        await self._cleared()
        text = str(data.get("text/plain", ""))
        for mime, suffix in _PICTURES.items():
            if mime in data:
                body = data[mime] if isinstance(data[mime], str) else "".join(data[mime])
                picture = body.encode() if mime == "image/svg+xml" else base64.b64decode(body)
                await self._page.picture(suffix, picture, text, display)
                return
        await self._page.result(text)
