"""Changing environments over the wire: what is asked, and what comes back (docs/protocol.md, "Environments")."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Final, Literal

from msgspec import Meta
from twisted.spread import pb

from sksd.wire import messages
from sksd.wire.broker import Remote
from sksd.wire.messages import Accepts, Answer, EnvironmentFile, Request, Specs, TaskId

#: Seconds that one change may take: a solve, gigabytes to download, pip.
CHANGE_LIMIT: Final = 7200.0

#: A name of the listing, or an absolute prefix.
Environment = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00\r\n]*$")]


class Change(Request, kw_only=True):
    """Base of all of them. `environment`: a name of the listing or an absolute prefix; `task`: what `cancel` calls
    it; `dry_run`: the plan, and nothing is changed."""

    environment: Environment
    task: TaskId = ""
    dry_run: bool = False


class CreateEnvironment(Change):
    """A new environment of `specs` (conda), `pip`, and what `file` says. A plain name goes where conda would put it.

    `kernel`: it gets the first kernel of `accepts`, unless the specs or the file have one. `channels`: instead of
    those that the person's .condarc names.
    """

    specs: Specs = []
    pip: Specs = []
    file: EnvironmentFile | None = None
    accepts: Accepts = []
    kernel: bool = True
    channels: Specs = []


class ChangeEnvironment(Change, kw_only=True):
    """`add`: install `specs` and `pip`; `remove`: the packages named in `specs`; `update`: those, or all when there
    are none."""

    change: Literal["add", "remove", "update"]
    specs: Specs = []
    pip: Specs = []
    channels: Specs = []


class RemoveEnvironment(Change):
    """The whole of it."""


class CloneEnvironment(Change, kw_only=True):
    """The same packages once more, as `name` (or at an absolute prefix)."""

    name: Environment


class RenameEnvironment(CloneEnvironment):
    """From then on it is `name`; engines that run in it are not stopped."""


class ExportEnvironment(Change):
    """Its description as `Changed.text`."""

    format: Literal["environment.yml", "explicit", "lock"] = "environment.yml"


class PackagesQuery(Change):
    """What is installed, as `Changed.packages`."""


class RepairEnvironments(Request):
    """Finish or undo what a killed change has left; `environment` empty: all of this person's."""

    environment: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00\r\n]*$")] = ""
    task: TaskId = ""


class CancelTask(Request):
    """Undo the change `task` and end it; its own call answers with the error `cancelled` once that is done."""

    task: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}$")]


class Action(Answer):
    """One package of a plan. `action`: install, remove, upgrade, downgrade or reinstall. `old_version`: what it
    replaces; `size`: bytes to download, where known; `channel`: `pypi` for what pip installs."""

    action: str
    name: str
    version: str = ""
    build: str = ""
    channel: str = ""
    size: int | None = None
    old_version: str = ""


class Plan(Answer):
    """What a change will do; an observer is told it before it is done."""

    actions: list[Action]
    download_bytes: int = 0


class Package(Answer):
    """One installed package. `requested`: the spec that a person asked for it with, else empty."""

    name: str
    version: str
    build: str = ""
    channel: str = ""
    size: int | None = None
    requested: str = ""


class Changed(Answer):
    """A change is made. `changed` is False where nothing had to be, and for a dry run. `plan`: what was done, or
    would be; `notes`: sentences for the person."""

    name: str
    prefix: str
    changed: bool = False
    plan: Plan | None = None
    packages: list[Package] | None = None
    text: str | None = None
    notes: list[str] = []


#: The calls of an avatar and of a proxy that change environments, or ask a worker about them, and their requests.
CALLS: Final[dict[str, type[Request]]] = {
    "create_environment": CreateEnvironment,
    "change_environment": ChangeEnvironment,
    "remove_environment": RemoveEnvironment,
    "clone_environment": CloneEnvironment,
    "rename_environment": RenameEnvironment,
    "export_environment": ExportEnvironment,
    "packages": PackagesQuery,
    "repair_environments": RepairEnvironments,
}


def call_of(wish: Request) -> str:
    """The call of CALLS that takes `wish`."""
    return next(call for call, shape in CALLS.items() if type(wish) is shape)


class Changing(Remote):
    """Has a `remote_` method for each of CALLS, as an avatar and a proxy both have them: each takes its request, and
    maybe an observer whose `progress(Progress)` and `plan(Plan)` are called meanwhile."""

    @abstractmethod
    async def change(self, call: str, wish: Any, observer: pb.RemoteReference | None) -> Changed:
        """`wish` is of the shape that CALLS has for `call`."""


def _remote(call: str, shape: type[Request]) -> Any:
    async def remote(
        self: Changing, request: dict[str, Any], observer: pb.RemoteReference | None = None
    ) -> Changed:
        return await self.change(call, messages.read(shape, request), observer)

    return remote


for _call, _shape in CALLS.items():
    setattr(Changing, f"remote_{_call}", _remote(_call, _shape))
