"""What counts as HOST."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from sksd import paths
from sksd.client import hosts
from sksd.errors import BadHost, NoLocalDaemon
from sksd.wire.names import ALPN_PB


class Parse(unittest.TestCase):
    """Text to a place."""

    def test_places(self) -> None:
        for text, place in {
            "local": ("", "", 0),
            "LOCAL": ("", "", 0),
            "lab": ("lab", "", 0),
            "Ada's big machine": ("Ada's big machine", "", 0),
            "Room 12: GPU": ("Room 12: GPU", "", 0),
            "192.0.2.7": ("192.0.2.7", "", 0),
            "192.0.2.7:8443": ("", "192.0.2.7", 8443),
            "gpu.example.org:1": ("", "gpu.example.org", 1),
            "[fd00::7]:65535": ("", "fd00::7", 65535),
            "[fd00::7]": ("fd00::7", "", 0),
            "fd00::7": ("fd00::7", "", 0),
            "fe80::1%eth0": ("fe80::1%eth0", "", 0),
        }.items():
            found = hosts.parse(text)
            self.assertEqual((found.name, found.address, found.port), place, text)
            self.assertEqual(found.local, text.lower() == "local")

    def test_bad(self) -> None:
        for text in (
            "", " ", "a/b", "a\0b", "a\nb", "\x1b[31m", "a:", "a:x", "a:0", "a:65536", "a:-1", ":80", "a:b:80",
            "[fd00::7", "[fd00::7]80", "[x]:80", "-x", "a\\b", "x" * 256,
        ):  # fmt: skip
            with self.assertRaises(BadHost, msg=repr(text)) as caught:
                hosts.parse(text)
            self.assertNotIn("\0", str(caught.exception))
            self.assertNotIn("\x1b", str(caught.exception))

    @given(st.text(max_size=40))
    def test_any_text_is_a_place_or_a_sentence(self, text: str) -> None:
        try:
            place = hosts.parse(text)
        except BadHost:
            return
        self.assertEqual([place.local, bool(place.name), bool(place.port)].count(True), 1)


class Local(unittest.TestCase):
    """`local` is what the note says."""

    def setUp(self) -> None:
        self.note = Path(self.mktemp()).absolute()
        self.patch(paths, "daemon_note", lambda: self.note)
        self.patch(paths, "system_note", lambda: self.note)

    def test_none(self) -> None:
        self.assertRaises(NoLocalDaemon, hosts.local_target)

    def test_pinned_by_the_note(self) -> None:
        import os

        fingerprint = "SHA256:" + "a" * 43
        self.note.write_text(
            f'{{"pid": {os.getpid()}, "address": "127.0.0.1", "port": 7, "fingerprint": "{fingerprint}",'
            ' "name": "n", "version": "1"}'
        )
        target = hosts.local_target()
        self.assertEqual((target.name, target.address, target.port, target.own), ("local", "127.0.0.1", 7, True))
        self.assertEqual(target.known.get("whatever"), fingerprint)
        target.creator(ALPN_PB)
