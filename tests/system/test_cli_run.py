"""`sksd run`: what a person sees of a program that runs elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from twisted.internet import reactor, threads

from tests.system.cli import CommandCase
from tests.system.daemon import LIMIT

SCRIPT = """
import sys
print(sys.argv, __name__, __file__)
name = input("name? ")
def divide(x):
    return 1 / x
if name == "boom":
    divide(0)
print("hello", name)
try:
    input()
except EOFError:
    sys.exit(3)
"""


class Run(CommandCase):
    """Programs and their ends."""

    def script(self, text: str = SCRIPT) -> str:
        """A file in the home folder."""
        (self.home / "program.py").write_text(text)
        return "program.py"

    async def no_engine_is_left(self) -> None:
        """The engine started for a run ends with it."""
        self.assertEqual(await self.answer("engines", "local"), [])

    async def test_value_by_name_and_by_path(self) -> None:
        name = next(each["name"] for each in await self.answer("envs", "local") if each["own"])
        for environment in (name, sys.prefix, sys.executable):
            command = await self.sksd("run", "local", environment, "-c", "6*7")
            self.assertEqual((command.out, command.err), ("42\n", ""))
        self.assertEqual((await self.sksd("run", "local", "-c", "6*7")).out, "42\n")
        await self.no_engine_is_left()

    async def test_file_with_arguments_and_input(self) -> None:
        program = self.script()
        command = await self.sksd("run", "local", sys.prefix, program, "--json", "b", stdin="Ada\n", code=3)
        self.assertEqual(
            command.out, "['program.py', '--json', 'b'] __main__ program.py\nname? hello Ada\n"
        )
        self.assertEqual(command.err, "")
        command = await self.sksd("run", "local", sys.prefix, program, stdin="boom\n", code=1)
        self.assertEqual(
            [line for line in command.err.splitlines() if "~" not in line],
            ["Traceback (most recent call last):", '  File "program.py", line 8, in <module>', "    divide(0)",
             '  File "program.py", line 6, in divide', "    return 1 / x", "ZeroDivisionError: division by zero"],
        )  # fmt: skip
        command = await self.sksd("run", "local", sys.prefix, "-", stdin="print(1); 2")
        self.assertEqual(command.out, "1\n")
        beyond = "import sys; print('\N{SNOWMAN}\N{ROCKET}', len('\N{ROCKET}'), sys.argv[1])"
        command = await self.sksd("run", "local", sys.prefix, "-", "\N{ROCKET}", stdin=beyond)
        self.assertEqual(command.out, "\N{SNOWMAN}\N{ROCKET} 1 \N{ROCKET}\n")

    async def test_exit_codes(self) -> None:
        engine = (await self.answer("start", "local", sys.prefix))["engine"]["id"]
        for code, wanted, words in (
            ("1/0", 1, "ZeroDivisionError"),
            ("import sys; sys.exit(5)", 5, ""),
            ("import sys; sys.exit()", 0, ""),
            ("import sys; sys.exit('bye')", 1, "bye\n"),
            ("exit(4)", 4, ""),
            ("quit()", 0, ""),
            ("exit", 0, ""),
            ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
            ("1 +", 1, "SyntaxError"),
        ):
            command = await self.sksd("run", "local", "--engine", engine[:6], "-c", code, code=wanted)
            self.assertEqual(command.out, "")
            if words.isalpha():
                self.assertIn(words, command.err)
                self.assertNotIn("\x1b", command.err)
            else:
                self.assertEqual(command.err, words)
        # It is left as it was, but for what this run itself has set.
        code = "import warnings; sum('To exit' in str(each[1]) for each in warnings.filters)"
        self.assertEqual((await self.sksd("run", "local", "--engine", engine, "-c", code)).out, "1\n")
        self.assertEqual([each["id"] for each in await self.answer("engines", "local")], [engine])

    async def test_a_forked_child_is_no_second_kernel(self) -> None:
        # From Python 3.12 on a kernel, which has threads, is warned of forking.
        quiet = "import os, warnings\nwarnings.simplefilter('ignore')\n"
        text = f"{quiet}child = os.fork()\nif not child:\n    exit(3)\nprint(os.waitpid(child, 0)[1] >> 8)"
        command = await self.sksd("run", "local", sys.prefix, self.script(text))
        self.assertEqual((command.out, command.err), ("3\n", ""))
        text = "import sys\nclass Odd:\n    def __str__(self): 1 / 0\nsys.exit(Odd())"
        command = await self.sksd("run", "local", sys.prefix, self.script(text), code=1)
        self.assertEqual((command.out, command.err), ("", "<Odd>\n"))

    async def test_pictures_that_cannot_be_kept(self) -> None:
        (self.home / "file").write_text("")
        code = "from IPython.display import SVG, display; display(SVG('<svg/>'))"
        await self.fails("file/x on this machine cannot", "run", "local", "-c", code, "--figures", "file/x")
        await self.no_engine_is_left()

    async def test_descriptors_that_are_closed_or_full(self) -> None:
        def shell(line: str) -> Any:
            return subprocess.run(["sh", "-c", f"{sys.executable} -m sksd {line}"], env=self.environ, cwd=self.home,
                                  capture_output=True, timeout=LIMIT, text=True)  # fmt: skip

        for line, code, words in (
            ("envs local >&-", 0, ""),
            ("info local <&- >&-", 0, ""),
            ("run local -c 'print(1)' >&-", 0, ""),
            ("run local -c 'print(1)' 2>&-", 0, ""),
            ("run local -c 'print(1)' <&- >&- 2>&-", 0, ""),
            ("envs local >/dev/full", 1, "sksd: No space is left on this machine at stdout"),
            ("run local -c 'print(1)' >/dev/full", 1, "sksd: No space is left on this machine at stdout"),
        ):
            done = await threads.deferToThread(shell, line)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (code, bool(words)), done.stderr)
            self.assertTrue(done.stderr.startswith(words), done.stderr)
        self.assertFalse((self.top / "s" / "sksd" / "client.log").exists())

    async def test_figures(self) -> None:
        code = "import matplotlib.pyplot as p; p.plot([1, 2]); p.show(); p.plot([3]); print('x')"
        command = await self.sksd("run", "local", "-c", code, "--figures", "a/b")
        saved = sorted((self.home / "a" / "b").iterdir())
        self.assertEqual([path.name for path in saved], ["figure-1.png", "figure-2.png"])
        self.assertTrue(all(path.read_bytes().startswith(b"\x89PNG") for path in saved))
        self.assertIn("figure-1.png", command.err)

    async def test_what_a_subprocess_prints(self) -> None:
        text = "import os, subprocess, sys\nsubprocess.run(['echo', 'one'])\nos.write(2, b'\\xfftwo\\n')"
        for program in (["-c", text + "\n0"], [self.script(text)]):
            command = await self.sksd("run", "local", sys.prefix, *program)
            self.assertIn("one\n", command.out)
            self.assertEqual(command.err, "\N{REPLACEMENT CHARACTER}two\n")

    async def test_a_home_that_is_not_there(self) -> None:
        await self.stop(self.daemon)
        self.environ["HOME"] = str(self.home / "gone")
        self.daemon = await self.start()
        await self.fails("give another with --cwd", "run", "local", sys.prefix, "-c", "6*7")
        command = await self.sksd("run", "local", sys.prefix, "--cwd", "/", "-c", "6*7")
        self.assertEqual((command.out, command.err), ("42\n", ""))

    async def test_much_output(self) -> None:
        command = await self.sksd("run", "local", "-c", "for i in range(200000): print(i)")
        self.assertEqual(command.out.split(), [str(number) for number in range(200_000)])
        command = await self.sksd("run", "local", "-c", "print('x' * 20_000_000)")
        self.assertEqual(len(command.out), 20_000_001)

    async def test_json(self) -> None:
        found = await self.answer("run", "local", "-c", "print(1); 2")
        self.assertEqual((found["exit_code"], found["stdout"], found["results"]), (0, "1\n", ["2"]))
        found = await self.answer("run", "local", "-c", "1/0", code=1)
        self.assertIn("ZeroDivisionError", found["traceback"])

    async def interrupted(self, *signals: int, code: str = "") -> Any:
        """Start something long, send the signals once it runs; the exit code."""
        command = self.begin("run", "local", "-c", f"{code}\nimport time\nprint('go', flush=True)\ntime.sleep(99)")
        await command.says(b"go")
        for number in signals:
            command.kill(number)
        ended = await command.ended.addTimeout(LIMIT, reactor)
        await self.no_engine_is_left()
        return ended, command.err

    async def test_interrupt(self) -> None:
        code, err = await self.interrupted(signal.SIGINT)
        self.assertEqual(code, 130)
        self.assertIn("KeyboardInterrupt", err)

    async def test_interrupted_twice(self) -> None:
        stubborn = "import signal; signal.signal(signal.SIGINT, lambda *_: print('no', flush=True))"
        command = self.begin("run", "local", "-c", f"{stubborn}\nprint('go', flush=True)\nwhile True: pass")
        await command.says(b"go")
        command.kill(signal.SIGINT)
        await command.says(b"no")
        command.kill(signal.SIGINT)
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 130)
        await self.no_engine_is_left()

    async def test_terminated(self) -> None:
        self.assertEqual(await self.interrupted(signal.SIGTERM), (143, ""))

    async def test_reader_that_has_enough(self) -> None:
        command = self.begin("run", "local", "-c", "while True: print('y')")
        await command.says(b"y")
        command.transport.closeStdout()  # type: ignore[union-attr]
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 1)
        self.assertEqual(command.err, "")
        await self.no_engine_is_left()

    async def test_kernel_killed(self) -> None:
        command = self.begin("run", "local", "-c", "import time\nprint('go', flush=True)\ntime.sleep(99)")
        await command.says(b"go")
        [engine] = await self.answer("engines", "local")
        os.kill(engine["pid"], signal.SIGKILL)
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 1)
        self.assertEqual(command.out, "go\n")
        self.assertIn("killed by SIGKILL", command.err)

    async def test_kernel_that_dies_while_starting(self) -> None:
        options = ["-c", "1", "--env", "PYTHONHOME=/x"]
        await self.fails("died while it was starting", "run", "local", sys.prefix, *options)

    async def test_daemon_gone(self) -> None:
        command = self.begin("run", "local", "-c", "import time\nprint('go', flush=True)\ntime.sleep(99)")
        await command.says(b"go")
        await self.stop(self.daemon, signal.SIGKILL)
        await command.says(b"sksd: reconnecting (")
        command.kill(signal.SIGINT)
        self.assertEqual(await command.ended.addTimeout(LIMIT, reactor), 130)
        await self.forget_links()
