"""What the command line says without a host: help, wrong use, completion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner
from twisted.trial import unittest

from sksd.cli import options
from sksd.cli.main import cli
from sksd.cli.output import Output, plain, safe
from sksd.cli.run import command as run_command
from sksd.errors import NoSuchHost

ROOT = Path(__file__).parents[2]


class Use(unittest.TestCase):
    """In this process, where no command gets as far as a host."""

    def use(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output."""
        result = CliRunner().invoke(cli, list(arguments), obj=Output(), prog_name="sksd")
        return result.exit_code, result.output

    def test_every_command_has_help_with_an_example(self) -> None:
        context = click.Context(cli)
        commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
        env = commands["env"]
        assert isinstance(env, click.Group)
        commands |= {f"env {name}": each for name, each in env.commands.items()}
        for name, command in commands.items():
            code, text = self.use(*name.split(), "--help")
            self.assertEqual(code, 0, text)
            self.assertRegex(" ".join(text.split()), rf"Examples?: .*sksd {name}", text)
            assert command is not None
            first = command.get_short_help_str(200)
            self.assertTrue(first and first[0].isupper() and "\n" not in first, first)
            for parameter in command.params:
                if isinstance(parameter, click.Option) and parameter.name != "help":
                    self.assertTrue(parameter.help, f"{name} {parameter.opts}")

    def test_wrong_use(self) -> None:
        for arguments in (
            ["nonsense"], ["info"], ["stop", "local"], ["stop", "local", "x", "--all"], ["run", "local"],
            ["run", "local", "env"], ["run", "local", "env", "/no/such/file.py"], ["start", "local"],
            ["envs", "local", "--kernels", "3.1"], ["envs", "local", "--kernels", ">=x"],
            ["start", "local", "e", "--env", "novalue"], ["console", "local", "e", "--engine", "x"],
            ["console", "local", "--json"], ["relay", "local", "e", "--engine", "x"], ["trust"],
            ["trust", "lab", "--list"], ["trust", "lab", "--fingerprint", "abc"],
            ["env"], ["env", "create", "local"], ["env", "nonsense"],
            ["env", "change", "local", "e"], ["env", "change", "local", "e", "--update-all", "--remove", "x"],
            ["env", "remove", "local", "e"], ["env", "create", "local", "e", "--file", "/no/such/file.yml"],
            ["env", "create", "local", "e", "--file", "/etc/passwd"], ["start", "local", "e", "--file", "/no/such"],
            ["info", "local", "--timeout", "0"], ["completion", "tcsh"], ["info", "local", "--ca", "/no/such/file"],
        ):  # fmt: skip
            code, text = self.use(*arguments)
            self.assertEqual(code, 2, f"{arguments}: {text}")

    def test_wrong_use_is_a_document_too(self) -> None:
        for arguments in (["nonsense", "--json"], ["hosts", "--nonsense", "--json"], ["envs", "--json"]):
            done = subprocess.run([sys.executable, "-m", "sksd", *arguments], capture_output=True, cwd=ROOT)
            self.assertEqual(done.returncode, 2)
            self.assertEqual(json.loads(done.stdout)["error"]["code"], "usage")

    def test_a_relay_replaces_no_file_but_a_connection_file(self) -> None:
        file = Path(self.mktemp())
        for content in (b"precious", b"[1]", b"7", b"\xff", b'{"a": 1}'):
            file.write_bytes(content)
            code, text = self.use("relay", "local", "env", "-f", str(file))
            self.assertEqual((code, file.read_bytes()), (2, content), text)
            self.assertIn("no connection file", text)

    def test_completion_scripts(self) -> None:
        for shell in ("bash", "zsh", "fish"):
            code, text = self.use("completion", shell)
            self.assertEqual(code, 0)
            self.assertIn("_SKSD_COMPLETE", text)

    def test_what_follows_the_program_is_the_programs(self) -> None:
        for arguments, words in {
            ("lab", "env", "f.py", "--json", "-c", "x"): ("env", "f.py", "--json", "-c", "x"),
            ("--json", "lab", "--cwd", "/x", "env", "-", "--help"): ("env", "-", "--help"),
            ("lab", "--engine", "k3", "f.py", "--user", "u"): ("f.py", "--user", "u"),
            ("lab", "env", "-c", "1", "--json", "a", "--json"): ("env", "a", "--json"),
            ("lab", "-c1", "env", "a", "-c"): ("env", "a", "-c"),
            ("lab", "--engine=k3", "-c", "1", "a", "-h"): ("a", "-h"),
            ("lab", "env", "--", "f.py", "-x"): ("env", "f.py", "-x"),
        }.items():
            context = run_command.make_context("run", list(arguments), obj=Output())
            self.assertEqual(context.params["words"], words, arguments)
            self.assertEqual(context.params["host"], "lab", arguments)

    def test_ranges_of_kernels(self) -> None:
        found = options.Range().convert(">=3.1, <3.2", None, None)
        self.assertEqual([(each.package, each.low, each.high) for each in found], [("spyder-kernels", "3.1", "3.2")])


class Text(unittest.TestCase):
    """What another machine says cannot steer the terminal."""

    def test_safe(self) -> None:
        self.assertEqual(safe("a\x1b[31mb\x07\x9bc"), "ab\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c")
        self.assertEqual(plain("\x1b[0;31mE\x1b[0m\x1b]0;title\x07"), "E")

    def test_commands_in_sentences_can_be_copied(self) -> None:
        self.assertIn("`sksd hosts`", str(NoSuchHost(host="x")))
        from sksd.errors import CertificateChanged

        sentence = str(CertificateChanged(host="my lab", expected="a", fingerprint="b"))
        self.assertIn("certificate of my lab has", sentence)
        self.assertIn("`sksd trust 'my lab' --forget`", sentence)


class Program(unittest.TestCase):
    """As a process."""

    def sksd(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return self.python("-m", "sksd", *arguments, **environ)

    def python(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run Python to its end, with no folder of the person's."""
        folder = str(Path(self.mktemp()).absolute())
        own = {"PYTHONPATH": str(ROOT), "HOME": folder, "XDG_STATE_HOME": folder, "XDG_CACHE_HOME": folder}
        return subprocess.run(
            [sys.executable, *arguments],
            env=own | environ, capture_output=True, text=True, timeout=60, cwd="/",
        )  # fmt: skip

    def test_help_and_completion_load_nothing_slow(self) -> None:
        code = (
            "import sys; from sksd.cli.main import run\n"
            "try: run(sys.argv[1:])\n"
            "except SystemExit: pass\n"
            "slow = {'twisted', 'zmq', 'jupyter_client', 'zeroconf', 'rich', 'asyncio'} & set(sys.modules)\n"
            "assert not slow, slow"
        )
        environ = {"COMP_WORDS": "sksd run l", "COMP_CWORD": "2", "_SKSD_COMPLETE": "bash_complete"}
        for arguments, more in ((["--help"], {}), (["run", "--help"], {}), ([], environ)):
            done = self.python("-c", code, *arguments, **more)
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "plain,local\n")

    def test_no_command_is_help(self) -> None:
        done = self.sksd()
        self.assertEqual((done.returncode, done.stderr), (2, ""))
        self.assertIn("hosts", done.stdout)

    def test_errors_are_one_sentence(self) -> None:
        done = self.sksd("info", "a/b")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"\Asksd: 'a/b' is not a host: .*\.\n\Z")

    def test_errors_as_json(self) -> None:
        done = self.sksd("info", "127.0.0.1:1", "--json")
        error = json.loads(done.stdout)["error"]
        self.assertEqual((done.returncode, error["code"]), (1, "unreachable"))
        self.assertIn(error["message"], done.stderr)

    def test_wrong_use_suggests(self) -> None:
        done = self.sksd("rnu")
        self.assertEqual(done.returncode, 2)
        self.assertIn("Do you mean `sksd run`?", done.stderr)

    def test_nothing_local(self) -> None:
        done = self.sksd("envs", "local", XDG_RUNTIME_DIR="/nonexistent")
        self.assertEqual(done.returncode, 1)
        self.assertIn("start one with `sksd serve`", done.stderr)
