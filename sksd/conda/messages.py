"""What the process that changes an environment reads and writes: one `Job` in, `Event`s out.

The proxy starts `python -P -m sksd.conda` as the user, in the user's login environment and a session of its own,
writes one job as JSON to its stdin and closes it. On stdout comes an event a line, JSON; the last one is a `Done`
or a `Failed`, and only a process that was killed ends without. Exit code: 0 done, 1 failed, 2 the job could not be
read. SIGTERM cancels: the change is undone, then comes a `Failed` with the code `cancelled`. Nothing is on stderr but
what a library may say there.

This module imports no rattler, so that the proxy can have it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from sksd.errors import Field
from sksd.wire.messages import Path, Request

#: Bytes of a job; a lock file of a large environment has 300 kB.
LARGEST_JOB: Final = 16 * 1024 * 1024

Operation: TypeAlias = Literal[
    "create",
    "add",
    "remove_packages",
    "update",
    "clone",
    "rename",
    "remove",
    "export",
    "packages",
    "import",
    "repair",
]
Format: TypeAlias = Literal["environment.yml", "explicit", "lock", "requirements.txt"]
BackendName: TypeAlias = Literal["rattler", "conda", "mamba", "micromamba", "pixi"]
Step: TypeAlias = Literal[
    "waiting", "reading", "solving", "downloading", "linking", "unlinking", "pip", "undoing", "registering"
]
ActionName: TypeAlias = Literal["install", "remove", "upgrade", "downgrade", "reinstall"]

#: A conda MatchSpec or a pip requirement: one line.
Spec = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[^\x00\r\n]*$")]
Specs = Annotated[list[Spec], Meta(max_length=5000)]
Name = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00\r\n]*$")]


class File(Request):
    """A description of an environment, and its format: `environment.yml`, `explicit` (`@EXPLICIT` and URLs), `lock`
    (rattler's and pixi's lock file, or conda-lock.yml) or `requirements.txt`."""

    format: Format
    text: Annotated[str, Meta(max_length=LARGEST_JOB)]


class Kernel(Request):
    """The kernel package that a made environment gets, unless the specs name one of the same name.

    `spec`: as `spyder-kernels >=3.1.0,<3.2.0`; `bounds`: specs that hold if their package comes along, as
    `ipython <9.18` (a constraint: it installs nothing).
    """

    spec: Spec
    bounds: Specs = []


class HostSettings(Request):
    """What the administrator's configuration says; it goes before the person's own settings.

    `channels`: used instead of theirs; `allow_channels`: names or URLs, others are refused (empty: all);
    `envs_dirs`, `pkgs_dirs`: go before theirs; `offline`: no network whatever they say.
    """

    channels: Specs = []
    allow_channels: Specs = []
    envs_dirs: list[Path] = []
    pkgs_dirs: list[Path] = []
    offline: bool = False


class Job(Request):
    """One change.

    `prefix`: absolute; or empty, and `name` says it: a plain name, which for `create`, `clone`, `import` and `rename`
    goes into the first `envs_dirs` that can be written (else `~/.conda/envs`), and for the others is looked for in
    all of them. An absolute path as `name` is taken as the prefix.

    | operation | needs | does |
    |---|---|---|
    | create | `specs`, `pip`, `kernel` | a new environment |
    | add | `specs`, `pip` | install, changing as little else as possible |
    | remove_packages | `specs`: names | remove them, and what only they needed |
    | update | `specs`: names or specs; empty: all | the newest that is allowed |
    | clone | `source` | the same packages, in a new prefix |
    | rename | `source` | clone, then remove the source |
    | remove | | the whole environment |
    | export | `format` | `Done.text` |
    | packages | | `Done.packages` |
    | import | `file`, and `specs`, `pip`, `kernel` beside it | a new environment from a file |
    | repair | maybe `prefix` | finish or undo what a killed worker left; without a prefix, all of this person's |

    `dry_run`: a `Plan`, and nothing is changed. `channels`: instead of those of .condarc (names or URLs). `registry`:
    conda's list of environments; empty: `~/.conda/environments.txt`. `executable`: of a backend other than rattler,
    absolute, or a name to be found on PATH; empty: the backend's own name.
    """

    operation: Operation
    prefix: Name = ""
    name: Name = ""
    specs: Specs = []
    pip: Specs = []
    file: File | None = None
    format: Format = "environment.yml"
    source: Name = ""
    kernel: Kernel | None = None
    dry_run: bool = False
    backend: BackendName = "rattler"
    executable: Name = ""
    channels: Specs = []
    offline: bool = False
    host: HostSettings = msgspec.field(default_factory=HostSettings)
    registry: Name = ""


class _Out(msgspec.Struct, kw_only=True, tag_field="event", omit_defaults=True):
    """Base of the events: a field of a newer version is ignored."""


class Progress(_Out, tag="progress"):
    """How far it is: at most ten a second of one `step`. `message` is a sentence.

    `done` of `total` things (packages); `bytes` of `total_bytes`, `speed` in bytes a second; None: not known.
    """

    step: Step
    message: str
    done: int | None = None
    total: int | None = None
    bytes: int | None = None
    total_bytes: int | None = None
    speed: int | None = None


class Action(msgspec.Struct, kw_only=True):
    """One package of a plan. `version` and `build` are what will be there (for a removal: what is there now);
    `old_version` what an upgrade, downgrade or reinstall replaces. `size`: bytes to download, if it is known.
    `channel`: its URL or name, without secrets; `pypi` for what pip installs."""

    action: ActionName
    name: str
    version: str = ""
    build: str = ""
    channel: str = ""
    size: int | None = None
    old_version: str = ""


class Plan(_Out, tag="plan"):
    """What will be changed; comes once, after the solve. `download_bytes`: of what is not in the package cache."""

    actions: list[Action]
    download_bytes: int = 0


class Package(msgspec.Struct, kw_only=True):
    """One package of an environment; `channel` is `pypi` for what pip installed. `requested`: the spec that a person
    asked for it with, else empty."""

    name: str
    version: str
    build: str = ""
    channel: str = ""
    size: int | None = None
    requested: str = ""


class Done(_Out, tag="done"):
    """The change is made. `changed` is False where there was nothing to do, and for `dry_run`, `export` and
    `packages`. `notes`: sentences that a person should read (what a repair did, what an export leaves out)."""

    prefix: str
    name: str
    changed: bool = False
    packages: list[Package] | None = None
    text: str | None = None
    notes: list[str] = []


class Failed(_Out, tag="error"):
    """The change is not made: an error of sksd.errors (`from_code(code, message, fields)`), whose sentence says what
    was undone."""

    code: str
    message: str
    fields: dict[str, Field] = {}


Event: TypeAlias = Progress | Plan | Done | Failed

_event: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Event)


def read_event(line: bytes) -> Event:
    """One line of a worker's stdout; raises msgspec.MsgspecError where it is none."""
    event: Event = _event.decode(line)
    return event
