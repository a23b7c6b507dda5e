"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from sksd.cli import names
from sksd.cli.output import Output

if TYPE_CHECKING:
    from sksd.wire.messages import Accept

Command = Callable[..., Any]


@attrs.frozen
class Access:
    """Which host, and as whom: what the shared options say."""

    host: str
    user: str | None
    password_stdin: bool
    guest: bool
    accept_new: bool
    ca: Path | None
    timeout: float


def _json(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    output = context.find_object(Output)
    if value and output is not None:
        output.as_json = True
    return value


def as_json(command: Command) -> Command:
    """--json, which Output learns of."""
    return click.option(
        "--json", "as_json", is_flag=True, expose_value=False, is_eager=True, callback=_json,
        help="Print one JSON document.",
    )(command)  # fmt: skip


def host(command: Command) -> Command:
    """HOST, the first of the arguments."""
    return click.argument("host", shell_complete=names.complete_hosts)(command)


def on_host(command: Command) -> Command:
    """The options of every command that logs in; with HOST they become the command's first argument, an `Access`."""

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        access = Access(**{field.name: given.pop(field.name) for field in attrs.fields(Access)})
        return command(access, **given)

    with_access: Command = call
    for decorate in (
        as_json,
        click.option("--timeout", metavar="S", type=click.FloatRange(0, 3600, min_open=True), default=30.0,
                     show_default=True, help="Seconds the host has to answer, each time it is asked."),
        click.option("--ca", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="Trust certificates from this CA (PEM) instead of remembered ones."),
        click.option("--accept-new", is_flag=True, help="Trust and remember an unknown certificate."),
        click.option("--guest", is_flag=True, help="Log in as a guest."),
        click.option("--password-stdin", is_flag=True, help="Read the password from the first line of stdin."),
        click.option("--user", metavar="U", help="Account on the host (default: your name here)."),
    ):  # fmt: skip
        with_access = decorate(with_access)
    return with_access


class Range(click.ParamType):
    """A range of spyder-kernels: `>=3.1,<3.2`. Converts to the list of Accept that the host is asked for."""

    name = "range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Accept]:
        """Called by click."""
        if not isinstance(value, str):
            return list(value)
        from packaging.version import InvalidVersion, Version

        from sksd.wire.messages import Accept

        bounds: dict[str, str] = {}
        for part in value.split(","):
            clean = part.strip()
            sign = clean[:2] if clean[:2] in (">=", "==") else clean[:1]
            version = clean[len(sign) :].strip()
            if sign not in (">=", "<") or sign in bounds:
                self.fail(f"{value!r} is not a range as '>=3.1,<3.2'", param, ctx)
            try:
                Version(version)
            except InvalidVersion:
                self.fail(f"{version!r} is not a version", param, ctx)
            bounds[sign] = version
        return [Accept(package="spyder-kernels", low=bounds.get(">="), high=bounds.get("<"))]


def kernels(command: Command) -> Command:
    """--kernels RANGE, as `accepts`."""
    return click.option(
        "--kernels", "accepts", metavar="RANGE", type=Range(), default=(),
        help="Versions of spyder-kernels that will do, as '>=3.1,<3.2' (default: any kernel).",
    )(command)  # fmt: skip


def _variables(context: click.Context, parameter: click.Parameter, value: Sequence[str]) -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for each in value:
        name, sign, content = each.partition("=")
        if not name or not sign or "\0" in each:
            raise click.BadParameter(f"{each!r} is not NAME=VALUE.", context, parameter)
        result[name] = content
    return result


def starting(command: Command) -> Command:
    """Options of every command that starts an engine: `accepts`, `cwd`, `variables`, `start_timeout`."""
    for decorate in (
        click.option("--start-timeout", metavar="S", type=click.FloatRange(0, 3600, min_open=True), default=60.0,
                     show_default=True, help="Seconds the kernel has to start."),
        kernels,
        click.option("--env", "variables", metavar="NAME=VALUE", multiple=True, callback=_variables,
                     help="Set an environment variable; may be given again."),
        click.option("--cwd", metavar="FOLDER", help="Folder on the host to start in (default: your home)."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def figures(command: Command) -> Command:
    """--figures FOLDER."""
    return click.option(
        "--figures", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path),
        help="Save pictures there, as figure-1.png and so on.",
    )(command)  # fmt: skip


def engine(command: Command) -> Command:
    """--engine ID."""
    return click.option(
        "--engine", metavar="ID", shell_complete=names.complete_engines,
        help="Use an engine that runs, and leave it running; the beginning of its id will do.",
    )(command)  # fmt: skip


def environment(required: bool) -> Callable[[Command], Command]:
    """ENV."""
    return click.argument(
        "environment", metavar="ENV" if required else "[ENV]", required=required,
        shell_complete=names.complete_environments,
    )  # fmt: skip
