"""The configuration: defaults, every value, and every way to get it wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import sksd
from sksd.errors import ConfigurationError, ConfigurationFile
from sksd.server.arithmetic import compute
from sksd.server.configuration import KEYS, Configuration, Machine, place, read

ANNOTATED = Path(sksd.__file__).parent.parent / "etc" / "sksd.conf"
MACHINE = Machine("box.example", 6)


class Files(SynchronousTestCase):
    """A configuration file of our own."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def write(self, text: str | bytes) -> Path:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        self.path.chmod(0o600)
        return self.path

    def read(self, text: str | bytes) -> Configuration:
        return read(self.write(text), {}, MACHINE)

    def refused(self, text: str | bytes, line: int, *words: str) -> str:
        error = self.assertRaises(ConfigurationError, self.read, text)
        self.assertEqual(error.fields["line"], line, str(error))
        self.assertTrue(str(error).startswith(f"{self.path}, line {line}: "))
        for word in words:
            self.assertIn(word, str(error))
        return str(error)

    def unusable(self, path: Path, *words: str) -> None:
        error = self.assertRaises(ConfigurationFile, read, path, {}, MACHINE)
        for word in (str(path), *words):
            self.assertIn(word, str(error))


class AnnotatedTests(Files):
    """etc/sksd.conf and the table of keys say the same."""

    def setUp(self) -> None:
        super().setUp()
        self.text = ANNOTATED.read_text()

    def test_same_keys(self) -> None:
        section, documented = "", []
        for line in self.text.splitlines():
            if header := re.fullmatch(r"\[(\w+)\]", line):
                section = header[1]
            elif key := re.fullmatch(r"#(\w+) =(.*)", line):
                documented.append((section, key[1], key[2].strip()))
        self.assertEqual(documented, [(key.section, key.name, key.default) for key in KEYS])

    def test_explained_in_two_lines(self) -> None:
        for key in KEYS:
            self.assertRegex(self.text, rf"\n\n# [^\n]+\n# [^\n]+\n#{key.name} =")
            self.assertTrue(key.explanation)

    def test_as_it_is(self) -> None:
        self.assertEqual(self.read(self.text), self.defaults())

    def test_uncommented(self) -> None:
        text = re.sub(r"(?m)^#(\w+ =)", r"\1", self.text)
        self.assertEqual(text.count("\n#"), self.text.count("\n#") - len(KEYS))
        self.assertEqual(self.read(text), self.defaults())

    def defaults(self) -> Configuration:
        configuration = self.read("")
        self.assertEqual(configuration.name, "box.example")
        self.assertEqual(configuration.max_kernels, 24)
        self.assertEqual(configuration.exclude_environments, ("base", "_*"))
        return configuration


class ValueTests(Files):
    """What the keys take."""

    def test_everything(self) -> None:
        found = self.read(
            "\ufeff[sksd]\r\nmode = system\nenable=on\nName = Lab = 7 %\ndescription = é\nlisten = ::1\n"
            "allow_users = a*, bob\ndeny_users = eve\nallow_groups = lab\n"
            "port=8443\nannounce = no\nannounce_environments = TRUE\nssh_keys = no\naudit = file\n"
            "[tls]\ncertificate = /c.pem\nkey = ~/k.pem\nclient_ca = /ca.pem\n"
            "[kernels]\nmax_kernels = max(1, CORES // 4)\nlog_size = 64 K\njournal_size = 2M\n"
            "max_kernels_per_user = 2 * CORES\nidle_timeout = 90 min\n"
            "[guest]\nguest_account = visitor\nguest_unknown = yes\nguest_can_manage_environments = yes\n"
            "max_guests = CORES / 2\n"
            "[limits]\nmemory = 8 G\nopen_files = 1024\n"
            "[environments]\nexclude_environments =\npaths = /a,\n  # a comment\n  /b/*, ~/c\n"
            "may_create = no\nbackend = mamba\nbackend_executable = /opt/mamba\nchannels = a, b\n"
            "allow_channels = a\noffline = yes\n"
            "[user ada]\nidle_timeout =\nmax_kernels_per_user = 3\n[user Bob]\nmay_create = yes\n"
        )
        home = Path("~").expanduser()
        self.assertEqual(
            found,
            Configuration(
                mode="system",
                run_as="_sksd",
                allow_root=False,
                allow_users=("a*", "bob"),
                deny_users=("eve",),
                allow_groups=("lab",),
                enable=True,
                name="Lab = 7 %",
                description="é",
                listen="::1",
                port=8443,
                announce=False,
                announce_environments=True,
                ssh_keys=False,
                audit="file",
                certificate=Path("/c.pem"),
                key=home / "k.pem",
                client_ca=Path("/ca.pem"),
                max_kernels=1,
                max_kernels_per_user=12,
                idle_timeout=5400.0,
                log_size=65536,
                journal_size=2 * 1024**2,
                buffer_size=1024**3,
                guest_account="visitor",
                guest_unknown=True,
                guest_can_manage_environments=True,
                max_guests=3,
                memory=8 * 1024**3,
                processes=None,
                open_files=1024,
                exclude_environments=(),
                paths=("/a", "/b/*", str(home / "c")),
                may_create=False,
                backend="mamba",
                backend_executable="/opt/mamba",
                channels=("a", "b"),
                allow_channels=("a",),
                offline=True,
                users={"ada": {"idle_timeout": None, "max_kernels_per_user": 3}, "Bob": {"may_create": True}},
                file=self.path,
            ),
        )
        self.assertEqual(found.line("sksd", "port"), 10)
        self.assertEqual(found.line("environments", "paths"), 35)
        ada = found.of("ada")
        self.assertEqual((ada.idle_timeout, ada.max_kernels_per_user, ada.may_create), (None, 3, False))
        self.assertTrue(found.of("Bob").may_create)
        self.assertEqual(found.of("eve"), found)

    def test_durations(self) -> None:
        texts = {"": None, "7": 7.0, "90 s": 90.0, "2 Minutes": 120.0, "30min": 1800.0, "2 h": 7200.0}
        for text, seconds in texts.items():
            self.assertEqual(self.read(f"[kernels]\nidle_timeout = {text}\n").idle_timeout, seconds, text)

    def test_wrong_values(self) -> None:
        for section, line, word in (
            ("sksd", "mode = both", "must be user or system"),
            ("sksd", "run_as = a b", "name of an account"),
            ("limits", "memory = 1T", "with K, M or G"),
            ("limits", "processes = 0", "with K, M or G"),
            ("sksd", "enable = perhaps", "yes or no"),
            ("sksd", "audit = yes", "journal"),
            ("sksd", "enable =", "yes or no"),
            ("sksd", "name = " + "é" * 32, "63 bytes"),
            ("sksd", "listen = localhost", "IP address"),
            ("sksd", "port = -1", "0 to 65535"),
            ("sksd", "port = 65536", "0 to 65535"),
            ("sksd", "port = 8e3", "0 to 65535"),
            ("sksd", "port = ٣", "0 to 65535"),
            ("environments", "backend = pip", "rattler, conda"),
            ("kernels", "max_kernels = 0", "from 1"),
            ("kernels", "max_kernels = CORES / 100", "it is 0 on this machine"),
            ("kernels", "max_kernels = CORE * 4", "only numbers, CORES"),
            ("kernels", "max_kernels = 10001", "to 10000"),
            ("kernels", "max_kernels_per_user = 0", "from 1"),
            ("kernels", "idle_timeout = 0 h", "a number of seconds"),
            ("kernels", "idle_timeout = 3 weeks", "a number of seconds"),
            ("user ada", "idle_timeout = soon", "a number of seconds"),
            ("user ada", "port = 7", "unknown key port in [user ada]"),
            ("guest", "guest_account = a b", "name of an account"),
            ("guest", "max_guests = 0", "from 1"),
            ("kernels", "log_size = 1G", "K or M"),
            ("kernels", "log_size = 1", "from 4K"),
            ("kernels", "log_size = 2000M", "1024M"),
            ("kernels", "journal_size = 64K", "from 1M"),
            ("kernels", "buffer_size = lots", "K or M"),
            ("tls", "certificate = cert.pem", "absolute"),
            ("environments", "paths = /a, b", "'b' must be an absolute path"),
        ):
            with self.subTest(line):
                self.refused(f"# first\n\n[{section}]\n{line}\n", 4, word)

    def test_both_or_neither(self) -> None:
        self.refused("[tls]\n\nkey = /k.pem\n", 3, "without certificate")
        self.refused("[tls]\ncertificate = /k.pem\nkey =", 2, "without key")

    def test_disabled(self) -> None:
        configuration = self.read("[sksd]\n\nenable = no\n")
        error = self.assertRaises(ConfigurationError, configuration.check_enabled)
        self.assertIn("line 3: sksd is switched off", str(error))
        self.read("").check_enabled()


class SyntaxTests(Files):
    """Files that are not what they should be."""

    def test_wrong_words(self) -> None:
        self.refused("[sksd]\nprot = 1\n", 2, "unknown key prot in [sksd]: did you mean port?")
        self.refused("[sksd]\n\nzzz = 1\n", 3, "there are mode, run_as")
        self.refused("[sksd]\nport = 1\nmax_kernels = 4\n", 3, "it belongs into [kernels]")
        self.refused("\n[kernel]\n", 2, "unknown section [kernel]: did you mean kernels?")
        self.refused("[DEFAULT]\nport = 1\n", 1, "unknown section [DEFAULT]")
        self.refused("[guests]\n", 1, "unknown section [guests]")
        self.refused("[user]\n", 1, "unknown section [user]")

    def test_line_is_exact_behind_lists_and_comments(self) -> None:
        text = "[environments]\npaths = /a,\n  /b\n\n; c\n# d\n[sksd]\nname = a\nport = x\n"
        self.refused(text, 9, "port = x")

    def test_syntax(self) -> None:
        self.refused("port = 1\n", 1, "a section as [sksd] must come first")
        self.refused("[sksd]\nname = x\nport\n", 3, "neither `key = value` nor a [section]")
        self.refused("[sksd]\nport = 1\nname = x\nport = 1\n", 4, "port is there already in [sksd]")
        self.refused("[sksd]\n[tls]\n[sksd]\n", 3, "the section [sksd] is there already")
        self.refused("[sksd]\nname = x\n  port = 7\n", 2, "indented")

    def test_not_text(self) -> None:
        self.refused(b"[sksd]\nname = \xff\n", 2, "not UTF-8")
        self.refused("[sksd]\nname = x\n\x00\n", 3, "not text")
        self.refused("[sksd]\nname = a\x1b[2Jb\n", 2, "not text")
        self.refused(b"\x7fELF\x02\x01\x01\x00", 1, "not text")

    def test_never_another_error(self) -> None:
        @given(st.text(st.sampled_from("[]=#; \n\tsksdportname019*/()CORES,\x00é"), max_size=60) | st.binary())
        def garbage(text: str | bytes) -> None:
            try:
                self.read(text)
            except ConfigurationError as error:
                self.assertGreater(int(str(error.fields["line"])), 0)

        garbage()


class PlaceTests(Files):
    """Which file counts, and when it may be used."""

    def test_place(self) -> None:
        own = place({}, uid=1000)
        self.assertEqual((own.parent.name, own.name), ("sksd", "sksd.conf"))
        system = self.write("")
        self.assertEqual(place({}, uid=0, system=system), system)
        self.assertEqual(place({}, uid=0, system=Path("/nonexistent")), own)
        self.assertEqual(place({}, uid=1000, system=system), own)
        self.assertEqual(place({"SKSD_CONF": "/x"}, uid=0, system=system), Path("/x"))

    def test_missing(self) -> None:
        missing = Path(self.mktemp())
        self.unusable(missing, "there is no such file")
        self.assertRaises(ConfigurationFile, read, None, {"SKSD_CONF": str(missing)}, MACHINE)
        self.patch(sksd.server.configuration.paths, "configuration_file", lambda: missing)
        self.patch(place, "__kwdefaults__", {"uid": None, "system": missing})
        found = read(None, {}, MACHINE)
        self.assertIs(found.file, None)
        self.assertEqual(found.line("sksd", "port"), 0)
        self.assertEqual(found.max_kernels, 24)

    def test_unusable(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.unusable(folder, "it is a folder")
        fifo = folder / "fifo"
        os.mkfifo(fifo, 0o600)
        self.unusable(fifo, "not an ordinary file")
        self.unusable(folder / "fifo" / "x", "Not a directory")
        self.assertRaises(ConfigurationFile, read, Path("a\0b"), {}, MACHINE)
        self.unusable(self.write(b"#" * 1_100_000), "larger")
        for mode in (0o620, 0o602, 0o666):
            self.write("").chmod(mode)
            self.unusable(self.path, "others may write it: say `chmod go-w")
        self.path.chmod(0o644)
        read(self.path, {}, MACHINE)

    def test_of_somebody_else(self) -> None:
        self.write("")
        self.patch(os, "geteuid", lambda: self.path.stat().st_uid + 1)
        if self.path.stat().st_uid == 0:
            read(self.path, {}, MACHINE)
            os.chown(self.path, 4242, -1)
        self.unusable(self.path, "belongs to somebody else")


class ArithmeticTests(SynchronousTestCase):
    """Numbers with CORES in them."""

    def test_values(self) -> None:
        for text, value in (
            ("7", 7),
            (" 4 * CORES ", 24),
            ("CORES - 1", 5),
            ("CORES / 4", 1),
            ("max(1, CORES // 4) + min(3, 2.5, 9)", 3),
            ("-(-CORES)", 6),
            ("(1 +\n 2)", 3),
        ):
            self.assertEqual(compute(text, {"CORES": 6}), value, text)

    def test_refused(self) -> None:
        for text in (
            "",
            "()",
            "1 +",
            "CORES ** 2",
            "9" * 199,
            "1e999",
            "1e9 * 2",
            "1 / 0",
            "1 // (CORES - 6)",
            "True",
            "'4'",
            "4j",
            "min()",
            "min(*[1])",
            "max(1, key=2)",
            "__import__('os')",
            "CORES.real",
            "CORES if 1 else 2",
            "(" * 150 + "1" + ")" * 40,
            "-" * 199 + "1x",
            "lambda: 1",
            "1\x00",
            "cores",
        ):
            self.assertRaises(ValueError, compute, text, {"CORES": 6})

    def test_any_text(self) -> None:
        @given(st.text(st.sampled_from("CORES0123456789+-*/()., minaxe"), max_size=210))
        def any_text(text: str) -> None:
            try:
                value = compute(text, {"CORES": 6})
            except ValueError:
                return
            self.assertLessEqual(abs(value), 1e9)

        any_text()
