"""What `interrupt`, `restart` and `stop` share: ids of engines, and one thing done to each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from sksd.cli import names, options
from sksd.cli.output import Output
from sksd.cli.running import Scope, run

if TYPE_CHECKING:
    from sksd.client.session import EngineSession
    from sksd.wire.messages import Engine


def several(command: Callable[..., Any]) -> Callable[..., Any]:
    """ID... or --all."""
    command = click.option("--all", "everything", is_flag=True, help="All your engines there.")(command)
    return click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=names.complete_engines)(command)


def check(context: click.Context, ids: Sequence[str], everything: bool) -> None:
    """Either ids or --all; raises UsageError."""
    if bool(ids) == everything:
        raise click.UsageError("Give the ID of an engine (several will do), or --all.", context)


def each(
    output: Output,
    access: options.Access,
    ids: Sequence[str],
    doing: str,
    done: str,
    act: Callable[[EngineSession], Awaitable[Engine]],
    dead: bool = False,
) -> None:
    """`act` on each engine; no ids: on all that are not dead, or with `dead` on those, too. Every id is looked up
    before the first is touched."""

    async def body(scope: Scope) -> list[Engine]:
        from sksd.cli.access import session_on
        from sksd.cli.spinning import find
        from sksd.wire.names import DEAD

        async with session_on(scope, access) as session:
            if ids:
                found = [await find(session, each) for each in ids]
            else:
                found = [each for each in await session.engines() if dead or each.state != DEAD]
            result = []
            for engine in {engine.id: engine for engine in found}.values():
                with output.waiting(scope.reactor, f"{doing} {engine.id}"):
                    result.append(await act(await session.engine(engine.id)))
                word = "Forgot" if engine.state == DEAD else done
                output.say(f"{word} {engine.id} ({engine.environment}).")
        return result

    engines = run(output, body)
    from sksd.wire.messages import plain

    output.document([plain(engine) for engine in engines])
    if not engines:
        output.say(f"You have no engines on {access.host}.")
