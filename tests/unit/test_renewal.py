"""Which certificate counts, as its files change."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet import task
from twisted.trial import unittest

from sksd.server import certificate
from sksd.server.renewal import LOOK, Renewed
from tests.authority import Authority


class Renewing(unittest.TestCase):
    """The files of [tls]."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.authority = Authority(Path(self.mktemp()))
        self.certificate, self.key = self.authority.issue("localhost")
        self.told: list[str] = []
        self.renewed = Renewed(
            self.clock, self.load(), self.load, lambda identity: self.told.append(identity.fingerprint)
        )
        self.renewed.start()
        self.addCleanup(self.renewed.stop)

    def load(self) -> certificate.Identity:
        return certificate.load(self.certificate, self.key)

    def test_nothing_has_changed(self) -> None:
        self.clock.advance(LOOK)
        self.assertEqual(self.told, [])

    def test_changed(self) -> None:
        before = self.renewed.identity.fingerprint
        one, other = self.authority.issue("other")
        # The two files are not replaced at the same moment.
        os.replace(one, self.certificate)
        self.clock.advance(LOOK)
        self.assertEqual((self.told, self.renewed.identity.fingerprint), ([], before))
        os.replace(other, self.key)
        self.clock.advance(LOOK)
        self.assertEqual(self.told, [self.renewed.identity.fingerprint])
        self.assertNotEqual(self.told, [before])
        self.clock.advance(LOOK)
        self.assertEqual(len(self.told), 1)

    def test_missing(self) -> None:
        before = self.renewed.identity
        self.certificate.unlink()
        for _ in range(3):
            self.clock.advance(LOOK)
        self.assertIs(self.renewed.identity, before)
        self.assertTrue(self.renewed.serverConnectionForTLS(None))
