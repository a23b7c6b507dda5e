"""One job under way: its prefix locked, what it changes noted, and the steps that every change is made of."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rattler

from sksd.conda import history, pending, places, records, registry
from sksd.conda.messages import Done, Job
from sksd.conda.out import Out
from sksd.conda.pending import Note
from sksd.conda.pip import Pip
from sksd.conda.prefixlock import PrefixLock, key
from sksd.conda.solve import Solver
from sksd.conda.sources import Sources
from sksd.conda.transaction import append_history, link, note_requested
from sksd.conda.undo import listed, mend

#: Seconds between two looks at a prefix that another change holds.
_LOOK = 0.1
#: Seconds between two words about it.
_SIGN = 5.0


@dataclass
class Work:
    """What the operations share. `note`: what is to be undone if it ends now; None: nothing.

    `notes`: sentences for `Done`. `final`: it can only be finished from here on, not cancelled.
    """

    job: Job
    out: Out
    note: Note | None = None
    final: bool = False
    notes: list[str] = field(default_factory=list)
    prefix: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        self.registry = Path(self.job.registry) if self.job.registry else registry.default()
        self._locks: dict[str, PrefixLock] = {}

    @property
    def sources(self) -> Sources:
        """Channels and settings; read at the first use, which may raise BadCondarc."""
        if not hasattr(self, "_sources"):
            self._sources = Sources(self.job, os.environ)
        return self._sources

    @property
    def solver(self) -> Solver:
        """With these sources."""
        return Solver(self.sources, self.out)

    def existing(self, text: str = "") -> str:
        """The prefix of the job's environment, or of the one that `text` names."""
        lines = []
        if self.registry.is_file():
            lines = self.registry.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        name, prefix = (text, "") if text else (self.job.name, self.job.prefix)
        return places.existing(prefix, name, self.sources.folders, [line.strip() for line in lines])

    async def lock(self, *prefixes: str) -> None:
        """Wait until these prefixes are this job's alone, and mend what an earlier one left there. The first is the
        one that `prefix` and `name` tell of afterwards."""
        self.prefix = prefixes[0]
        self.name = self.job.name or os.path.basename(self.prefix)
        # In one order for all, so that two jobs cannot wait for each other.
        for prefix in sorted(prefixes, key=key):
            lock = self._locks[prefix] = PrefixLock(prefix)
            await self.taken(lock, os.path.basename(prefix))
            left = pending.read(prefix)
            if left is not None:
                self.notes.append(f"An earlier change of {left.name} had been cut off. {await self.mended(left)}")

    async def copied(self) -> tuple[str, str]:
        """(source, new prefix) of a clone or rename, locked; refuses what may not be."""
        job = self.job
        source = self.existing(job.source)
        prefix = places.new(job.prefix, job.name, self.sources.folders)
        await self.lock(prefix, source)
        if job.operation == "rename":
            places.refuse_changing(source, os.path.basename(source))
            places.refuse_removing(source, os.path.basename(source))
        places.refuse_making(prefix)
        return source, prefix

    async def taken(self, lock: PrefixLock, name: str) -> None:
        """Wait for a lock, and say so now and then."""
        told = -_SIGN
        while not lock.take():
            now = time.monotonic()
            if now - told >= _SIGN:
                self.out.progress("waiting", f"Another change of {name} is under way.")
                told = now
            await asyncio.sleep(_LOOK)

    async def mended(self, note: Note) -> str:
        """What `mend` did, under this job's lock of the note's prefix."""
        return await mend(note, self.out, self.lock_of(note.prefix))

    def lock_of(self, prefix: str) -> int:
        """The lock's descriptor, for those who go on under it."""
        return self._locks[prefix].descriptor

    def begin(self, note: Note) -> None:
        """From here on, whatever happens is undone by `note`."""
        note.registry = str(self.registry)
        self.note = note
        pending.write(note)

    def settle(self) -> None:
        """All is done: nothing is to be undone any more."""
        if self.note is not None:
            pending.remove(self.note.prefix)
            self.note = None

    def make_note(self, prefix: str) -> Note:
        """For an environment that is to be made."""
        return Note(operation="make", prefix=prefix, name=self.name, existed=os.path.isdir(prefix))

    def change_note(self, after: Sequence[rattler.RepoDataRecord], pip: bool) -> Note:
        """For one that is to be changed."""
        text = Path(self.prefix, "conda-meta", "history")
        old = records.documents(self.prefix)
        stems = {f"{each['name']}-{each['version']}-{each['build']}" for each in old}
        return Note(
            operation="change",
            prefix=self.prefix,
            name=self.name,
            old=old,
            new=sorted(set(map(stem, after)) - stems),
            cache=str(self.sources.cache),
            history=text.stat().st_size if text.exists() else 0,
            pip=records.pip_installed(self.prefix) if pip else {},
            names=listed(self.prefix) if pip else [],
        )

    async def apply(
        self,
        after: Sequence[rattler.RepoDataRecord],
        requested: Mapping[str, str],
        update: Sequence[str] = (),
        remove: Sequence[str] = (),
        pip: Sequence[str] = (),
        unpip: Sequence[str] = (),
    ) -> None:
        """The steps of every change, in their order: packages, pip's packages, history, conda's list.

        `begin` has been called. `requested`: every spec that a person asked for; `update`, `remove`: those of this
        change; `pip`, `unpip`: what pip is to install and to take out.
        """
        before = records.read(self.prefix)
        meta = Path(self.prefix, "conda-meta")
        meta.mkdir(parents=True, exist_ok=True)
        if {each.stem for each in before.values()} != set(map(stem, after)):
            self.out.progress("linking", f"Changing the packages of {self.name}.", 0, len(after))
            await link(after, self.prefix, self.sources, self.out, requested)
        if pip or unpip:
            runner = self.pip()
            if unpip:
                await runner.uninstall(unpip)
            if pip:
                await runner.install(pip, upgrade=self.job.operation == "update")
        self.out.progress("registering", f"Noting the change of {self.name}.")
        installed = note_requested(self.prefix, requested)
        append_history(self.prefix, self.sources, self.job.operation, before, installed, update, remove)
        registry.register(self.registry, self.prefix)

    def pip(self) -> Pip:
        """The environment's own pip."""
        sources, lock = self.sources, self.lock_of(self.prefix)
        return Pip(self.prefix, self.name, sources.settings, sources.offline, self.out, lock)

    def done(self, changed: bool, text: str | None = None) -> Done:
        """The last event."""
        return Done(prefix=self.prefix, name=self.name, changed=changed, text=text, notes=self.notes)


def stem(record: rattler.RepoDataRecord) -> str:
    """A record's name in conda-meta and in a package cache."""
    return f"{record.name.normalized}-{record.version}-{record.build}"


def by_name(specs: Iterable[str]) -> dict[str, str]:
    """Specs by the package that they are about; a later one goes before an earlier one."""
    return {history.name_of(spec): spec for spec in specs}
