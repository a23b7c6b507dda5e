"""`sksd serve`."""

from __future__ import annotations

import click


@click.command("serve", epilog="Example: sksd serve --config ~/sksd.conf")
@click.option("--config", metavar="FILE", type=click.Path(dir_okay=False),
              help="Configuration (default: $SKSD_CONF, else ~/.config/sksd/sksd.conf).")
def command(config: str | None) -> None:
    """Run the daemon in the foreground, until Ctrl-C.

    Kernels that run when it ends go on, and are found again. In the background: twistd -y sksd.tac.
    """
    from sksd.server import tap

    tap.serve(config)
