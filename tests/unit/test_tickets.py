"""Tickets, and the secrets in files that they and the local login stand on."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from sksd.errors import CannotWrite, ConfigurationFile, TicketRefused
from sksd.server.token import matches, secret
from sksd.wire.tickets import Tickets

SECRET = "s" * 43
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class TicketTests(SynchronousTestCase):
    """Only what was issued is accepted."""

    def setUp(self) -> None:
        self.tickets = Tickets(SECRET)

    def test_round_trip(self) -> None:
        @given(NAMES, NAMES)
        def round_trip(user: str, engine: str) -> None:
            ticket = self.tickets.issue(user, engine)
            self.assertEqual(Tickets(SECRET).check(ticket), (user, engine))
            self.assertEqual(self.tickets.issue(user, engine), ticket)
            self.assertRegex(ticket, r"^v1\.[\w-]+\.[\w-]{43}$")
            self.assertRaises(TicketRefused, Tickets("t" * 43).check, ticket)

        round_trip()

    def test_any_altered_byte(self) -> None:
        ticket = self.tickets.issue("ada", "abcdefghij")

        @given(st.integers(0, len(ticket) - 1), st.characters(exclude_categories=["Cs"]))
        def altered(place: int, letter: str) -> None:
            other = ticket[:place] + letter + ticket[place + 1 :]
            if other != ticket:
                self.assertRaises(TicketRefused, self.tickets.check, other)

        altered()
        for place in range(len(ticket)):
            for bit in range(7):
                other = ticket[:place] + chr(ord(ticket[place]) ^ 1 << bit) + ticket[place + 1 :]
                self.assertRaises(TicketRefused, self.tickets.check, other)

    def test_cut_and_lengthened(self) -> None:
        ticket = self.tickets.issue("ada", "abcdefghij")
        for length in range(len(ticket)):
            self.assertRaises(TicketRefused, self.tickets.check, ticket[:length])
        for more in ("=", ".", "A", "\n", " ", "\x00", "A" * 10_000_000):
            self.assertRaises(TicketRefused, self.tickets.check, ticket + more)
            self.assertRaises(TicketRefused, self.tickets.check, more + ticket)

    def test_any_text(self) -> None:
        @given(st.text())
        def anything(text: str) -> None:
            self.assertRaises(TicketRefused, self.tickets.check, text)
            self.assertRaises(TicketRefused, self.tickets.check, f"v1.{text}.{text}")

        anything()
        self.assertRaises(TicketRefused, self.tickets.check, "\ud800")

    def test_names_do_not_run_together(self) -> None:
        self.assertNotEqual(self.tickets.issue("ab", "c"), self.tickets.issue("a", "bc"))

    def test_no_secret_shown(self) -> None:
        self.assertNotIn(SECRET, repr(self.tickets))
        self.assertRaises(ValueError, self.tickets.issue, "u" * 5000, "e")


class SecretTests(SynchronousTestCase):
    """A secret in a private file."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "token"

    def test_made_once(self) -> None:
        first = secret(self.path)
        self.assertRegex(first, r"^[\w-]{43}$")
        self.assertEqual(secret(self.path), first)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)
        self.assertEqual(os.listdir(self.path.parent), ["token"])

    def test_many_at_once(self) -> None:
        found: set[str] = set()
        gate = threading.Barrier(16)

        def start() -> None:
            gate.wait(10)
            found.add(secret(self.path))

        threads = [threading.Thread(target=start) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        self.assertEqual(len(found), 1)
        self.assertEqual(os.listdir(self.path.parent), ["token"])

    def test_refused(self) -> None:
        secret(self.path)
        for mode in (0o640, 0o604, 0o660):
            self.path.chmod(mode)
            error = self.assertRaises(ConfigurationFile, secret, self.path)
            self.assertIn("others can read this secret", str(error))
        self.path.chmod(0o600)
        for content in (b"", b"short", b"\xff" * 43, b"a" * 44):
            self.path.write_bytes(content)
            self.assertIn("does not hold", str(self.assertRaises(ConfigurationFile, secret, self.path)))
        self.path.unlink()
        self.path.symlink_to("/etc/hostname")
        self.assertRaises(ConfigurationFile, secret, self.path)
        self.path.unlink()
        self.path.mkdir()
        self.assertRaises(ConfigurationFile, secret, self.path)

    def test_cannot_be_made(self) -> None:
        self.path.parent.write_text("in the way")
        self.assertRaises(CannotWrite, secret, self.path)

    def test_matches(self) -> None:
        self.assertTrue(matches(SECRET, SECRET))
        for other in ("", "s" * 42, "s" * 44, "é", "\ud800", SECRET + "\x00"):
            self.assertFalse(matches(other, SECRET))
