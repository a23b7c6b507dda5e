"""`sksd envs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sksd.cli import names, options
from sksd.cli.output import Output
from sksd.cli.running import Scope, run

if TYPE_CHECKING:
    from sksd.wire.messages import Accept, Environment


@click.command("envs", epilog="Example: sksd envs lab --kernels '>=3.1,<3.2'")
@options.host
@options.kernels
@options.on_host
@click.pass_obj
def command(output: Output, access: options.Access, accepts: list[Accept]) -> None:
    """List the environments of a host, their Python, and whether a kernel fits."""

    async def body(scope: Scope) -> list[Environment]:
        from sksd.cli.access import session_on
        from sksd.cli.spinning import key

        async with session_on(scope, access) as session:
            with output.waiting(scope.reactor, "Reading environments"):
                found = await session.environments(list(accepts))
            fitting = [each.name for each in found if each.fits]
            names.keep(names.ENVIRONMENTS, key(session), fitting)
        return found

    found = run(output, body)
    from sksd.wire.messages import plain

    output.document([plain(each) for each in found])
    if found:
        output.table(("NAME", "PYTHON", "KERNEL", "KIND", "PREFIX", "FITS"), [_row(each) for each in found])
    else:
        output.say("There is no environment.")


def _row(each: Environment) -> list[object]:
    kernel = f"{each.kernel.package} {each.kernel.version}" if each.kernel else None
    fits = "yes" if each.fits else f"no: {each.reason}"
    return [each.name, each.python, kernel, each.kind, each.prefix, fits]
