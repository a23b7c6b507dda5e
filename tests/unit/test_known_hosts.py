"""Known hosts: remembered, checked, and never lost."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from sksd.client.trust import Known, KnownHosts, host_key
from sksd.errors import CertificateChanged, CertificateUnknown, KnownHostsBroken
from sksd.wire.fingerprint import fingerprint

ONE, OTHER = fingerprint(b"one"), fingerprint(b"other")


def _remember(path: Path, number: int) -> None:
    for turn in range(5):
        KnownHosts(path).remember(f"host-{number}-{turn}", ONE)


class KnownHostsTests(SynchronousTestCase):
    """The file and what it says."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "known_hosts.json"
        self.known = KnownHosts(self.path)

    def test_remember_and_forget(self) -> None:
        self.assertIs(self.known.get("lab"), None)
        self.assertFalse(self.path.exists())
        self.known.remember("lab", f" {ONE[7:]}=", "Lab")
        self.assertEqual(self.known.get("lab"), ONE)
        self.assertEqual(KnownHosts(self.path).get("lab"), ONE)
        (only,) = self.known.all()
        self.assertEqual(only, Known("lab", ONE, "Lab", only.added))
        self.assertRegex(only.added, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.known.remember("lab", OTHER)
        self.assertEqual(self.known.get("lab"), OTHER)
        self.assertTrue(self.known.forget("lab"))
        self.assertFalse(self.known.forget("lab"))
        self.assertIs(self.known.get("lab"), None)
        self.assertRaises(ValueError, self.known.remember, "lab", "nonsense")

    def test_private(self) -> None:
        self.known.remember("lab", ONE)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)

    def test_check(self) -> None:
        error = self.assertRaises(CertificateUnknown, self.known.check, "lab", ONE)
        self.assertEqual(error.fields, {"host": "lab", "fingerprint": ONE})
        self.assertEqual(self.known.all(), [])
        self.known.check("lab", ONE, accept_new=True, name="Lab")
        self.assertEqual([host.name for host in self.known.all()], ["Lab"])
        self.known.check("lab", ONE)
        for accept_new in (False, True):
            changed = self.assertRaises(CertificateChanged, self.known.check, "lab", OTHER, accept_new)
            self.assertEqual(changed.fields, {"host": "lab", "expected": ONE, "fingerprint": OTHER})
        self.assertEqual(self.known.get("lab"), ONE)

    def test_accepting_does_not_replace_what_another_process_accepted(self) -> None:
        class Late(KnownHosts):
            def get(self, key: str) -> str | None:
                found = super().get(key)
                super().remember(key, OTHER)
                return found

        self.assertRaises(CertificateChanged, Late(self.path).check, "lab", ONE, True)
        self.assertEqual(self.known.get("lab"), OTHER)

    def test_broken(self) -> None:
        self.known.remember("lab", ONE)
        good = self.path.read_text()
        for content, word in (
            ("", "truncated"),
            (good[:-10], ""),
            ("[]", "object"),
            (good.replace("SHA256:", "SHA1:"), "fingerprint of lab"),
            (good.replace('"version": 1', '"version": 2'), "version 2"),
            (good.replace('"name"', '"nom"'), "nom"),
            ("\udcff", ""),
        ):
            data = content.encode("utf-8", "surrogateescape")
            self.path.write_bytes(data)
            for act in (
                lambda: self.known.get("lab"),
                lambda: self.known.remember("new", ONE),
                lambda: self.known.forget("lab"),
                lambda: self.known.check("new", ONE, True),
                self.known.all,
            ):
                error = self.assertRaises(KnownHostsBroken, act)
                self.assertIn(str(self.path), str(error))
                self.assertIn(word, str(error))
            self.assertEqual(self.path.read_bytes(), data)

    def test_open_to_others(self) -> None:
        self.known.remember("lab", ONE)
        self.path.chmod(0o622)
        self.assertIn("others", str(self.assertRaises(KnownHostsBroken, self.known.get, "lab")))

    def test_in_the_way(self) -> None:
        self.path.parent.mkdir()
        self.path.mkdir()
        self.assertRaises(KnownHostsBroken, self.known.get, "lab")
        self.assertRaises(KnownHostsBroken, self.known.remember, "lab", ONE)

    def test_many_processes(self) -> None:
        # spawn: a fork would take the reactor along.
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_remember, args=(self.path, number)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        self.assertEqual([worker.exitcode for worker in workers], [0] * 4)
        self.assertEqual(len(self.known.all()), 20)

    def test_host_key(self) -> None:
        self.assertEqual(host_key(" Lab-Ä. "), "lab-ä")
        self.assertEqual(host_key("[FD00::2]:8443"), "[fd00::2]:8443")
