"""`sksd completion`."""

from __future__ import annotations

import click


@click.command("completion", epilog='Example: eval "$(sksd completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that makes Tab complete commands, hosts, environments and engines."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(context.find_root().command, {}, "sksd", "_SKSD_COMPLETE").source())
