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
@click.option("--all", "everything", is_flag=True, help="Also those without a kernel that fits.")
@options.kernels
@options.on_host
@click.pass_obj
def command(output: Output, access: options.Access, accepts: list[Accept], everything: bool) -> None:
    """List the environments of a host, their Python, and whether a kernel fits.

    With --json all are listed; `fits` tells.
    """

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
    shown = [each for each in found if each.fits or everything]
    if shown:
        columns = ("NAME", "PYTHON", "KERNEL", "KIND", "PREFIX") + (("",) if everything else ())
        output.table(columns, [_row(each, everything) for each in shown])
    hidden = len(found) - len(shown)
    if hidden and not output.as_json:
        some = "1 more has" if hidden == 1 else f"{hidden} more have"
        output.note(f"{some} no kernel that fits: --all lists them.")
    elif not found:
        output.say("There is no environment.")


def _row(each: Environment, everything: bool) -> list[object]:
    kernel = f"{each.kernel.package} {each.kernel.version}" if each.kernel else None
    reason = [] if not everything else ["" if each.fits else each.reason or "does not fit"]
    return [each.name, each.python, kernel, each.kind, each.prefix, *reason]
