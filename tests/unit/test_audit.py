"""The audit log: what it holds, where it goes, and that it stands in nobody's way."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from pathlib import Path

from twisted.internet import task
from twisted.logger import globalLogPublisher
from twisted.trial import unittest

from sksd.server import audit


class Files(unittest.TestCase):
    """`audit = file`."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.mkdir()
        self.path = self.path / "audit.log"

    def test_a_line_an_event(self) -> None:
        log = audit.Audit(audit.File(self.path))
        log.record("login", user="ada\nroot", address="192.0.2.1", port=7)
        log.record("logout")
        first, second = (json.loads(line) for line in self.path.read_text().splitlines())
        self.assertEqual({**first, "time": ""}, {
            "time": "", "event": "login", "user": "ada\nroot", "address": "192.0.2.1", "port": 7
        })  # fmt: skip
        self.assertRegex(second["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_nothing_else_gets_in(self) -> None:
        log = audit.Audit(audit.File(self.path))
        for name in ("password", "token", "key", "ticket"):
            self.assertRaises(TypeError, log.record, "login", **{name: "secret"})
            self.assertNotIn(name, audit.Entry.__struct_fields__)

    def test_strangers_do_not_fill_it(self) -> None:
        clock = task.Clock()
        log = audit.Audit(audit.File(self.path), clock.seconds)
        for _ in range(100):
            log.record("login-refused", address="2001:db8::1")
            log.record("login-refused", address="2001:db8::2")
        log.record("login-refused", address="192.0.2.1")
        log.record("link-refused", address="192.0.2.1")
        clock.advance(audit.PAUSE)
        log.record("login-refused", address="2001:db8::1")
        entries = [json.loads(line) for line in self.path.read_text().splitlines()]
        self.assertEqual([entry.get("left_out", 0) for entry in entries], [0, 0, 0, 199])
        for number in range(audit.REMEMBERED * 2):
            log.record("login-refused", address=f"address {number}")
        self.assertEqual(len(log._refused), audit.REMEMBERED)

    def test_put_aside_when_it_has_grown(self) -> None:
        log = audit.Audit(audit.File(self.path, size=1000))
        for number in range(200):
            log.record("login", port=number)
        names = sorted(os.listdir(self.path.parent))
        self.assertEqual(names, ["audit.log", *(f"audit.log.{number}" for number in range(1, audit.KEPT + 1))])
        ports = []
        for name in (*names[:0:-1], names[0]):
            path = self.path.parent / name
            self.assertLessEqual(path.stat().st_size, 1000)
            ports += [json.loads(line)["port"] for line in path.read_text().splitlines()]
        self.assertEqual(ports, list(range(200 - len(ports), 200)))

    def test_one_that_cannot_be_written_is_told_of_once(self) -> None:
        lines: list[object] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        os.symlink("/elsewhere", self.path)
        log = audit.Audit(audit.File(self.path))
        for _ in range(3):
            log.record("login")
        self.assertEqual(len(lines), 1)
        self.path.unlink()
        log.record("login")
        self.assertEqual(len(self.path.read_text().splitlines()), 1)


class Journals(unittest.TestCase):
    """`audit = journal`."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/socket"

    def test_entry(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(self.path)
            audit.Audit(audit.Journal(self.path)).record("login", user="ada\nPRIORITY=0", port=7)
            data, fields = journal.recv(65536), {}
        while data:
            name, _, data = data.partition(b"\n")
            size = int.from_bytes(data[:8], "little")
            fields[name.decode()] = data[8 : 8 + size].decode()
            self.assertEqual(data[8 + size : 9 + size], b"\n")
            data = data[9 + size :]
        self.assertEqual(json.loads(fields["MESSAGE"])["user"], "ada\nPRIORITY=0")
        self.assertEqual((fields["SKSD_USER"], fields["SKSD_PORT"]), ("ada\nPRIORITY=0", "7"))
        self.assertEqual((fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]), ("5", "sksd"))

    def test_journal_that_does_not_read(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(self.path)
            log = audit.Audit(audit.Journal(self.path))
            for _ in range(2000):
                log.record("login")

    def test_where(self) -> None:
        self.patch(audit, "JOURNAL", self.path)
        self.assertIsInstance(audit.sink("auto", Path("/")), audit.File)
        Path(self.path).touch()
        self.assertIsInstance(audit.sink("auto", Path("/")), audit.Journal)
        self.assertIsInstance(audit.sink("journal", Path("/")), audit.Journal)
        self.assertIsInstance(audit.sink("file", Path("/")), audit.File)
        self.assertIsInstance(audit.sink("no", Path("/")), audit.Nowhere)
