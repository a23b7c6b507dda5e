"""`sksd interrupt`."""

from __future__ import annotations

import click

from sksd.cli import ids, options
from sksd.cli.output import Output


@click.command("interrupt", epilog="Example: sksd interrupt lab k3f9")
@options.host
@ids.several
@options.on_host
@click.pass_context
def command(context: click.Context, access: options.Access, **given: object) -> None:
    """Interrupt what an engine computes, as Ctrl-C does."""
    names, everything = given["ids"], bool(given["everything"])
    assert isinstance(names, tuple)
    ids.check(context, names, everything)
    output: Output = context.obj
    ids.each(output, access, names, "Interrupting", "Interrupted", lambda engine: engine.interrupt())
