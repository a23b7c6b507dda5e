"""Environments that are there: packages added, removed and updated; described; mended."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import rattler
from rattler.platform import Subdir

from sksd.conda import export as texts
from sksd.conda import history, locks, pending, places, records
from sksd.conda.making import variables
from sksd.conda.messages import Done
from sksd.conda.pip import check
from sksd.conda.prefixlock import PrefixLock
from sksd.conda.records import Record
from sksd.conda.undo import mend
from sksd.conda.work import Work, by_name
from sksd.errors import BadRequest, PackageMissing, SksdError


async def opened(work: Work) -> dict[str, Record]:
    """Find, lock and check the job's environment; what is installed in it."""
    prefix = work.existing()
    await work.lock(prefix)
    places.refuse_changing(prefix, work.name)
    return records.read(prefix)


async def add(work: Work) -> Done:
    """Install, and change as little else as possible."""
    job = work.job
    installed = await opened(work)
    if not job.specs and not job.pip:
        raise BadRequest(problem="name the packages to add")
    specs = [*job.specs, *(["pip"] if job.pip and "pip" not in installed and "python" in installed else [])]
    asked = records.requested(work.prefix, installed)
    # A bare name of a package that was asked for with bounds does not take the bounds away.
    new = {name: spec for name, spec in by_name(specs).items() if spec != name or name not in asked}
    if not specs:
        return await _changed(work, installed, _kept(work.prefix, installed), asked, update=[], pip=job.pip)
    after = await work.solver.solve(
        list((asked | new).values()),
        locked=_kept(work.prefix, installed),
        constraints=_constraints(work, installed, set(new)),
    )
    return await _changed(work, installed, after, asked | new, update=specs, pip=job.pip)


async def update(work: Work) -> Done:
    """The newest versions that the specs asked for, the pins and the kernel's bounds allow."""
    job = work.job
    installed = await opened(work)
    named = by_name(job.specs)
    check_installed(work, named, installed)
    asked = records.requested(work.prefix, installed)
    new = {name: spec for name, spec in named.items() if spec != name or name not in asked}
    everything = not job.specs and not job.pip
    locked = [] if everything else _kept(work.prefix, installed, without=named)
    if not job.specs and job.pip:
        return await _changed(work, installed, locked, asked, update=[], pip=job.pip)
    specs = list((asked | new).values())
    if everything:
        # What came without being asked for, as the pip of a new environment, stays too; conda does the same.
        specs += sorted(set(installed) - set(asked))
    after = await work.solver.solve(specs, locked=locked, constraints=_constraints(work, installed, set(new)))
    return await _changed(work, installed, after, asked | new, update=list(new.values()), pip=job.pip)


async def remove_packages(work: Work) -> Done:
    """Take packages out, with what needs them and what only they needed. No solve: nothing else changes."""
    installed = await opened(work)
    by_pip = records.pip_installed(work.prefix)
    names = [*by_name(work.job.specs), *(records.normal(history.name_of(line)) for line in work.job.pip)]
    unpip = [records.normal(name) for name in names if name not in installed and records.normal(name) in by_pip]
    names = [name for name in names if records.normal(name) not in unpip]
    if not names and not unpip:
        raise BadRequest(problem="name the packages to remove")
    check_installed(work, names, installed)
    asked = records.requested(work.prefix, installed)
    gone = records.dependents(installed, names) if names else set()
    kept = records.needed(installed, [name for name in asked if name not in gone])
    after = _kept(work.prefix, installed, without=set(installed) - kept)
    left = {name: spec for name, spec in asked.items() if name in kept}
    dropped = sorted(set(asked) & gone | set(names))
    return await _changed(work, installed, after, left, remove=dropped, unpip=unpip)


async def _changed(
    work: Work,
    installed: Mapping[str, Record],
    after: Sequence[rattler.RepoDataRecord],
    asked: Mapping[str, str],
    update: Sequence[str] = (),
    remove: Sequence[str] = (),
    pip: Sequence[str] = (),
    unpip: Sequence[str] = (),
) -> Done:
    plan = await work.solver.plan(installed, after, pip)
    work.out.event(plan)
    if (pip or unpip) and not any(each.name.normalized == "pip" for each in after):
        check(work.prefix, work.name)
    same = not plan.actions and not unpip
    if work.job.dry_run or (same and dict(asked) == records.requested(work.prefix, installed)):
        return work.done(changed=False)
    work.begin(work.change_note(after, bool(pip or unpip)))
    await work.apply(after, asked, update, remove, pip, unpip)
    work.settle()
    return work.done(changed=not same)


def _kept(
    prefix: str, installed: Mapping[str, Record], without: Container[str] = ()
) -> list[rattler.RepoDataRecord]:
    """The installed packages as records, to keep or to favour."""
    meta = Path(prefix, "conda-meta")
    return [
        rattler.PrefixRecord.from_path(meta / f"{each.stem}.json")
        for name, each in installed.items()
        if name not in without
    ]


def _constraints(work: Work, installed: Mapping[str, Record], named: set[str]) -> list[str]:
    """What must hold whatever is asked: pins, the kernel that is there, and the Python's minor version."""
    found = [*records.pinned(work.prefix), *work.sources.settings.pinned_packages]
    kernel = work.job.kernel
    if kernel is not None and history.name_of(kernel.spec) in installed:
        mine = [kernel.spec, *kernel.bounds]
        found += [spec for spec in mine if history.name_of(spec) not in named]
    python = installed.get("python")
    if python is not None and "python" not in named:
        found.append(f"python {'.'.join(python.version.split('.')[:2])}.*")
    return found


def check_installed(work: Work, names: Iterable[str], installed: Mapping[str, Record]) -> None:
    """Raises PackageMissing for the first of `names` that is not there."""
    for name in names:
        if name not in installed:
            raise PackageMissing(name=work.name, package=name or "an empty name")


async def export(work: Work) -> Done:
    """The environment as a text."""
    work.prefix = work.existing()
    work.name = work.job.name or os.path.basename(work.prefix)
    installed = records.read(work.prefix)
    by_pip = records.pip_installed(work.prefix)
    urls = list(dict.fromkeys(each.base for each in installed.values() if each.base))
    match work.job.format:
        case "environment.yml":
            names = [work.sources.written(url) for url in urls]
            name = os.path.basename(work.prefix)
            text = texts.environment_yml(name, names, installed.values(), by_pip, variables(work.prefix))
        case "explicit":
            text = texts.explicit(str(Subdir.current()), installed.values())
            if by_pip:
                work.notes.append(f"An explicit list has no pip packages: {', '.join(sorted(by_pip))} are left out.")
        case "lock":
            text = locks.write(_kept(work.prefix, installed), urls, by_pip)
        case other:
            raise BadRequest(problem=f"an environment is not exported as {other}")
    return work.done(changed=False, text=text)


async def packages(work: Work) -> Done:
    """What is installed."""
    work.prefix = work.existing()
    done = work.done(changed=False)
    done.name = work.job.name or os.path.basename(work.prefix)
    done.packages = records.packages(work.prefix)
    return done


async def repair(work: Work) -> Done:
    """Finish or undo what killed workers left: of the job's prefix, else of every one that nobody works on."""
    if work.job.prefix or work.job.name:
        prefix = work.job.prefix or work.job.name
        known = [each.prefix for each in pending.everything()]
        named = next((each for each in known if os.path.basename(each) == prefix), prefix)
        await work.lock(named if os.path.isabs(named) else work.existing())
        return work.done(changed=bool(work.notes))
    failures: list[SksdError] = []
    for note in pending.everything():
        if note.alive:
            continue
        lock = PrefixLock(note.prefix)
        # A pip that outlived its worker holds it.
        await work.taken(lock, note.name)
        if (left := pending.read(note.prefix)) is not None and not left.alive:
            try:
                said = await mend(left, work.out, lock.descriptor)
                work.notes.append(f"A change of {left.name} had been cut off. {said}")
            except SksdError as error:
                failures.append(error)
        lock.release()
    if failures:
        raise failures[0]
    return work.done(changed=bool(work.notes))
