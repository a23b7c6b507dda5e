"""`sksd stop`."""

from __future__ import annotations

import click

from sksd.cli import ids, options
from sksd.cli.output import Output


@click.command("stop", epilog="Example: sksd stop lab k3f9")
@options.host
@click.option("--grace", metavar="S", type=click.FloatRange(0, 600), default=5.0, show_default=True,
              help="Seconds it has to end by itself.")
@ids.several
@options.on_host
@click.pass_context
def command(context: click.Context, access: options.Access, grace: float, **given: object) -> None:
    """End engines; those that have ended are listed no longer, and what they said is not kept."""
    names, everything = given["ids"], bool(given["everything"])
    assert isinstance(names, tuple)
    ids.check(context, names, everything)
    output: Output = context.obj
    ids.each(output, access, names, "Stopping", "Stopped", lambda engine: engine.shutdown(grace), True)
