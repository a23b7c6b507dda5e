"""`sksd env`: making, changing, describing and removing environments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sksd.cli import names, options
from sksd.cli.output import Output
from sksd.cli.running import Scope, asking, run

if TYPE_CHECKING:
    from sksd.wire.changes import Changed
    from sksd.wire.messages import Accept, EnvironmentFile


@click.group("env", epilog="Example: sksd env create lab train --require 'numpy>=2' --file environment.yml")
def command() -> None:
    """Make, change, copy, describe and remove environments of a host.

    NAME is a name that `sksd envs HOST` lists, or an absolute path there. A change is whole or not at all: Ctrl-C
    undoes it.
    """


_name = click.argument("name", shell_complete=names.complete_all_environments)
_dry_run = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
_pip = click.option("--pip", metavar="REQ", multiple=True, help="Install this with pip; may be given again.")
_channels = click.option(
    "--channel", "channels", metavar="CHANNEL", multiple=True,
    help="Take packages from here instead of the channels in .condarc there; may be given again.",
)  # fmt: skip


def _do(output: Output, access: options.Access, wish: Any, done: Callable[[Changed, str], None]) -> None:
    """Ask for `wish`; `done` is called with the answer and the host's name."""

    async def body(scope: Scope) -> tuple[Changed, str]:
        from sksd.cli.access import session_on
        from sksd.cli.progress import change

        async with session_on(scope, access) as session:
            return await change(scope, session, wish), session.route.name

    changed, host = run(output, body)
    from sksd.wire.messages import plain

    output.document(plain(changed))
    if getattr(wish, "dry_run", False):
        from sksd.cli.progress import show_plan

        show_plan(output, changed.plan)
    else:
        done(changed, host)


def _said(output: Output, what: str) -> Callable[[Changed, str], None]:
    def say(changed: Changed, host: str) -> None:
        if changed.changed:
            output.say(f"{what} {changed.name} ({changed.prefix}) on {host}.")
        else:
            output.say(f"Nothing had to be changed in {changed.name} ({changed.prefix}) on {host}.")

    return say


@command.command(
    "create", epilog="Example: sksd env create lab train --require 'python=3.12' --require 'numpy>=2'"
)
@options.host
@_name
@options.required
@_pip
@options.kernels
@click.option("--no-kernel", is_flag=True, help="Without the kernel that it gets otherwise.")
@_channels
@_dry_run
@options.on_host
@click.pass_obj
def create(
    output: Output,
    access: options.Access,
    name: str,
    requirements: Sequence[str],
    file: EnvironmentFile | None,
    pip: Sequence[str],
    accepts: Sequence[Accept],
    no_kernel: bool,
    channels: Sequence[str],
    dry_run: bool,
) -> None:
    """Make an environment, with a kernel that works."""
    from sksd.wire.changes import CreateEnvironment

    wish = CreateEnvironment(
        environment=name, specs=list(requirements), pip=list(pip), file=file, accepts=list(accepts),
        kernel=not no_kernel, channels=list(channels), dry_run=dry_run,
    )  # fmt: skip
    _do(output, access, wish, _said(output, "Created"))


@command.command("change", epilog="Example: sksd env change lab train --require 'scipy>=1.14'")
@options.host
@_name
@click.option(
    "--require",
    "requirements",
    metavar="SPEC",
    multiple=True,
    help="Install this conda package, as 'numpy>=2'; may be given again.",
)
@_pip
@click.option("--remove", "removed", metavar="PACKAGE", multiple=True, help="Remove it; may be given again.")
@click.option("--update", "updated", metavar="PACKAGE", multiple=True, help="Update it; may be given again.")
@click.option("--update-all", is_flag=True, help="Update everything.")
@_channels
@_dry_run
@options.on_host
@click.pass_context
def change(
    context: click.Context,
    access: options.Access,
    name: str,
    requirements: Sequence[str],
    pip: Sequence[str],
    removed: Sequence[str],
    updated: Sequence[str],
    update_all: bool,
    channels: Sequence[str],
    dry_run: bool,
) -> None:
    """Install, remove or update packages: one of these at a time."""
    from sksd.wire.changes import ChangeEnvironment

    asked = [bool(requirements or pip), bool(removed), bool(updated or update_all)]
    if sum(asked) != 1 or (updated and update_all):
        raise click.UsageError(
            "Give --require and --pip, or --remove, or --update, or --update-all.", context
        )
    wish = ChangeEnvironment(
        environment=name, change="add" if asked[0] else "remove" if asked[1] else "update",
        specs=[*requirements, *removed, *updated], pip=list(pip), channels=list(channels), dry_run=dry_run,
    )  # fmt: skip
    _do(context.obj, access, wish, _said(context.obj, "Changed"))


@command.command("remove", epilog="Example: sksd env remove lab train")
@options.host
@_name
@click.option("--yes", is_flag=True, help="Do not ask.")
@_dry_run
@options.on_host
@click.pass_context
def remove(context: click.Context, access: options.Access, name: str, yes: bool, dry_run: bool) -> None:
    """Remove a whole environment."""
    from sksd.wire.changes import RemoveEnvironment

    output: Output = context.obj
    if not (yes or dry_run):
        if not sys.stdin.isatty() or output.as_json:
            raise click.UsageError("Give --yes: there is nobody to ask.", context)
        with asking():
            question = f"Remove the environment {name} on {access.host}, with all that is in it?"
            click.confirm(question, abort=True, err=True)
    _do(output, access, RemoveEnvironment(environment=name, dry_run=dry_run), _said(output, "Removed"))


@command.command("clone", epilog="Example: sksd env clone lab train train-2")
@options.host
@_name
@click.argument("new")
@_dry_run
@options.on_host
@click.pass_obj
def clone(output: Output, access: options.Access, name: str, new: str, dry_run: bool) -> None:
    """Make an environment NEW with the packages of NAME."""
    from sksd.wire.changes import CloneEnvironment

    _do(
        output,
        access,
        CloneEnvironment(environment=name, name=new, dry_run=dry_run),
        _said(output, "Created"),
    )


@command.command("rename", epilog="Example: sksd env rename lab train training")
@options.host
@_name
@click.argument("new")
@_dry_run
@options.on_host
@click.pass_obj
def rename(output: Output, access: options.Access, name: str, new: str, dry_run: bool) -> None:
    """Give an environment another name."""
    from sksd.wire.changes import RenameEnvironment

    _do(
        output,
        access,
        RenameEnvironment(environment=name, name=new, dry_run=dry_run),
        _said(output, "Renamed to"),
    )


@command.command("export", epilog="Example: sksd env export lab train > environment.yml")
@options.host
@_name
@click.option(
    "--format",
    "form",
    type=click.Choice(["environment.yml", "explicit", "lock"]),
    show_default=True,
    default="environment.yml",
    help="explicit: a list of URLs; lock: a lock file.",
)
@click.option(
    "--output",
    "-o",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it there (default: stdout).",
)
@options.on_host
@click.pass_context
def export(context: click.Context, access: options.Access, name: str, form: Any, file: Path | None) -> None:
    """Describe an environment, so that it can be made again: `sksd env create --file`."""
    from sksd.wire.changes import ExportEnvironment

    output: Output = context.obj

    def done(changed: Changed, host: str) -> None:
        text = changed.text or ""
        if file is None:
            output.say(text.rstrip("\n"))
            return
        try:
            file.write_text(text, "utf-8")
        except OSError as error:
            raise click.UsageError(f"Cannot write {str(file)!r}: {error.strerror}.", context) from None

    _do(output, access, ExportEnvironment(environment=name, format=form), done)


@command.command("packages", epilog="Example: sksd env packages lab train")
@options.host
@_name
@options.on_host
@click.pass_obj
def packages(output: Output, access: options.Access, name: str) -> None:
    """List what is installed in an environment."""
    from sksd.cli.progress import in_bytes
    from sksd.wire.changes import PackagesQuery

    def done(changed: Changed, host: str) -> None:
        rows = [
            [each.name, each.version, each.build, each.channel, in_bytes(each.size), each.requested]
            for each in changed.packages or ()
        ]
        output.table(("NAME", "VERSION", "BUILD", "CHANNEL", "SIZE", "REQUESTED"), rows)

    _do(output, access, PackagesQuery(environment=name), done)


@command.command("repair", epilog="Example: sksd env repair lab")
@options.host
@click.argument("name", default="", metavar="[NAME]", shell_complete=names.complete_all_environments)
@options.on_host
@click.pass_obj
def repair(output: Output, access: options.Access, name: str) -> None:
    """Finish or undo changes that were killed half way; of all environments where NAME is left out."""
    from sksd.wire.changes import RepairEnvironments

    def done(changed: Changed, host: str) -> None:
        output.say(f"Repaired on {host}." if changed.changed else f"There is nothing to repair on {host}.")

    _do(output, access, RepairEnvironments(environment=name), done)
