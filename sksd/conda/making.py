"""Environments that are made: created, imported, cloned; and their end."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import rattler

from sksd.conda import files, history, locks, places, records, registry
from sksd.conda.files import Description
from sksd.conda.messages import Done, Kernel
from sksd.conda.pending import Note
from sksd.conda.undo import erase
from sksd.conda.work import Work, by_name
from sksd.errors import BadRequest

#: A larger file is not looked through for the prefix's path.
_LARGEST_TEXT = 8 * 1024 * 1024


def described(work: Work) -> tuple[Description, list[rattler.RepoDataRecord] | None]:
    """What a creation or an import is to make; the records where a lock file names them. Raises BadFile."""
    job = work.job
    if job.operation == "create":
        return Description(), None
    if job.file is None:
        raise BadRequest(problem="an import needs a file")
    exact = None
    if job.file.format == "lock":
        exact, pip, channels = locks.read(job.file.text, job.name)
        given = Description(pip=tuple(pip), channels=tuple(channels))
    else:
        read = {
            "environment.yml": files.environment_yml,
            "explicit": files.explicit,
            "requirements.txt": files.requirements_txt,
        }[job.file.format]
        given = read(job.file.text)
    if (exact is not None or given.urls) and job.specs:
        raise BadRequest(problem="this file lists every package: give no specs beside it")
    if given.channels:
        work.sources.use(given.channels)
    if not job.name and not job.prefix:
        job.name = given.name
    return given, exact


async def create(work: Work) -> Done:
    """A new environment, from specs or from a file."""
    job = work.job
    given, exact = described(work)
    prefix = places.new(job.prefix, job.name, work.sources.folders)
    await work.lock(prefix)
    places.refuse_making(prefix)
    pip = [*given.pip, *job.pip]
    if given.urls:
        exact = await work.solver.exactly(given.urls)
    if exact is not None:
        for channel in {str(record.channel) for record in exact if record.channel}:
            work.sources.place(channel)
        after, specs = exact, [record.name.normalized for record in exact]
        miss_kernel(work, specs)
    else:
        specs = wanted([*given.specs, *job.specs], pip, work.sources.settings.create_default_packages, job.kernel)
        bounds = [*work.sources.settings.pinned_packages, *(job.kernel.bounds if job.kernel else ())]
        with_pip = work.sources.settings.add_pip_as_python_dependency
        after = await work.solver.solve(specs, constraints=bounds, pip=with_pip) if specs else []
    plan = await work.solver.plan({}, after, pip)
    work.out.event(plan)
    if job.dry_run:
        return work.done(changed=False)
    work.begin(work.make_note(prefix))
    await work.apply(after, by_name(specs), update=specs, pip=pip)
    if given.variables:
        write_variables(prefix, given.variables)
    work.settle()
    return work.done(changed=True)


def miss_kernel(work: Work, names: Sequence[str]) -> None:
    """Say that a list of packages has no kernel in it."""
    kernel = history.name_of(work.job.kernel.spec) if work.job.kernel else ""
    if kernel and kernel not in names:
        work.notes.append(f"The file has no {kernel}: no console can be started in it.")


def wanted(specs: Sequence[str], pip: Sequence[str], defaults: Sequence[str], kernel: Kernel | None) -> list[str]:
    """The specs of a new environment: what was asked for, what a person always has, a kernel, and what pip needs."""
    found = list(dict.fromkeys(spec.strip() for spec in specs))
    named = set(by_name(found))
    found += [spec for spec in defaults if history.name_of(spec) not in named]
    if kernel is not None and history.name_of(kernel.spec) not in named:
        found.append(kernel.spec)
    if pip:
        found += [each for each in ("python", "pip") if each not in by_name(found)]
    return found


def write_variables(prefix: str, variables: Mapping[str, str]) -> None:
    """Have conda set them on activation."""
    path = Path(prefix, "conda-meta", "state")
    path.write_text(json.dumps({"version": 1, "env_vars": dict(variables)}), encoding="utf-8")


def variables(prefix: str) -> dict[str, str]:
    """The variables that conda sets on activation."""
    try:
        found = json.loads(Path(prefix, "conda-meta", "state").read_text(encoding="utf-8"))["env_vars"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {str(key): str(value) for key, value in found.items()}


async def clone(work: Work) -> Done:
    """The same packages in a new prefix, and with them what no package owns: pip's packages, a person's files."""
    job = work.job
    source, prefix = await work.copied()
    installed = records.read(source)
    meta = Path(source, "conda-meta")
    after = [rattler.PrefixRecord.from_path(meta / f"{each.stem}.json") for each in installed.values()]
    for channel in {each.base for each in installed.values()} - {""}:
        work.sources.place(channel)
    work.out.event(await work.solver.plan({}, after))
    if job.dry_run:
        return work.done(changed=False)
    asked = records.requested(source, installed)
    work.begin(work.make_note(prefix))
    await work.apply(after, asked, update=list(asked.values()))
    work.out.progress("linking", f"Copying what pip and others added to {os.path.basename(source)}.")
    await asyncio.to_thread(copy_rest, source, prefix, {file for each in installed.values() for file in each.files})
    work.settle()
    if job.operation == "rename":
        await erase_all(work, source)
    return work.done(changed=True)


async def remove(work: Work) -> Done:
    """The whole environment."""
    prefix = work.existing()
    await work.lock(prefix)
    places.refuse_changing(prefix, work.name)
    places.refuse_removing(prefix, work.name)
    if work.job.dry_run:
        work.out.event(await work.solver.plan(records.read(prefix), []))
        return work.done(changed=False)
    await erase_all(work, prefix)
    return work.done(changed=True)


async def erase_all(work: Work, prefix: str) -> None:
    """Remove an environment; from here on it is only finished, never cancelled."""
    work.final = True
    work.begin(Note(operation="remove", prefix=prefix, name=os.path.basename(prefix)))
    work.out.progress("unlinking", f"Removing {prefix}.")
    registry.unregister(work.registry, prefix)
    await asyncio.to_thread(erase, prefix)
    work.settle()


def copy_rest(source: str, target: str, owned: set[str]) -> None:
    """Copy the files of `source` that no package owns, the prefix's path in texts replaced: what `conda create
    --clone` does. Raises OSError."""
    for folder, names, found in os.walk(source):
        relative = os.path.relpath(folder, source)
        names[:] = [name for name in names if name != "__pycache__" and (relative, name) != (".", "conda-meta")]
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        for name in [*found, *links]:
            path = os.path.normpath(os.path.join(relative, name))
            if path not in owned:
                _copy(os.path.join(source, path), os.path.join(target, path), source, target)
    for name in ("pinned", "state"):
        path = os.path.join(source, "conda-meta", name)
        if os.path.isfile(path):
            shutil.copy2(path, os.path.join(target, "conda-meta", name))


def _copy(old: str, new: str, source: str, target: str) -> None:
    about = os.lstat(old)
    if os.path.lexists(new):
        return
    os.makedirs(os.path.dirname(new), exist_ok=True)
    if stat.S_ISLNK(about.st_mode):
        leads = os.readlink(old)
        os.symlink(target + leads[len(source) :] if leads.startswith(f"{source}/") else leads, new)
    elif stat.S_ISREG(about.st_mode):
        shutil.copy2(old, new)
        if about.st_size > _LARGEST_TEXT:
            return
        data = Path(new).read_bytes()
        if os.fsencode(source) in data and b"\0" not in data:
            Path(new).write_bytes(data.replace(os.fsencode(source), os.fsencode(target)))
