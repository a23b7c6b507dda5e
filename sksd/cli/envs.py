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
@click.option("--detail", is_flag=True, help="Also the size on disk and the last use, which takes longer.")
@options.on_host
@click.pass_obj
def command(output: Output, access: options.Access, accepts: list[Accept], detail: bool) -> None:
    """List the environments of a host, their Python, and whether a kernel fits."""

    async def body(scope: Scope) -> list[Environment]:
        from sksd.cli.access import session_on
        from sksd.cli.spinning import key
        from sksd.wire.messages import EnvironmentsQuery

        async with session_on(scope, access) as session:
            with output.waiting(scope.reactor, "Reading environments"):
                listing = await session.listing(EnvironmentsQuery(accepts=list(accepts), detail=detail))
            for folder in listing.silent:
                output.note(f"sksd: {folder} does not answer there; its environments are left out.")
            found = listing.environments
            names.keep(names.ALL_ENVIRONMENTS, key(session), [each.name for each in found])
            fitting = [each.name for each in found if each.fits]
            names.keep(names.ENVIRONMENTS, key(session), fitting)
        return found

    found = run(output, body)
    from sksd.wire.messages import plain

    output.document([plain(each) for each in found])
    if found:
        more = ("SIZE", "LAST USE") if detail else ()
        columns = ("NAME", "PYTHON", "KERNEL", "KIND", "PREFIX", "NOTES", *more, "FITS")
        output.table(columns, [_row(each, detail) for each in found])
    else:
        output.say("There is no environment.")


def _row(each: Environment, detail: bool) -> list[object]:
    from sksd.cli.progress import in_bytes

    kernel = f"{each.kernel.package} {each.kernel.version}" if each.kernel else None
    fits = "yes" if each.fits else f"no: {each.reason}"
    facts = {"own": each.own, "shared": each.shared, "read-only": not each.writable, "frozen": each.frozen}
    notes = ", ".join(name for name, holds in {**facts, "broken": each.broken}.items() if holds)
    more = [in_bytes(each.size), (each.last_use or "")[:10]] if detail else []
    return [each.name, each.python, kernel, each.kind, each.prefix, notes, *more, fits]
