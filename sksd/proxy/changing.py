"""Changes of environments: from what a client asked to the job of a worker, and back (docs/environments.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from twisted.internet import defer

from sksd import paths
from sksd.conda import messages as conda
from sksd.errors import BadName, NotAllowed, NotAnEnvironment, WorkerFailed
from sksd.proxy.catalogue import Catalogue
from sksd.proxy.environments import Listed, hidden
from sksd.proxy.kernels import kernel_spec
from sksd.proxy.prefixes import CONDA, PIXI
from sksd.proxy.requirements import Requirement
from sksd.proxy.workers import Told, Workers, repaired
from sksd.wire import changes
from sksd.wire.messages import Accept, SpinUp

#: What conda takes as the name of an environment, and the shell as one word.
_NAME: Final = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}$")
#: What change may ask of a worker.
_OPERATIONS: Final[dict[str, conda.Operation]] = {
    "add": "add",
    "remove": "remove_packages",
    "update": "update",
}


def pending() -> Path:
    """Where workers note what they have begun; a note that is left over needs a repair."""
    return paths.state() / "environments" / "pending"


class Changes:
    """`changed` is called after each change; `in_use(prefix)`: ids of the engines that run there."""

    def __init__(
        self,
        catalogue: Catalogue,
        workers: Workers,
        changed: Callable[[], None],
        in_use: Callable[[str], Sequence[str]],
    ) -> None:
        #: For calls that may lead to a change, as `Workers.named`.
        self.named = workers.named
        self._catalogue = catalogue
        self._workers = workers
        self._changed = changed
        self._in_use = in_use

    def repair_at_start(self) -> None:
        """Called once, when the proxy starts: finish or undo what was killed together with an earlier one."""
        if any(pending().glob("*.json")):
            defer.ensureDeferred(repaired(self._workers, self._job("repair")))

    def cancel(self, wish: changes.CancelTask) -> None:
        """Undo and end a change that is under way or waits. Raises NoSuchTask."""
        self._workers.cancel(wish.task)

    async def change(self, wish: changes.Change | changes.RepairEnvironments, told: Told) -> changes.Changed:
        """One of the requests of `sksd.wire.changes`. Raises what finding an environment raises, NotAllowed,
        NotAnEnvironment, and the errors of a worker."""
        with self._workers.named(wish.task):
            job = await self._job_of(wish)
            return await self._run(job, told, wish.task)

    async def _job_of(self, wish: changes.Change | changes.RepairEnvironments) -> conda.Job:
        match wish:
            case changes.CreateEnvironment():
                job = self._creation(wish)
            case changes.ChangeEnvironment():
                found = await self._found(wish.environment)
                operation = _OPERATIONS[wish.change]
                job = self._job(operation, found, specs=wish.specs, pip=wish.pip, channels=wish.channels)
            case changes.RemoveEnvironment():
                found = await self._found(wish.environment, broken=True)
                self._check_unused(found)
                job = self._job("remove", found)
            case changes.CloneEnvironment():
                rename = isinstance(wish, changes.RenameEnvironment)
                found = await self._found(wish.environment, changing=rename)
                if rename:
                    self._check_unused(found)
                self._check_may()
                job = self._job(
                    "rename" if rename else "clone", source=found.prefix.path, **self._new(wish.name)
                )
            case changes.ExportEnvironment():
                found = await self._found(wish.environment, changing=False)
                job = self._job("export", found, format=wish.format)
            case changes.PackagesQuery():
                job = self._job("packages", await self._found(wish.environment, changing=False))
            case changes.RepairEnvironments():
                place = wish.environment if os.path.isabs(wish.environment) else ""
                job = self._job("repair", prefix=place, name="" if place else wish.environment)
            case _:
                raise TypeError(wish)
        if isinstance(wish, changes.Change):
            job.dry_run = wish.dry_run
        return job

    async def create(self, wish: SpinUp, told: Told) -> changes.Changed:
        """The environment that spin_up did not find."""
        creation = changes.CreateEnvironment(
            environment=wish.environment, specs=wish.requirements, file=wish.file, accepts=wish.accepts
        )
        return await self._run(self._creation(creation), told, wish.task)

    async def mend(
        self, found: Listed, wish: SpinUp, required: Sequence[Requirement], kernel: bool, told: Told
    ) -> changes.Changed:
        """Change `found` so that `required` are met, and it has a kernel (where `kernel` says that it lacks one).
        Those that are met already go along, for the solve must not break them."""
        self._check_change(found)
        specs = [each.text for each in required if not each.pip]
        if kernel:
            spec, bounds = kernel_spec(wish.accepts)
            specs += [spec, *bounds]
        pip = [each.text for each in required if each.pip]
        return await self._run(self._job("add", found, specs=specs, pip=pip), told, wish.task)

    # -- jobs -------------------------------------------------------------------------------------------------------

    def _job(self, operation: conda.Operation, found: Listed | None = None, **more: Any) -> conda.Job:
        settings = self._catalogue.settings
        if found is not None:
            more |= {"prefix": found.prefix.path, "name": found.name}
        return conda.Job(
            operation=operation,
            backend=settings.backend,
            executable=settings.backend_executable,
            host=conda.HostSettings(
                channels=settings.channels, allow_channels=settings.allow_channels, offline=settings.offline
            ),
            **more,
        )

    def _creation(self, wish: changes.CreateEnvironment) -> conda.Job:
        self._check_may()
        file = None if wish.file is None else conda.File(format=wish.file.format, text=wish.file.text)
        return self._job(
            "create" if file is None else "import",
            **self._new(wish.environment),
            specs=wish.specs,
            pip=wish.pip,
            file=file,
            kernel=_kernel(wish.accepts) if wish.kernel else None,
            channels=wish.channels,
        )

    def _new(self, name: str) -> dict[str, Any]:
        """Where a new environment goes: `prefix` and `name` of a job."""
        if os.path.isabs(name):
            prefix = os.path.normpath(name)
            return {"prefix": prefix, "name": os.path.basename(prefix)}
        if "/" in name:
            raise BadName(name=name, problem="a name has no / in it, and a path must be absolute")
        if not _NAME.match(name):
            raise BadName(name=name, problem="a name is made of letters, digits, and . _ + - within it")
        if hidden(name, self._catalogue.settings.exclude):
            raise NotAllowed(problem=f"{name} would be excluded (exclude_environments)")
        return {"name": name}

    async def _found(self, text: str, *, changing: bool = True, broken: bool = False) -> Listed:
        found = await self._catalogue.find(text, broken=broken)
        if changing:
            self._check_change(found)
        self._check_conda(found)
        return found

    def _check_change(self, found: Listed) -> None:
        self._check_may()
        if found.own:
            raise NotAllowed(problem=f"sksd itself runs in {found.name}")
        self._check_conda(found)

    def _check_may(self) -> None:
        if not self._catalogue.settings.may_create:
            raise NotAllowed(problem="its configuration lets nobody make or change environments (may_create)")

    def _check_conda(self, found: Listed) -> None:
        if found.prefix.kind not in (CONDA, PIXI):
            python = found.prefix.python or "python"
            problem = f"it is a {found.prefix.kind}: `{python} -m pip` changes it"
            raise NotAnEnvironment(prefix=found.prefix.path, name=found.name, problem=problem)

    def _check_unused(self, found: Listed) -> None:
        engines = self._in_use(found.prefix.path)
        if engines:
            problem = f"engine {engines[0]} runs in {found.name}; stop it first"
            raise NotAllowed(problem=problem)

    async def _run(self, job: conda.Job, told: Told, task: str) -> changes.Changed:
        keeping = _Keeping(told)
        try:
            done = await self._workers.run(job, keeping, task)
        except WorkerFailed:
            # It was killed half way: nobody else may know what it left.
            prefix, name = job.prefix, job.name
            await repaired(self._workers, self._job("repair", prefix=prefix, name=name))
            raise
        finally:
            if not job.dry_run and job.operation not in ("export", "packages"):
                self._changed()
        return changes.Changed(
            name=done.name,
            prefix=done.prefix,
            changed=done.changed,
            plan=keeping.kept,
            packages=None
            if done.packages is None
            else [msgspec.convert(each, changes.Package, from_attributes=True) for each in done.packages],
            text=done.text,
            notes=done.notes,
        )


class _Keeping:
    """Keeps the plan while it goes by."""

    def __init__(self, told: Told) -> None:
        self.kept: changes.Plan | None = None
        self.progress = told.progress
        self._told = told

    def plan(self, event: changes.Plan) -> None:
        """Called by the worker's edge."""
        self.kept = event
        self._told.plan(event)


def _kernel(accepts: Sequence[Accept]) -> conda.Kernel:
    spec, bounds = kernel_spec(accepts)
    return conda.Kernel(spec=spec, bounds=list(bounds))
