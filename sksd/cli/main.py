"""`sksd`: the commands, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click

from sksd import __version__
from sksd.cli.output import Output
from sksd.errors import DiskFull, SksdError

_COMMANDS = (
    "hosts info login trust envs env run start console engines interrupt restart stop log relay serve completion"
)
#: Wrong use.
_WRONG_USE = 2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Commands(click.Group):
    """Each command is a file of its own in this package, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a person meets them."""
        return _COMMANDS.split()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Called by click."""
        if cmd_name not in _COMMANDS.split():
            return None
        from importlib import import_module

        command: click.Command = import_module(f"sksd.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Called by click; a name with a typing error gets a suggestion."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _COMMANDS.split():
            from difflib import get_close_matches

            close = get_close_matches(name, _COMMANDS.split(), 1)
            hint = f" Do you mean `sksd {close[0]}`?" if close else " `sksd --help` lists what there is."
            raise click.UsageError(f"There is no command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sksd", message="%(prog)s %(version)s")
def cli() -> None:
    """Work on another machine: find it, log in, pick an environment, run code on it.

    HOST is a name that `sksd hosts` lists, ADDRESS[:PORT], or `local`, the daemon on this machine.
    """


def main(arguments: list[str] | None = None) -> None:
    """The entry point; exits."""
    _open_all()
    sys.exit(run(arguments))


def _open_all() -> None:
    """Put /dev/null where stdin, stdout or stderr was closed: a socket would get the number, and what is printed."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, so this one: those below are open by now.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def run(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code. Prints every error, and never a traceback."""
    try:
        return _run(Output(), arguments)
    except BrokenPipeError:
        # Whoever read has enough. The interpreter would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _run(output: Output, arguments: list[str] | None) -> int:
    from sksd.cli.running import Stopped

    try:
        code = cli.main(arguments, "sksd", standalone_mode=False, obj=output)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SksdError as error:
        return _failed(output, error)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        # The mistake may stand before --json, or be in the command's name.
        output.as_json = output.as_json or "--json" in (sys.argv[1:] if arguments is None else arguments)
        return _wrong(output, error)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Stopped as error:
        return error.exit_code
    except (BrokenPipeError, SystemExit):
        raise
    except OSError as error:
        if error.errno not in _NO_ROOM:
            return _bug(output, error)
        # What is left of the output would fail once more, when the interpreter flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _failed(output, DiskFull(host="this machine", path=str(error.filename or "stdout")))
    except BaseException as error:
        return _bug(output, error)


def _failed(output: Output, error: SksdError) -> int:
    output.failed(str(error), {"code": error.code, "message": str(error), "fields": dict(error.fields)})
    return error.exit_code


def _wrong(output: Output, error: click.ClickException) -> int:
    message = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(message, flush=True)  # noqa: T201
        return _WRONG_USE
    output.document({"error": {"code": "usage", "message": message, "fields": {}}})
    context = getattr(error, "ctx", None)
    if context is not None:
        print(context.get_usage(), file=sys.stderr)  # noqa: T201
    print(f"sksd: {message}", file=sys.stderr)  # noqa: T201
    return _WRONG_USE


def _bug(output: Output, error: BaseException) -> int:
    import datetime
    import traceback

    from sksd import paths

    where = ""
    try:
        log = paths.private(paths.state()) / "client.log"
        with open(log, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(f"{datetime.datetime.now(datetime.UTC).isoformat()} {sys.argv!r}\n")
            file.writelines(traceback.format_exception(error))
        where = f"; {log} tells more"
    except (OSError, SksdError):
        pass
    sentence = f"Something went wrong inside sksd ({type(error).__name__}: {error}){where}."
    output.failed(sentence, {"code": "error", "message": sentence, "fields": {}})
    return 1
