"""`sksd restart`."""

from __future__ import annotations

import click

from sksd.cli import ids, options
from sksd.cli.output import Output


@click.command("restart", epilog="Example: sksd restart lab k3f9")
@options.host
@ids.several
@options.on_host
@click.pass_context
def command(context: click.Context, access: options.Access, **given: object) -> None:
    """Give an engine a new kernel; its variables are lost."""
    names, everything = given["ids"], bool(given["everything"])
    assert isinstance(names, tuple)
    ids.check(context, names, everything)
    output: Output = context.obj
    ids.each(output, access, names, "Restarting", "Restarted", lambda engine: engine.restart())
