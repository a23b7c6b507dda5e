"""Names for tab completion: what hosts answered lately, in a file that may be thrown away at any time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sksd import paths

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HOSTS: Final = "hosts"
ENVIRONMENTS: Final = "environments"
#: Those without a kernel that fits, too.
ALL_ENVIRONMENTS: Final = "all environments"
ENGINES: Final = "engines"
#: Names of one kind that are kept for one host.
_MOST: Final = 500
#: Seconds that the daemon of this machine has to answer while a person waits behind the Tab key.
_LIVE: Final = 1.0


def _file() -> Path:
    return paths.cache() / "names.json"


def _read() -> dict[str, dict[str, list[str]]]:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(_file().read_text("utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def keep(kind: str, host: str, found: Iterable[str]) -> None:
    """Remember the names of one kind that `host` (its key; empty for HOSTS) has just answered."""
    content = _read()
    content.setdefault(kind, {})[host] = list(found)[:_MOST]
    with contextlib.suppress(Exception):
        paths.private(_file().parent)
        paths.write_private(_file(), json.dumps(content).encode())


def _kept(kind: str, host: str) -> list[str]:
    with contextlib.suppress(Exception):
        return [str(name) for name in _read().get(kind, {}).get(host, [])]
    return []


def _beginning(found: Iterable[str], begin: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    distinct = dict.fromkeys(name for name in found if name.casefold().startswith(begin.casefold()))
    return [CompletionItem(name) for name in distinct]


def complete_hosts(context: click.Context, parameter: click.Parameter, begin: str) -> list[CompletionItem]:
    """`local`, known hosts, and hosts seen lately."""
    known: list[str] = []
    with contextlib.suppress(Exception):
        content = json.loads((paths.state() / "known_hosts.json").read_text("utf-8"))
        known = list(content["hosts"])
    seen = _kept(HOSTS, "")
    seen_keys = {name.casefold() for name in seen}
    return _beginning(["local", *seen, *(name for name in known if name not in seen_keys)], begin)


def complete_environments(
    context: click.Context, parameter: click.Parameter, begin: str
) -> list[CompletionItem]:
    """Environments of the HOST before it."""
    return _beginning(_of_host(context, ENVIRONMENTS), begin)


def complete_all_environments(
    context: click.Context, parameter: click.Parameter, begin: str
) -> list[CompletionItem]:
    """Environments of the HOST before it, those without a kernel, too."""
    return _beginning(_of_host(context, ALL_ENVIRONMENTS), begin)


def complete_engines(context: click.Context, parameter: click.Parameter, begin: str) -> list[CompletionItem]:
    """Engines of the HOST before it."""
    return _beginning(_of_host(context, ENGINES), begin)


def complete_program(context: click.Context, parameter: click.Parameter, begin: str) -> list[CompletionItem]:
    """What `sksd run` takes behind HOST: an environment, then a file."""
    from click.shell_completion import CompletionItem

    if context.params.get("words") or context.params.get("engine"):
        return [CompletionItem(begin, type="file")]
    return complete_environments(context, parameter, begin)


def _of_host(context: click.Context, kind: str) -> list[str]:
    host = str(context.params.get("host") or "").strip().rstrip(".").casefold()
    if host == "local":
        with contextlib.suppress(BaseException):
            return _live(kind)
    return _kept(kind, host)


def _live(kind: str) -> list[str]:
    from sksd.cli import running
    from sksd.cli.access import session_on
    from sksd.cli.options import Access
    from sksd.cli.output import Output

    access = Access("local", None, False, False, False, None, _LIVE)

    async def body(scope: running.Scope) -> list[str]:
        async with session_on(scope, access) as session:
            found: list[Any]
            if kind == ENGINES:
                found = await session.engines()
                return [engine.id for engine in found]
            found = await session.environments()
            return [each.name for each in found if each.fits or kind == ALL_ENVIRONMENTS]

    return running.run(Output(), body)
