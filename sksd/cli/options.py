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
from sksd.errors import SksdError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sksd.wire.messages import Accept, EnvironmentFile

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
    client_certificate: Path | None = None
    client_key: Path | None = None
    ssh_key: Path | None = None

    @property
    def client(self) -> tuple[Path, Path] | None:
        """The client's certificate and its key, which may stand in the same file."""
        if self.client_certificate is None:
            return None
        return self.client_certificate, self.client_key or self.client_certificate


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def own_certificate(command: Command) -> Command:
    """--client-certificate and --client-key."""
    for decorate in (
        click.option("--client-key", metavar="FILE", type=_FILE, envvar="SKSD_CLIENT_KEY",
                     help="The key of it, where it is not in the same file (or $SKSD_CLIENT_KEY)."),
        click.option("--client-certificate", metavar="FILE", type=_FILE, envvar="SKSD_CLIENT_CERTIFICATE",
                     help="Your own certificate, PEM, for a host that asks for one (or $SKSD_CLIENT_CERTIFICATE)."),
    ):  # fmt: skip
        command = decorate(command)
    return command


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
        own_certificate,
        click.option("--ca", metavar="FILE", type=_FILE,
                     help="Trust certificates from this CA (PEM) instead of remembered ones."),
        click.option("--accept-new", is_flag=True, help="Trust and remember an unknown certificate."),
        click.option("--guest", is_flag=True, help="Log in as a guest (or as that of $SKSD_GUEST)."),
        click.option("--password-stdin", is_flag=True, help="Read the password from the first line of stdin."),
        click.option("--ssh-key", metavar="FILE", type=_FILE, help="Log in with this SSH key (else: your agent's)."),
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


class File(click.ParamType):
    """A file that describes an environment. Converts to its text and its format, told from its name and text."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> EnvironmentFile:
        """Called by click."""
        from sksd.wire.messages import EnvironmentFile, plain, read

        if isinstance(value, EnvironmentFile):
            return value
        path = Path(value)
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self.fail(f"{value!r} cannot be read: {problem}.", param, ctx)
        name = path.name.lower()
        if "@EXPLICIT" in text:
            form = "explicit"
        elif name.endswith(".lock") or "lock" in path.stem.lower():
            form = "lock"
        elif name.endswith((".yml", ".yaml")):
            form = "environment.yml"
        elif name.endswith((".txt", ".in")):
            form = "requirements.txt"
        else:
            known = "environment.yml, requirements.txt, an explicit list, a lock file"
            self.fail(f"{value!r} is none of {known}.", param, ctx)
        file = EnvironmentFile(format=form, text=text)  # type: ignore[arg-type]
        try:
            return read(EnvironmentFile, plain(file))
        except SksdError:
            self.fail(f"{value!r} is too large.", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Called by click: a file."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


def required(command: Command) -> Command:
    """What an environment has to have: `requirements`, `file`."""
    for decorate in (
        click.option("--file", metavar="FILE", type=File(),
                     help="What stands in an environment.yml, requirements.txt, explicit list or lock file."),
        click.option("--require", "requirements", metavar="SPEC", multiple=True,
                     help="A conda package that it has to have, as 'numpy>=2'; may be given again."),
    ):  # fmt: skip
        command = decorate(command)
    return command


@attrs.frozen
class Needs:
    """What the environment of a kernel has to have, and whether it may be made or changed for that."""

    requirements: Sequence[str] = ()
    file: EnvironmentFile | None = None
    create: bool = False
    mend: bool = False


def needing(command: Command) -> Command:
    """Options of commands that start an engine in an environment that has to meet something; they become `needs`."""

    @functools.wraps(command)
    def call(*positional: Any, **given: Any) -> Any:
        needs = Needs(**{field.name: given.pop(field.name) for field in attrs.fields(Needs)})
        return command(*positional, needs=needs, **given)

    with_needs: Command = required(call)
    for decorate in (
        click.option("--mend", is_flag=True, help="Change the environment if it lacks something."),
        click.option("--create", is_flag=True, help="Make it from --require and --file if there is none."),
    ):
        with_needs = decorate(with_needs)
    return with_needs
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
