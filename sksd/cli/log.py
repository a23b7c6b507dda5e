"""`sksd log`."""

from __future__ import annotations

import sys

import click

from sksd.cli import names, options
from sksd.cli.output import Output, at_terminal, safe
from sksd.cli.running import Scope, run

#: Bytes from the end that are asked for at once, and seconds between two looks with --follow.
_PAGE = 64 * 1024
_LOOK = 0.5


@click.command("log", epilog="Example: sksd log lab k3f9 --follow")
@options.host
@click.option("--lines", "-n", metavar="N", type=click.IntRange(0), default=100, show_default=True,
              help="The last N lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.argument("engine", metavar="ID", shell_complete=names.complete_engines)
@options.on_host
@click.pass_context
def command(context: click.Context, access: options.Access, engine: str, lines: int, follow: bool) -> None:
    """Show what an engine wrote to its log."""
    output: Output = context.obj
    if follow and output.as_json:
        raise click.UsageError("--follow has no end, and --json needs one.", context)

    async def body(scope: Scope) -> None:
        from twisted.internet.task import deferLater

        from sksd.cli.access import session_on
        from sksd.cli.spinning import find

        async with session_on(scope, access) as session:
            named = (await find(session, engine)).id
            held = await session.engine(named)
            text, offset = "", -_PAGE * max(1, lines // 500)
            while True:
                page = await held.log(offset)
                text, offset = text + page.text, page.next
                if page.end:
                    break
            last = "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""
            output.document({"engine": named, "text": last})
            if not output.as_json:
                _write(last)
            while follow:
                page = await held.log(offset)
                offset = page.next
                _write(page.text)
                if page.end:
                    await deferLater(scope.reactor, _LOOK, lambda: None)

    run(output, body)


def _write(text: str) -> None:
    sys.stdout.write(safe(text) if at_terminal(sys.stdout) else text)
    sys.stdout.flush()
