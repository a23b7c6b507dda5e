"""`sksd hosts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sksd.cli import names, options
from sksd.cli.output import Output
from sksd.cli.running import Scope, run

if TYPE_CHECKING:
    from sksd.client.discovery import Found


@click.command("hosts", epilog="Example: sksd hosts --seconds 5")
@click.option("--seconds", metavar="S", type=click.FloatRange(0.1, 600), default=3.0, show_default=True,
              help="How long to look at most.")
@options.as_json
@click.pass_obj
def command(output: Output, seconds: float) -> None:
    """Find hosts on the local network.

    Hosts tell the network where they are; one that cannot be reached from here is marked.
    """

    async def body(scope: Scope) -> list[tuple[Found, bool]]:
        from twisted.internet.defer import ensureDeferred, gatherResults

        from sksd.client import discovery

        with output.waiting(scope.reactor, "Looking for hosts"):
            found = await discovery.browse(scope.reactor, seconds)
            asked = [ensureDeferred(discovery.alive(scope.reactor, host)) for host in found]
            answers = await gatherResults(asked, consumeErrors=True)
        return [(host, answer is not None) for host, answer in zip(found, answers, strict=True)]

    hosts = run(output, body)
    names.keep(names.HOSTS, "", [host.name for host, alive in hosts if alive])
    output.document([_plain(host, alive) for host, alive in hosts])
    if not hosts:
        output.say("No host announces itself here. ADDRESS:PORT reaches one that does not.")
        return
    output.table(
        ("NAME", "HOST", "ADDRESS", "KERNELS", "VERSION", "FINGERPRINT", ""),
        [_row(host, alive) for host, alive in hosts],
    )


def _row(host: Found, alive: bool) -> list[object]:
    address = f"[{host.addresses[0]}]" if ":" in host.addresses[0] else host.addresses[0]
    kernels = None if host.running is None else f"{host.running} of {host.maximum or '?'}"
    state = "" if alive else "does not answer"
    return [host.name, host.hostname, f"{address}:{host.port}", kernels, host.version, host.fingerprint, state]


def _plain(host: Found, alive: bool) -> dict[str, Any]:
    return {
        "name": host.name,
        "hostname": host.hostname,
        "addresses": list(host.addresses),
        "port": host.port,
        "fingerprint": host.fingerprint,
        "version": host.version,
        "running": host.running,
        "maximum": host.maximum,
        "environments": list(host.environments),
        "alive": alive,
    }
