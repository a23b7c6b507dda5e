"""What `make run` shows: sksd's whole job on this machine, in private folders, and nothing left behind.

`python -m sksd.cli.demo`. Exit code 0 when everything worked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sksd.cli.output import Output, at_terminal
from sksd.cli.running import Job, Scope, asking, finished, first_of, in_asyncio, run

if TYPE_CHECKING:
    from sksd.cli.spinning import Held
    from sksd.cli.terminal import Record
    from sksd.client.discovery import Found
    from sksd.client.hosts import Target
    from sksd.client.relay import Relay

_NAME: Final = "sksd demo"
#: Seconds for the daemon to come up and to end, and for what it started to end behind it.
_UP: Final = 20.0
_DOWN: Final = 10.0
_LOOK: Final = 0.05
#: Columns of the picture in the terminal.
_WIDE: Final = 72

_PROGRAM: Final = """
import os, platform, numpy as np, matplotlib.pyplot as plt
x = np.linspace(0, 4 * np.pi, 800)
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(x, np.sin(x) * np.exp(-x / 6), linewidth=3)
axes.fill_between(x, np.exp(-x / 6), -np.exp(-x / 6), alpha=0.2)
plt.show()
print(f"Python {platform.python_version()}, process {os.getpid()}")
y = np.sin(x) ** 2
float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / np.pi)
"""


class Failed(Exception):
    """The sentence that says what did not work."""


class _Steps:
    """Says each step with how long it took since the last one."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last = time.monotonic()

    def again(self) -> None:
        """A person took their time: that does not count."""
        self._last = time.monotonic()

    def __call__(self, done: str, *details: str) -> None:
        now = time.monotonic()
        self._output.say(f"[{now - self._last:6.2f} s]  {done}")
        for detail in details:
            self._output.say(f"{'':12}{detail}")
        self._last = time.monotonic()


@contextlib.contextmanager
def _private_folders() -> Iterator[Path]:
    """XDG folders of our own, so that the person's daemon, known hosts and passwords are not touched."""
    folder = Path(tempfile.mkdtemp(prefix="sksd-demo-"))
    before = dict(os.environ)
    try:
        for variable in ("CONFIG_HOME", "STATE_HOME", "RUNTIME_DIR", "CACHE_HOME", "DATA_HOME"):
            place = folder / variable.lower()
            place.mkdir(mode=0o700)
            os.environ[f"XDG_{variable}"] = str(place)
        for variable in ("SKSD_CONF", "SKSD_PASSWORD", "JUPYTER_RUNTIME_DIR"):
            os.environ.pop(variable, None)
        yield folder
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> list[str]:
    """Processes that still run with our folders: found by their environment, as ids with names."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("XDG_STATE_HOME", "").startswith(str(folder)):
                found.append(f"{process.pid} ({process.name()})")
        except psutil.Error:
            continue
    return found


async def _until(scope: Scope, seconds: float, true: Any, job: Job[Any] | None = None) -> bool:
    """Whether `true()` came about within `seconds`, and before `job` ended."""
    from twisted.internet.task import deferLater

    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end or (job is not None and job.done):
            return bool(true())
        await deferLater(scope.reactor, _LOOK, lambda: None)
    return True


class _Daemon:
    """Our own daemon, as `sksd serve` starts it."""

    def __init__(self, scope: Scope, folder: Path) -> None:
        from twisted.internet import defer, protocol

        self._scope = scope
        self.said = b""
        over: defer.Deferred[None] = defer.Deferred()

        class Child(protocol.ProcessProtocol):
            def childDataReceived(_, childFD: int, data: bytes) -> None:
                self.said += data

            def processEnded(_, reason: Any) -> None:
                over.callback(None)

        configuration = Path(os.environ["XDG_CONFIG_HOME"]) / "sksd" / "sksd.conf"
        configuration.parent.mkdir(mode=0o700)
        configuration.write_text(f"[sksd]\nname = {_NAME}\nlisten = 127.0.0.1\n")
        configuration.chmod(0o600)
        self._process = scope.reactor.spawnProcess(
            Child(), sys.executable, [sys.executable, "-m", "sksd", "serve"], env=dict(os.environ), path=str(folder)
        )
        self.over = Job(over)

    def last_words(self) -> str:
        """What it said last, for when it failed."""
        return self.said.decode("utf-8", "replace").strip().splitlines()[-1:][0] if self.said.strip() else "nothing"

    async def stop(self) -> None:
        """End it; returns when it has ended."""
        if not self.over.done:
            self._process.signalProcess("TERM")
            if not await _until(self._scope, _DOWN, lambda: self.over.done):
                self._process.signalProcess("KILL")
            await self.over.wait()


async def _show(scope: Scope, folder: Path) -> None:
    from sksd import paths

    steps = _Steps(scope.output)
    daemon = _Daemon(scope, folder)
    try:
        if not await _until(scope, _UP, paths.daemon_note().exists, daemon.over):
            raise Failed(f"The daemon did not come up. It said: {daemon.last_words()}")
        steps("The daemon is up, as this user, with a certificate and a login token of its own.")
        await _use(scope, steps)
    finally:
        await daemon.stop()
        gone = await _until(scope, _DOWN, lambda: not _processes(folder))
    if not gone:
        raise Failed(f"Processes are left: {', '.join(_processes(folder))}")
    left = [str(path) for path in Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*") if path.is_socket()]
    if left:
        raise Failed(f"Sockets are left: {', '.join(left)}")
    steps("Everything is stopped: no process and no socket is left.")


async def _use(scope: Scope, steps: _Steps) -> None:
    from sksd.cli import spinning
    from sksd.client import discovery
    from sksd.client.session import connect
    from sksd.client.trust import KnownHosts

    local, found = await _find(scope, discovery)
    steps(
        f"Found '{found.name}' on the network (zeroconf).",
        f"{found.addresses[0]}:{found.port}, {found.running} of {found.maximum} kernels run",
    )
    target = await _target(scope)
    shown = local.known.get(local.key)
    if shown is None or shown != found.fingerprint:
        raise Failed("The certificate that is announced is not the daemon's own.")
    KnownHosts().remember(target.key, shown, found.name)
    steps("Trusted its certificate, which is pinned from now on.", shown)

    from sksd import paths

    connection = await connect(scope.reactor, target)
    try:
        session = await connection.login("", paths.token().read_text("ascii").strip())
        steps(f"Logged in as {session.user} over TLS 1.3, with the local token.")
        environments = await session.environments()
        fitting = [each for each in environments if each.fits]
        steps(
            f"Listed the environments: {len(environments)}, {len(fitting)} of them with a kernel that fits.",
            *(f"{each.name}: Python {each.python}, {_kernel(each.kernel)}" for each in fitting[:5]),
        )
        own = next((each for each in fitting if each.own), None)
        if own is None:
            raise Failed("sksd's own environment has no kernel: pip install 'sksd[demo]'.")
        start = spinning.Start(own.name, linger=spinning.ORPHAN, label="demo")
        async with spinning.engine_for(scope, session, None, start) as held:
            steps(f"Spun up a kernel in '{own.name}': engine {held.session.id}.")
            await _compute(scope, steps, target, held)
            await _offer(scope, target, held)
            steps.again()
        if await session.engines():
            raise Failed("The engine did not end.")
        steps("Stopped the kernel.")
    finally:
        await finished(connection.close())


def _kernel(kernel: Any) -> str:
    return f"{kernel.package} {kernel.version}" if kernel is not None else "no kernel"


async def _find(scope: Scope, discovery: Any) -> tuple[Target, Found]:
    from sksd.client.hosts import local_target

    local = local_target()
    found = await discovery.resolve_name(scope.reactor, _NAME, 10.0)
    if found.port != local.port:
        raise Failed(f"Another '{_NAME}' is on the network: end it first.")
    return local, found


async def _target(scope: Scope) -> Target:
    from sksd.client.hosts import target

    return await target(scope.reactor, _NAME, seconds=10.0)


async def _compute(scope: Scope, steps: _Steps, target: Target, held: Held) -> None:
    from sksd.cli.terminal import Record
    from sksd.client.relay import open_relay
    from sksd.jupyter.execute import Program

    pictures = Path(tempfile.mkdtemp(prefix="figures-"))
    relay = await open_relay(scope.reactor, target, held.ticket)
    try:
        steps("Opened the link; any Jupyter front end could use it.", str(relay.file))
        front = Record(pictures, stdin=False)
        code = await _program(relay, Program(_PROGRAM), front)
        if code != 0 or len(front.saved) != 1 or len(front.results) != 1:
            raise Failed(f"The program failed on the engine: {front.error or 'no figure came back'}")
        answer, figure = front.results[0], front.saved[0]
        steps(
            "Ran a program there that computes and draws.",
            f"it printed    {''.join(front.text['stdout']).strip()}",
            f"it answered   {answer}",
            f"it drew       {figure.name}, PNG, {figure.stat().st_size} bytes",
        )
        if not answer.startswith(("2.0", "1.99")):
            raise Failed(f"The engine's answer is wrong: {answer}, and not 2.")
        if at_terminal(sys.stdout):
            draw(figure)
    finally:
        await relay.stop()
        shutil.rmtree(pictures, ignore_errors=True)


async def _program(relay: Relay, program: Any, front: Record) -> int:
    from twisted.internet import defer

    from sksd.jupyter.execute import Execution

    async def work() -> int:
        return await Execution(relay.file, program, front).run()

    running, ended = Job(defer.ensureDeferred(in_asyncio(work()))), Job(relay.when_ended())
    try:
        await first_of(running, ended)
        if not running.done:
            raise await ended.wait() or Failed("The link ended.")
        return await running.wait()
    finally:
        running.cancel()


async def _offer(scope: Scope, target: Target, held: Held) -> None:
    """At a terminal: a console on the engine, for a person who wants one."""
    if not (at_terminal(sys.stdout) and sys.stdin.isatty()):
        return
    from sksd.cli.console import converse

    with asking():
        try:
            answer = input("Open a console on this kernel? [Y/n] ")
        except EOFError:
            answer = "n"
    if answer.strip().casefold() in ("", "y", "yes"):
        scope.output.say("Ctrl-D leaves the console.")
        await converse(scope, target, held, 10.0)


def draw(figure: Path) -> None:
    """A picture in the terminal, two pixels a letter; nothing where Pillow is missing."""
    try:
        from PIL import Image
    except ImportError:
        return
    with Image.open(figure) as opened:
        high = max(2, round(opened.height * _WIDE / opened.width)) // 2 * 2
        small = opened.convert("RGB").resize((_WIDE, high))
    for row in range(0, high, 2):
        line = ""
        for column in range(_WIDE):
            top, bottom = small.getpixel((column, row)), small.getpixel((column, row + 1))
            line += "\x1b[38;2;{};{};{};48;2;{};{};{}m\N{UPPER HALF BLOCK}".format(*_rgb(top), *_rgb(bottom))
        sys.stdout.write(f"{'':12}{line}\x1b[0m\n")
    sys.stdout.flush()


def _rgb(pixel: Any) -> tuple[int, int, int]:
    red, green, blue = pixel
    return red, green, blue


def main() -> int:
    """Show everything; the exit code."""
    from sksd.cli.running import Stopped
    from sksd.errors import SksdError

    output = Output()
    begun = time.monotonic()
    try:
        with _private_folders() as folder:
            run(output, lambda scope: _show(scope, folder))
        if folder.exists():
            raise Failed(f"{folder} is left.")
    except (SksdError, Failed) as error:
        output.note(f"sksd demo: {error}")
        return 1
    except Stopped as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    output.say(f"All of it took {time.monotonic() - begun:.1f} s, and nothing is left behind.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
