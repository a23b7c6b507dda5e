"""Linking and unlinking: the packages of a prefix become those of a list."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import rattler

from sksd.conda import history
from sksd.conda.out import Out
from sksd.conda.records import Record, history_text, read
from sksd.conda.solve import made, spec_of
from sksd.conda.sources import Sources
from sksd.conda.watch import watched

#: What a history calls the program that made a change.
COMMAND = "sksd env"


async def link(
    records: Sequence[rattler.RepoDataRecord],
    prefix: str,
    sources: Sources,
    out: Out,
    requested: Mapping[str, str],
    again: set[str] | None = None,
) -> None:
    """Make the packages of `prefix` exactly `records`. `requested`: the specs that a person asked for, by package.
    `again`: names of packages that are linked anew. Raises what rattler raises."""
    work = rattler.install(
        list(records),
        prefix,
        cache_dir=made(sources.cache),
        show_progress=False,
        client=sources.client,
        reinstall_packages=again or None,
        # rattler wants the inner objects here, whatever its annotation says.
        requested_specs=[spec_of(spec)._match_spec for spec in requested.values()],
        reporter=_Reporter(out, {each.name.normalized: each.size or 0 for each in records}),
    )
    await watched(work, out, sources.urls, sources.settings.remote_read_timeout_secs)


def note_requested(prefix: str, requested: Mapping[str, str]) -> dict[str, Record]:
    """Write into conda-meta which packages were asked for, as conda has it beside rattler's own field; what is
    installed."""
    meta = Path(prefix, "conda-meta")
    installed = read(prefix)
    for name, record in installed.items():
        spec = requested.get(name)
        if (spec or None) == record.requested_spec and ([spec] if spec else []) == record.requested_specs:
            continue
        path = meta / f"{record.stem}.json"
        if not path.exists():
            continue
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        document.pop("requested_spec", None)
        document["requested_specs"] = [spec] if spec else []
        if spec:
            document["requested_spec"] = spec
        _replace(path, msgspec.json.format(msgspec.json.encode(document), indent=2))
    return installed


def append_history(
    prefix: str,
    sources: Sources,
    operation: str,
    before: Mapping[str, Record],
    after: Mapping[str, Record],
    update: Sequence[str] = (),
    remove: Sequence[str] = (),
) -> None:
    """Append what was changed, so that conda goes on from there. `before`, `after`: what was and is installed.
    Raises OSError."""
    file = Path(prefix, "conda-meta", "history")
    text = history_text(prefix)
    known = history.installed(text) or dists(before, sources)
    entry = history.block(time.time(), f"{COMMAND} {operation}", known, dists(after, sources), update, remove)
    with file.open("a", encoding="utf-8") as history_file:
        history_file.write(entry if not text or text.endswith("\n") else f"\n{entry}")


def dists(installed: Mapping[str, Record], sources: Sources) -> set[str]:
    """The packages as conda writes them in a history."""
    return {_dist(record, sources) for record in installed.values()}


def _dist(record: Record, sources: Sources) -> str:
    channel = sources.written(record.base)
    return f"{channel}/{record.subdir}::{record.stem}"


def _replace(path: Path, data: bytes) -> None:
    # Beside it and not .json, so that a half-written one is no package.
    part = path.with_suffix(".sksd-part")
    part.write_bytes(data)
    part.replace(path)


class _Reporter:
    """What rattler calls while it works, on threads of its own."""

    def __init__(self, out: Out, sizes: Mapping[str, int]) -> None:
        self._out = out
        self._sizes = sizes
        self._names: dict[int, str] = {}
        self._bytes: dict[int, int] = {}
        self._totals: dict[int, int] = {}
        self._started = 0.0
        self._fetched = self._linked = self._unlinked = self._tokens = 0

    def on_transaction_start(self, total_operations: int) -> None:
        """Once, at the beginning."""

    def on_transaction_operation_start(self, operation: int) -> None:
        """For each package."""

    def on_transaction_operation_complete(self, operation: int) -> None:
        """For each package."""

    def on_transaction_complete(self) -> None:
        """Once, at the end."""

    def on_validate_start(self, cache_entry: int) -> int:
        """A cached package is looked through."""
        return 0

    def on_validate_complete(self, validate_idx: int) -> None:
        """It was."""

    def on_post_link_start(self, package_name: str, script_path: str) -> int:
        """Never: no scripts are run."""
        return 0

    def on_post_link_complete(self, index: int, success: bool) -> None:
        """Never."""

    def on_pre_unlink_start(self, package_name: str, script_path: str) -> int:
        """Never."""
        return 0

    def on_pre_unlink_complete(self, index: int, success: bool) -> None:
        """Never."""

    def on_populate_cache_start(self, operation: int, package_name: str) -> int:
        """A package is fetched and unpacked, unless the cache has it."""
        token = self._token(package_name)
        self._started = self._started or time.monotonic()
        self._totals[token] = self._sizes.get(package_name, 0)
        self._downloading(f"Fetching {package_name}.")
        return token

    def on_download_start(self, cache_entry: int) -> int:
        """Its download begins; the same token goes on."""
        return cache_entry

    def on_download_progress(self, download_idx: int, progress: int, total: int | None) -> None:
        """So many bytes of it are here."""
        self._bytes[download_idx] = progress
        if total:
            self._totals[download_idx] = total
        self._downloading(f"Downloading {self._names.get(download_idx, 'packages')}.")

    def on_download_completed(self, download_idx: int) -> None:
        """Its download is complete."""

    def on_populate_cache_complete(self, cache_entry: int) -> None:
        """It is in the cache."""
        self._fetched += 1
        self._downloading(f"{self._names.get(cache_entry, 'A package')} is in the package cache.")

    def on_link_start(self, operation: int, package_name: str) -> int:
        """A package is put into the prefix."""
        self._out.progress("linking", f"Linking {package_name}.", self._linked, len(self._sizes))
        return self._token(package_name)

    def on_link_complete(self, index: int) -> None:
        """It is in the prefix."""
        self._linked += 1
        name = self._names.get(index, "a package")
        self._out.progress("linking", f"Linked {name}.", self._linked, len(self._sizes))

    def on_unlink_start(self, operation: int, package_name: str) -> int:
        """A package is taken out of the prefix."""
        self._out.progress("unlinking", f"Removing {package_name}.", self._unlinked)
        return self._token(package_name)

    def on_unlink_complete(self, index: int) -> None:
        """It is out."""
        self._unlinked += 1

    def _token(self, name: str) -> int:
        self._tokens += 1
        self._names[self._tokens] = name
        return self._tokens

    def _downloading(self, message: str) -> None:
        got = sum(self._bytes.values())
        total = sum(self._totals[token] for token in self._bytes if token in self._totals)
        spent = time.monotonic() - self._started
        self._out.progress(
            "downloading",
            message,
            self._fetched,
            len(self._totals),
            got or None,
            total or None,
            int(got / spent) if got and spent > 0 else None,
        )
