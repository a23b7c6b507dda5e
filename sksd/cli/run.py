"""`sksd run`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sksd.cli import names, options
from sksd.cli.output import Output, at_terminal
from sksd.cli.running import Job, Scope, first_of, in_asyncio, run

if TYPE_CHECKING:
    from sksd.cli.spinning import Held
    from sksd.cli.terminal import Record, Screen
    from sksd.client.relay import Relay
    from sksd.jupyter.execute import Program
    from sksd.wire.messages import Accept

#: A second Ctrl-C within this many seconds ends the command.
_TWICE: Final = 2.0
#: Seconds of silence after which a dead engine is taken to have had its last word.
_LAST_WORDS: Final = 0.3


class _Run(click.Command):
    """What follows the program belongs to the program, options and all."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Called by click."""
        return super().parse_args(ctx, self._guarded(args))

    def _guarded(self, args: list[str]) -> list[str]:
        """`args` with a `--` in front of what belongs to the program."""
        flags: dict[str, bool] = {"-h": True, "--help": True}
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                flags |= dict.fromkeys(parameter.opts, parameter.is_flag)
        # HOST and ENV, then FILE; with --engine HOST and FILE; with -c no FILE.
        before, file, ours, index = 2, 1, 0, 0
        while index < len(args):
            each = args[index]
            if each == "--":
                return args
            if each.startswith("-") and each != "-":
                name = each.partition("=")[0] if each.startswith("--") else each[:2]
                before -= name == "--engine"
                file -= name == "-c"
                apart = flags.get(name) is False and each == name
                index += 2 if apart else 1
                continue
            ours += 1
            index += 1
            if ours > before + file:
                return [*args[: index - 1], "--", *args[index - 1 :]]
            if file and ours == before + file:
                return [*args[:index], "--", *args[index:]]
        return args


@click.command(
    "run",
    cls=_Run,
    epilog="Examples: sksd run lab analysis -c 'import os; os.cpu_count()' ; sksd run lab analysis model.py --fast",
)
@options.host
@click.option("-c", "code", metavar="CODE", help="Run this; the value of its last line is shown.")
@options.figures
@options.engine
@options.starting
@options.needing
@click.argument(
    "words", metavar="[ENV] [FILE|-] [ARGS]...", nargs=-1, shell_complete=names.complete_program
)
@options.on_host
@click.pass_context
def command(
    context: click.Context,
    access: options.Access,
    words: tuple[str, ...],
    cwd: str | None,
    variables: dict[str, str | None],
    accepts: list[Accept],
    start_timeout: float,
    needs: options.Needs,
    engine: str | None,
    figures: Path | None,
    code: str | None,
) -> int:
    """Run a program on a host, show what it prints, and stop.

    The program is CODE, the FILE of this machine, or stdin for `-`. Options stand before FILE; what follows it
    belongs to the program. With -c, ENV may be left out: it is the first with a kernel that fits then. The exit
    code is the program's. Ctrl-C interrupts it; twice, or while the host is out of reach, ends it.
    """
    output: Output = context.obj
    rest = list(words)
    environment = None
    if engine is None and (rest or code is None):
        environment = rest.pop(0) if rest else None
    name = None
    if code is None:
        if not rest:
            wanted = "FILE" if engine is not None or environment is not None else "ENV and FILE"
            raise click.UsageError(f"Give {wanted}, or -c CODE.", context)
        name = rest.pop(0)
        code = _read(context, name)
    reads_stdin = name == "-" or access.password_stdin
    program = (code, name, rest)

    async def body(scope: Scope) -> int:
        from sksd.cli import spinning
        from sksd.cli.access import session_on
        from sksd.cli.state import LinkState
        from sksd.cli.terminal import Record, Screen
        from sksd.client.relay import open_relay
        from sksd.jupyter.execute import Program

        front: Screen | Record = (Record if output.as_json else Screen)(figures, stdin=not reads_stdin)
        label = f"run {name}" if name else "run -c"
        start = spinning.Start(
            environment, accepts, cwd, variables, start_timeout, spinning.ORPHAN, label[:255], needs
        )
        async with (
            session_on(scope, access) as session,
            spinning.engine_for(scope, session, engine, start) as held,
        ):
            with LinkState(scope) as state:
                relay = await open_relay(
                    scope.reactor, session.route, held.ticket, timeout=access.timeout, replay="now", told=state.told
                )
                try:
                    exit_code = await _work(scope, held, relay, Program(*program), front)
                finally:
                    await relay.stop()
        if isinstance(front, Record):
            output.document({"engine": held.session.id, **front.document(exit_code)})
        return exit_code

    return run(output, body)


def _read(context: click.Context, name: str) -> str:
    """The text of FILE, decoded as Python would."""
    import io
    import tokenize

    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return io.TextIOWrapper(io.BytesIO(data), encoding).read()
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise click.UsageError(f"Cannot read the program {name!r}: {problem}.", context) from None
    except SyntaxError as error:
        raise click.UsageError(f"Cannot read the program {name!r}: {error.msg}.", context) from None


async def _work(scope: Scope, held: Held, relay: Relay, program: Program, front: Screen | Record) -> int:
    """The program's exit code; raises what ended the link before."""
    from twisted.internet import defer

    from sksd.errors import SksdError
    from sksd.jupyter.execute import Execution

    async def prepared() -> Execution:
        return Execution(relay.file, program, front, alone=held.ours)

    execution = await in_asyncio(prepared())
    running = Job(defer.ensureDeferred(in_asyncio(execution.run())))
    ended = Job(relay.when_ended())
    pressed = -_TWICE

    async def ask() -> None:
        try:
            await held.session.interrupt()
        except SksdError:
            scope.end()

    def interrupt() -> None:
        nonlocal pressed
        now = time.monotonic()
        if now - pressed < _TWICE or relay.cut_for is not None:
            scope.end()
            return
        pressed = now
        if at_terminal(sys.stderr) and not scope.output.as_json:
            scope.output.note("sksd: interrupting; Ctrl-C once more ends the program.")
        defer.ensureDeferred(ask())

    try:
        with scope.interrupts(interrupt):
            await first_of(running, ended)
            if not running.done:
                await in_asyncio(execution.quiet(_LAST_WORDS))
        if not running.done:
            why = await ended.wait()
            if why is not None:
                raise why
        return await running.wait()
    finally:
        running.cancel()
        await in_asyncio(front.flush())
