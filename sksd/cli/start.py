"""`sksd start`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sksd.cli import options
from sksd.cli.output import Output
from sksd.cli.running import Scope, run

if TYPE_CHECKING:
    from sksd.wire.messages import Accept


@click.command("start", epilog="Example: sksd start lab analysis --cwd /data --label 'night run'")
@options.host
@click.option("--label", metavar="TEXT", default="", help="A note for listings.")
@click.option("--linger", metavar="S", type=click.FloatRange(0, 1e9),
              help="Stop it after S seconds without a front end (default: never).")
@options.starting
@options.needing
@options.environment(required=True)
@options.on_host
@click.pass_obj
def command(
    output: Output,
    access: options.Access,
    environment: str,
    cwd: str | None,
    variables: dict[str, str | None],
    accepts: list[Accept],
    start_timeout: float,
    needs: options.Needs,
    linger: float | None,
    label: str,
) -> None:
    """Start an engine and leave it running.

    `sksd console HOST --engine ID` and `sksd run HOST --engine ID` use it, `sksd stop HOST ID` ends it.
    """

    async def body(scope: Scope) -> None:
        from sksd.cli import spinning
        from sksd.cli.access import session_on
        from sksd.wire.messages import plain

        start = spinning.Start(environment, accepts, cwd, variables, start_timeout, linger, label, needs)
        async with session_on(scope, access) as session:
            outcome = await spinning.spin_up(scope, session, start)
            name = session.route.name
        # The ticket is a secret, and of no use to whoever reads this.
        output.document({name: value for name, value in plain(outcome).items() if name != "ticket"})
        problem = spinning.failure(name, start, outcome)
        if problem is not None:
            raise problem
        engine = outcome.engine
        assert engine is not None
        kernel = f"{engine.kernel.package} {engine.kernel.version}"
        output.say(f"{outcome.outcome}: engine {engine.id} in {engine.environment} ({kernel}) on {name}")

    run(output, body)
