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
    from sksd.wire.messages import Accept


@click.command("relay", epilog="Example: sksd relay lab analysis --transport tcp")
@options.host
@click.option("--file", "-f", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="Connection file to write (default: a new one where Jupyter looks for them).")
@click.option("--transport", type=click.Choice(["ipc", "tcp"]), default="ipc", show_default=True,
              help="UNIX sockets, or ports on 127.0.0.1.")
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
        from sksd.cli.access import session_on
        from sksd.cli.state import LinkState
        from sksd.client.relay import open_relay

        linger = None if keep else spinning.ORPHAN
        start = spinning.Start(environment, accepts, cwd, variables, start_timeout, linger)
        where = file if file is not None else _default_file()
        async with (
            session_on(scope, access) as session,
            spinning.engine_for(scope, session, engine, start, keep) as held,
        ):
            with LinkState(scope) as state:
                relay = await open_relay(
                    scope.reactor, session.route, held.ticket, file=where.absolute(), transport=transport,
                    timeout=access.timeout, told=state.told,
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

    run(output, body)


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
