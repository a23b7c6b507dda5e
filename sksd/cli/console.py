"""`sksd console`."""

from __future__ import annotations

import contextlib
import sys
import termios
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sksd.cli import options
from sksd.cli.output import Output
from sksd.cli.running import Job, Scope, finished, first_of, run

if TYPE_CHECKING:
    from sksd.cli.spinning import Held
    from sksd.client.relay import Relay
    from sksd.wire.messages import Accept


@click.command("console", epilog="Example: sksd console lab analysis")
@options.host
@click.option("--keep", is_flag=True, help="Leave an engine that was started for this running.")
@options.engine
@options.starting
@options.needing
@options.environment(required=False)
@options.on_host
@click.pass_context
def command(
    context: click.Context,
    access: options.Access,
    environment: str | None,
    cwd: str | None,
    variables: dict[str, str | None],
    accepts: list[Accept],
    start_timeout: float,
    needs: options.Needs,
    engine: str | None,
    keep: bool,
) -> int:
    """Open a Jupyter console on an engine.

    Without ENV and --engine it is the first environment with a kernel that fits. Ctrl-D leaves; an engine started
    for the console is stopped then.
    """
    output: Output = context.obj
    if environment is not None and engine is not None:
        raise click.UsageError("Give ENV or --engine, not both.", context)
    if output.as_json:
        raise click.UsageError("A console has no --json: `sksd run --json` does.", context)

    async def body(scope: Scope) -> int:
        from sksd.cli import spinning
        from sksd.cli.access import session_on

        linger = None if keep else spinning.ORPHAN
        start = spinning.Start(environment, accepts, cwd, variables, start_timeout, linger, "console", needs)
        async with (
            session_on(scope, access) as session,
            spinning.engine_for(scope, session, engine, start, keep) as held,
        ):
            code = await converse(scope, session.route, held, access.timeout)
        if keep or not held.ours:
            name = session.route.name
            output.note(f"Engine {held.session.id} goes on: `sksd console {name} --engine {held.session.id}`.")
        return code

    return run(output, body)


async def converse(scope: Scope, route: Any, held: Held, timeout: float) -> int:
    """The console, until the person leaves it; its exit code. Raises what ended the link before."""
    from sksd.cli.state import LinkState
    from sksd.client.relay import open_relay

    with LinkState(scope, live=False) as state:
        relay = await open_relay(scope.reactor, route, held.ticket, timeout=timeout, told=state.told)
        try:
            with _terminal_restored(), scope.interrupts(lambda: None):
                return await _child(scope, held, relay)
        finally:
            await relay.stop()


async def _child(scope: Scope, held: Held, relay: Relay) -> int:
    import os

    from twisted.internet import defer, error, protocol

    leaving: defer.Deferred[int] = defer.Deferred()

    class Child(protocol.ProcessProtocol):
        """Its descriptor 3 brings a byte for each interrupt; 4 ends with this process."""

        def childDataReceived(self, childFD: int, data: bytes) -> None:
            defer.ensureDeferred(finished(held.session.interrupt()))

        def processEnded(self, reason: Any) -> None:
            leaving.callback(reason.value.exitCode or 0)

    # Its own Python, and nothing of a virtual environment that happens to be around.
    child = scope.reactor.spawnProcess(
        Child(),
        sys.executable,
        [sys.executable, "-m", "sksd.jupyter.console", str(relay.file), str(relay.past)],
        env=dict(os.environ),
        childFDs={0: 0, 1: 1, 2: 2, 3: "r", 4: "w"},
    )

    def end(signal: str) -> None:
        with contextlib.suppress(error.ProcessExitedAlready):
            child.signalProcess(signal)

    gone, ended = Job(leaving), Job(relay.when_ended())
    try:
        await first_of(gone, ended)
    finally:
        end("TERM")
        killing = scope.reactor.callLater(2.0, end, "KILL")
        code = await gone.wait()
        if killing.active():
            killing.cancel()
    why = await ended.wait() if ended.done else None
    if why is not None:
        raise why
    return code


@contextlib.contextmanager
def _terminal_restored() -> Iterator[None]:
    """A console that is killed leaves the terminal as it likes it."""
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        yield
        return
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
