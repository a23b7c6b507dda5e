"""`sksd relay`."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sksd import paths
from sksd.cli import options
from sksd.cli.output import Output
from sksd.cli.running import Scope, run

if TYPE_CHECKING:
    from sksd.client.session import Route
    from sksd.client.state import Kept
    from sksd.wire.messages import Accept, Ticket


@click.command("relay", epilog="Example: sksd relay lab analysis --transport tcp")
@options.host
@click.option("--file", "-f", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="Connection file to write (default: a new one where Jupyter looks for them).")
@click.option("--transport", type=click.Choice(["ipc", "tcp"]), default="ipc", show_default=True,
              help="UNIX sockets, or ports on 127.0.0.1.")
@click.option("--state", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path),
              help="Keep here what is needed to go on when this is killed: the same command then goes on with the "
                   "same link and sockets, without a login, and front ends that still run lose nothing. Removed at "
                   "an orderly end.")
@click.option("--keep", is_flag=True, help="Leave an engine that was started for this running.")
@options.engine
@options.starting
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
    engine: str | None,
    keep: bool,
    transport: str,
    file: Path | None,
    state: Path | None,
) -> None:
    """Hold a link to an engine and offer it as a Jupyter connection file.

    Any front end on this machine connects to it, as `jupyter console --existing FILE`. Ends with Ctrl-C, SIGTERM
    or the engine.
    """
    output: Output = context.obj
    if environment is not None and engine is not None:
        raise click.UsageError("Give ENV or --engine, not both.", context)
    if file is not None and os.path.lexists(file) and not _is_connection_file(file):
        problem = "is there already and is no connection file: give another name, or move it away"
        raise click.UsageError(f"{str(file)!r} {problem}.", context)

    async def body(scope: Scope) -> None:
        from twisted.internet.defer import CancelledError

        from sksd.cli import spinning
        from sksd.cli.access import reach, session_on
        from sksd.cli.state import LinkState
        from sksd.client.relay import State, open_relay
        from sksd.client.state import RelayState

        async def hold(route: Route, ticket: Ticket, where: Path) -> None:
            with LinkState(scope) as shown:
                relay = await open_relay(
                    scope.reactor, route, ticket, file=where.absolute(), transport=transport, timeout=access.timeout,
                    state=kept, told=shown.told,
                )  # fmt: skip
                try:
                    output.document({"file": str(relay.file), "engine": relay.engine})
                    output.say(str(relay.file))
                    ended = await relay.when_ended()
                except CancelledError:
                    ended = None
                finally:
                    await relay.stop()
            if ended is not None:
                raise ended

        kept = None if state is None else State(RelayState(state), access.host, environment or "")
        before = None if kept is None else kept.files.kept
        try:
            if before is not None:
                _must_be_the_same(before, str(state), access.host, environment, engine)
                await hold(await reach(scope, access), before.ticket, file or Path(before.file))
                return
            linger = None if keep else spinning.ORPHAN
            start = spinning.Start(environment, accepts, cwd, variables, start_timeout, linger)
            async with (
                session_on(scope, access) as session,
                spinning.engine_for(scope, session, engine, start, keep) as held,
            ):
                await hold(session.route, held.ticket, file or _default_file())
        finally:
            if kept is not None:
                kept.files.leave()

    run(output, body)


def _must_be_the_same(kept: Kept, path: str, host: str, environment: str | None, engine: str | None) -> None:
    """Raises StateOfAnother when the state is not that of this command."""
    from sksd.errors import StateOfAnother

    same = kept.ticket.engine.startswith(engine) if engine is not None else kept.wanted == (environment or "")
    if host != kept.host or not same:
        problem = f"belongs to a link to engine {kept.ticket.engine} on {kept.host}"
        raise StateOfAnother(path=path, problem=problem)


def _is_connection_file(file: Path) -> bool:
    """Only such a file is replaced, as one that a killed relay has left: it is removed in the end."""
    try:
        return file.is_file() and "shell_port" in json.loads(file.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _default_file() -> Path:
    folder = paths.private(jupyter_runtime())
    return folder / f"kernel-sksd-{secrets.token_hex(5)}.json"


def jupyter_runtime() -> Path:
    """The folder in which `jupyter ... --existing` looks (jupyter_core's, which would take long to import)."""
    if os.environ.get("JUPYTER_RUNTIME_DIR"):
        return Path(os.environ["JUPYTER_RUNTIME_DIR"])
    if os.environ.get("JUPYTER_DATA_DIR"):
        return Path(os.environ["JUPYTER_DATA_DIR"]) / "runtime"
    if sys.platform == "darwin":
        return paths.home() / "Library" / "Jupyter" / "runtime"
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else paths.home() / ".local" / "share") / "jupyter" / "runtime"
