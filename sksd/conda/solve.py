"""Which packages an environment will have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import rattler
from rattler.platform import Subdir

from sksd.conda import history
from sksd.conda.files import Url
from sksd.conda.messages import Action, Plan
from sksd.conda.out import Out
from sksd.conda.plan import actions
from sksd.conda.records import Record
from sksd.conda.sources import Sources
from sksd.conda.watch import watched
from sksd.errors import BadFile, BadSpec, NotCached
from sksd.paths import private


def spec_of(text: str) -> rattler.MatchSpec:
    """`text` as rattler understands it. Raises BadSpec."""
    try:
        # Not strict: conda takes "numpy=1.2*" and the like.
        spec = rattler.MatchSpec(text, strict=False)
    except Exception as error:
        raise BadSpec(spec=text, problem=str(error).strip()) from None
    if not history.name_of(text):
        raise BadSpec(spec=text, problem="it names no package")
    return spec


class Solver:
    """Asks rattler, with the person's channels. One a job."""

    def __init__(self, sources: Sources, out: Out) -> None:
        self._sources, self._out = sources, out

    async def solve(
        self,
        specs: Sequence[str],
        locked: Iterable[rattler.RepoDataRecord] = (),
        constraints: Sequence[str] = (),
        pip: bool = False,
    ) -> list[rattler.RepoDataRecord]:
        """The records of an environment that meets `specs`.

        `locked` are kept where that is possible, `constraints` hold for what comes along; `pip`: a Python brings pip,
        as conda has it. Raises BadSpec, ChannelUnreachable, or what rattler raises.
        """
        parsed = [spec_of(each) for each in specs]
        held = [spec_of(each) for each in constraints]
        for text in specs:
            channel, separator, _ = text.partition("::")
            if separator:
                self._sources.place(channel.strip())
        names = ", ".join(self._sources.names)
        self._out.progress("reading", f"Reading the package lists of {names}.")
        await self._sources.reach()
        self._out.progress("solving", f"Finding packages that fit together in {names}.")
        solving = rattler.solve(
            self._sources.channels,
            parsed,
            gateway=self._sources.gateway,
            locked_packages=list(locked),
            virtual_packages=rattler.VirtualPackage.detect(overrides=rattler.VirtualPackageOverrides.from_env()),
            channel_priority=self._sources.priority,
            constraints=held,
            add_pip_as_python_dependency=pip,
        )
        return await watched(solving, self._out, *self._silence)

    async def exactly(self, urls: Sequence[Url]) -> list[rattler.RepoDataRecord]:
        """The records of an explicit list. Raises BadFile for a package whose hash is another, or that its channel
        does not have."""
        self._out.progress("reading", "Looking up the packages of the list.", 0, len(urls))
        groups: dict[tuple[str, str], list[Url]] = {}
        for each in urls:
            folder, _, _ = each.url.rpartition("/")
            channel, _, subdir = folder.rpartition("/")
            groups.setdefault((channel, subdir), []).append(each)
        located = {channel: self._sources.place(channel).url for channel, _ in groups}
        await self._sources.reach()
        found = []
        for (channel, subdir), wanted in groups.items():
            # By name: asked for a URL rattler fetches the package at once, and knows neither channel nor hash then.
            specs = sorted({_file_name(each).rsplit("-", 2)[0] for each in wanted})
            asking = self._sources.gateway.query(
                [rattler.Channel(located[channel])], [Subdir(subdir)], specs, recursive=False
            )
            answered = await watched(asking, self._out, *self._silence)
            known = {record.file_name: record for records in answered for record in records}
            found += [_checked(each, known.get(_file_name(each))) for each in wanted]
        return found

    async def plan(
        self, before: Mapping[str, Record], after: Sequence[rattler.RepoDataRecord], pip: Sequence[str] = ()
    ) -> Plan:
        """What it takes to get there. Raises NotCached where the network is off and a package is not here."""
        old = {
            name: Action(action="remove", name=name, version=each.version, build=each.build, channel=each.base)
            for name, each in before.items()
        }
        new = {each.name.normalized: _action(each) for each in after}
        found = actions(old, new, lambda one, other: rattler.Version(one) > rattler.Version(other))
        changed = {each.name for each in found if each.action != "remove"}
        index = await rattler.PackageCache(made(self._sources.cache)).index()
        missing = [
            each for each in after if each.name.normalized in changed and not index.contains_record(each)
        ]
        if self._sources.offline:
            for each in missing:
                if not each.url.startswith("file:"):
                    raise NotCached(package=each.file_name)
        found += [Action(action="install", name=history.name_of(line), channel="pypi") for line in pip]
        return Plan(actions=found, download_bytes=sum(each.size or 0 for each in missing))

    @property
    def _silence(self) -> tuple[str, float]:
        return self._sources.urls, self._sources.settings.remote_read_timeout_secs


def made(folder: Path) -> Path:
    """`folder`, made for this person alone if it is not there. Raises CannotWrite."""
    return folder if folder.is_dir() else private(folder)


def parsed(documents: Iterable[Mapping[str, Any]], folder: Path) -> list[rattler.RepoDataRecord]:
    """conda-meta documents without their lists of files, as records to install again; `folder` is for a moment."""
    found: list[rattler.RepoDataRecord] = []
    path = folder / "record.json"
    for document in documents:
        whole = {**document, "files": [], "paths_data": {"paths": [], "paths_version": 1}}
        path.write_bytes(msgspec.json.encode(whole))
        found.append(rattler.PrefixRecord.from_path(path))
    path.unlink(missing_ok=True)
    return found


def _action(record: rattler.RepoDataRecord) -> Action:
    return Action(
        action="install",
        name=record.name.normalized,
        version=str(record.version),
        build=str(record.build),
        channel=record.channel or "",
        size=record.size,
    )


def _file_name(wanted: Url) -> str:
    return wanted.url.rpartition("/")[2]


def _checked(wanted: Url, record: rattler.RepoDataRecord | None) -> rattler.RepoDataRecord:
    if record is None:
        raise BadFile(format="explicit list", problem=f"{wanted.url} is not in its channel (any more)")
    for kind, hexadecimal in (("md5", wanted.md5), ("sha256", wanted.sha256)):
        known = getattr(record, kind)
        if hexadecimal and known and known.hex() != hexadecimal:
            problem = f"{wanted.url} is another package now: its {kind} is {known.hex()}, not {hexadecimal}"
            raise BadFile(format="explicit list", problem=problem)
    return record
