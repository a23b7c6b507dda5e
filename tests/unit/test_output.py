"""What an engine says, shown."""

from __future__ import annotations

from typing import Any

from twisted.trial import unittest

from sksd.errors import EngineEnded
from sksd.jupyter.output import Rendering
from sksd.keeper.log import without_banner


class Page:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def stream(self, name: str, text: str) -> None:
        """Called by Rendering."""
        self.told.append((name, text))

    async def result(self, text: str) -> None:
        """Called by Rendering."""
        self.told.append(text)

    async def picture(self, kind: str, data: bytes, text: str, display: str | None) -> None:
        """Called by Rendering."""
        self.told.append((kind, data, text, display))

    async def traceback(self, text: str) -> None:
        """Called by Rendering."""
        self.told.append(("traceback", text))

    async def clear(self) -> None:
        """Called by Rendering."""
        self.told.append("clear")


def text(kind: str, words: str, display: str | None = None) -> tuple[str, dict[str, Any]]:
    """Something displayed."""
    return kind, {"data": {"text/plain": words}, "transient": {"display_id": display} if display else {}}


class Renderings(unittest.TestCase):
    """Messages in, calls of a page out."""

    async def shows(self, *messages: tuple[str, dict[str, Any]]) -> list[Any]:
        """What a page is told."""
        page = Page()
        rendering = Rendering(page)
        for kind, content in messages:
            await rendering.show(kind, content)
        return page.told

    async def test_kinds(self) -> None:
        told = await self.shows(
            ("status", {"execution_state": "busy"}),
            ("execute_input", {"code": "1"}),
            ("stream", {"name": "stderr", "text": "x\n"}),
            text("execute_result", "1"),
            ("display_data", {"data": {"image/png": "AAAA", "text/plain": "<fig>"}}),
            ("error", {"ename": "E", "traceback": ["a", "b"]}),
            ("error", {"ename": "SystemExit", "traceback": ["a"]}),
        )
        self.assertEqual(told, [("stderr", "x\n"), "1", ("png", b"\0\0\0", "<fig>", None), ("traceback", "a\nb")])

    async def test_updates_are_shown_where_something_changed(self) -> None:
        told = await self.shows(
            text("display_data", "1", "d"),
            text("update_display_data", "1", "d"),
            text("update_display_data", "2", "d"),
        )
        self.assertEqual(told, ["1", "2"])

    async def test_clearing(self) -> None:
        one = ("stream", {"name": "stdout", "text": "1"})
        self.assertEqual(await self.shows(("clear_output", {}), one), ["clear", ("stdout", "1")])
        wait = ("clear_output", {"wait": True})
        self.assertEqual(await self.shows(one, wait), [("stdout", "1")])
        told = await self.shows(wait, ("status", {}), one, one)
        self.assertEqual(told, ["clear", ("stdout", "1"), ("stdout", "1")])

    async def test_what_is_no_such_message_shows_nothing(self) -> None:
        broken: list[Any] = [None, 1, [], {}, {"data": 1}, {"data": {"image/png": 1}}]
        for kind in ("stream", "display_data", "execute_result", "update_display_data", "error"):
            self.assertEqual(await self.shows(*((kind, content) for content in broken)), [], kind)


class LastLines(unittest.TestCase):
    """Of an engine."""

    def test_are_in_the_sentence(self) -> None:
        error = EngineEnded(engine="e", host="lab", how="exit code 1", log="boom\n")
        self.assertTrue(str(error).endswith("`sksd start lab ENV`. Its last lines:\nboom"))
        self.assertTrue(str(EngineEnded(engine="e", how="stopped")).endswith("ENV`."))

    def test_without_what_every_kernel_says(self) -> None:
        self.assertEqual(without_banner("NOTE: x\n\n    --existing /a/b.json\nboom\n"), "boom\n")
        self.assertEqual(without_banner("NOTE: x\n\n    --existing /a/b.json"), "")
        self.assertEqual(without_banner("boom"), "boom")
