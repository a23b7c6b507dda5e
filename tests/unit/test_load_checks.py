"""The front end that other tests believe: it sees what is lost, doubled, swapped or damaged."""

from __future__ import annotations

import hashlib
from typing import Any

from twisted.trial import unittest

from tests.system.front import Heard


def printed(text: str) -> dict[str, Any]:
    return {"msg_type": "stream", "content": {"name": "stdout", "text": text}}


def sent(number: int, blob: bytes = b"blob") -> dict[str, Any]:
    digest = hashlib.sha256(b"blob").hexdigest()
    return {"msg_type": "comm_msg", "content": {"data": {"number": number, "sha256": digest}}, "buffers": [blob]}


class Checks(unittest.SynchronousTestCase):
    def heard(self, *messages: dict[str, Any]) -> Heard:
        heard = Heard()
        for message in messages:
            heard.message(message)
        return heard

    def test_as_it_should_be(self) -> None:
        """Lines may come in any pieces."""
        heard = self.heard(printed("0\n1\n"), sent(0), printed("2"), printed("\n"), sent(1))
        self.assertEqual((heard.problems, heard.lines, heard.blobs, heard.bytes), ([], 3, 2, 8))

    def test_wrong(self) -> None:
        for messages in (
            [printed("0\n"), printed("2\n")],
            [printed("0\n"), printed("0\n")],
            [printed("1\n"), printed("0\n")],
            [printed("0\n"), printed("\n")],
            [sent(0), sent(2)],
            [sent(0), sent(0)],
            [sent(0, b"bl0b")],
            [{"msg_type": "error", "content": {}}],
            [{"msg_type": "stream", "content": {"name": "stderr", "text": "!"}}],
        ):
            self.assertNotEqual(self.heard(*messages).problems, [], messages)
