"""Where a login comes from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.trial import unittest

from sksd.server.avatar import _origin


def mind(there: str, here: str) -> Any:
    """A client's reference, over a connection between two addresses."""
    kind = IPv6Address if ":" in there else IPv4Address
    ends = SimpleNamespace(getPeer=lambda: kind("TCP", there, 1), getHost=lambda: kind("TCP", here, 2))
    return SimpleNamespace(broker=SimpleNamespace(transport=ends))


class Origins(unittest.TestCase):
    """As others read who has stopped an engine."""

    def test_words(self) -> None:
        for there, here, words in (
            ("10.0.0.7", "10.0.0.1", "from 10.0.0.7"),
            ("::ffff:10.0.0.7", "::ffff:10.0.0.1", "from 10.0.0.7"),
            ("fe80::1%eth0", "fe80::2%eth0", "from fe80::1%eth0"),
            ("10.0.0.1", "10.0.0.1", "from this machine"),
            ("127.0.0.1", "127.0.0.1", "from this machine"),
            ("::ffff:127.0.0.5", "::ffff:127.0.0.1", "from this machine"),
            ("::1", "::1", "from this machine"),
        ):
            self.assertEqual(_origin(mind(there, here)), words)
        self.assertEqual(_origin(None), "")
