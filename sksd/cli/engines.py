"""`sksd engines`."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import click

from sksd.cli import names, options
from sksd.cli.output import Output
from sksd.cli.running import Scope, run
from sksd.wire.names import DEAD

if TYPE_CHECKING:
    from sksd.wire.messages import Engine


@click.command("engines", epilog="Example: sksd engines lab")
@options.host
@options.on_host
@click.pass_obj
def command(output: Output, access: options.Access) -> None:
    """List your engines on a host."""

    async def body(scope: Scope) -> list[Engine]:
        from sksd.cli.access import session_on
        from sksd.cli.spinning import key

        async with session_on(scope, access) as session:
            found = await session.engines()
            names.keep(names.ENGINES, key(session), [each.id for each in found])
        return found

    found = run(output, body)
    from sksd.wire.messages import plain

    output.document([plain(each) for each in found])
    if not found:
        output.say(f"You have no engines on {access.host}.")
        return
    output.table(
        ("ID", "ENVIRONMENT", "KERNEL", "STATE", "STARTED", "LINKS", "FOLDER", "LABEL"),
        [_row(each) for each in found],
    )


def _row(each: Engine) -> list[object]:
    state = f"{each.state} ({each.reason})" if each.reason else each.state
    if each.stalled:
        state = f"stopped: {each.reason}"
    elif each.state == DEAD and each.missed:
        state += ", output missed"
    kernel = f"{each.kernel.package} {each.kernel.version}"
    return [each.id, each.environment, kernel, state, when(each.started), each.links, each.cwd, each.label]


def when(started: str) -> str:
    """A time of the wire, as a person here reads it."""
    try:
        moment = datetime.datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
