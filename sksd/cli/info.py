"""`sksd info`."""

from __future__ import annotations

import click

from sksd import amounts
from sksd.cli import options
from sksd.cli.output import Output
from sksd.cli.running import Scope, run


@click.command("info", epilog="Example: sksd info local")
@options.host
@options.on_host
@click.pass_obj
def command(output: Output, access: options.Access) -> None:
    """Show what a host is and offers."""

    async def body(scope: Scope) -> None:
        from sksd.cli.access import session_on
        from sksd.wire.messages import plain

        async with session_on(scope, access) as session:
            host = await session.host()
            route = session.route
        output.document({**plain(host), "address": route.address, "port": route.port})
        output.facts(
            [
                ("name", host.name),
                ("description", host.description),
                ("host", host.hostname),
                ("address", f"{route.address}:{route.port}"),
                ("fingerprint", host.fingerprint),
                ("platform", host.platform),
                ("cores", f"{host.cores}, load {host.load[0]:.2f}" if host.load else host.cores),
                ("memory", f"{amounts.size(host.memory_available)} of {amounts.size(host.memory_total)} free"),
                ("kernels", f"{host.running} of {host.maximum}"),
                ("sksd", f"{host.version} ({host.mode} mode, Python {host.python})"),
                ("logged in as", host.user),
            ]
        )

    run(output, body)
