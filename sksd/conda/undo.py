"""Mends what a change left that did not come to its end, by the note that it wrote (`sksd.conda.pending`).

Called for a change that failed or was cancelled, in a fresh process (rattler's threads go on linking after an error,
and an exec ends them); and for one that was killed, by the next job on its prefix or by `repair`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sksd.conda import pending, registry
from sksd.conda.messages import Job
from sksd.conda.out import Out
from sksd.conda.pending import Note
from sksd.conda.pip import Pip
from sksd.conda.reasons import translated
from sksd.conda.records import Record, missing_files, pip_installed, read, site_packages
from sksd.conda.solve import parsed
from sksd.conda.sources import Sources
from sksd.conda.transaction import link, note_requested
from sksd.errors import HalfChanged, SksdError


async def mend(note: Note, out: Out, lock: int) -> str:
    """Finish or undo what `note` tells of; the answer is a sentence of what was done. `lock`: the prefix's.

    Raises HalfChanged, and then the note is kept for the next try.
    """
    out.progress("undoing", f"Mending {note.name}.")
    try:
        if note.operation == "make":
            erase(note.prefix, keep=note.existed)
            registry.unregister(Path(note.registry), note.prefix)
            said = "What had been made of it is removed."
        elif note.operation == "remove":
            registry.unregister(Path(note.registry), note.prefix)
            erase(note.prefix)
            said = "Its removal is finished."
        elif not os.path.isdir(note.prefix):
            said = "It is not there any more."
        else:
            said = await _roll_back(note, out, lock)
    except HalfChanged:
        raise
    except SksdError as error:
        raise HalfChanged(name=note.name, problem=str(error)) from None
    except Exception as error:
        raise HalfChanged(name=note.name, problem=str(error) or type(error).__name__) from None
    pending.remove(note.prefix)
    return said


def erase(prefix: str, keep: bool = False) -> None:
    """Remove a whole prefix; `keep`: all that is in it. What others removed meanwhile is no error. Raises OSError."""
    if not os.path.isdir(prefix):
        return
    for entry in os.scandir(prefix):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, onerror=_writable)
        else:
            os.unlink(entry.path)
    if not keep:
        os.rmdir(prefix)


def _writable(function: Callable[[str], Any], path: str, error: Any) -> None:
    """A package may have folders without the right to write."""
    if isinstance(error[1], FileNotFoundError):
        return
    for folder in (os.path.dirname(path), path):
        with contextlib.suppress(OSError):
            if not os.path.islink(folder):
                os.chmod(folder, stat.S_IRWXU)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


async def _roll_back(note: Note, out: Out, lock: int) -> str:
    prefix = note.prefix
    sources = Sources(Job(operation="repair"), os.environ)
    if note.cache:
        sources.cache = Path(note.cache)
    _drop_half_written(prefix)
    old = {str(each["name"]): each for each in note.old}
    for channel in {str(each.get("channel") or "") for each in note.old} - {""}:
        with contextlib.suppress(SksdError):
            sources.place(channel)
    installed = read(prefix)
    again = {name for name, record in installed.items() if name in old and missing_files(prefix, record)}
    same = {name: record.stem for name, record in installed.items()} == {
        name: "{name}-{version}-{build}".format(**each) for name, each in old.items()
    }
    asked = {name: _spec(each) for name, each in old.items() if _spec(each)}
    if again or not same:
        with tempfile.TemporaryDirectory(prefix="sksd-") as folder:
            records = parsed(note.old, Path(folder))
        try:
            await link(records, prefix, sources, out, asked, again)
        except Exception as error:
            raise translated(error, prefix, note.name, sources) from None
    installed = note_requested(prefix, asked)
    _sweep(note, installed)
    notes = await _pip_back(note, installed, sources, out, lock)
    history = Path(prefix, "conda-meta", "history")
    if history.exists() and history.stat().st_size > note.history:
        os.truncate(history, note.history)
    return " ".join(["It is as it was before.", *notes])


def _spec(document: dict[str, Any]) -> str:
    specs = document.get("requested_specs") or [document.get("requested_spec")]
    return str(specs[0] or "")


def _drop_half_written(prefix: str) -> None:
    meta = Path(prefix, "conda-meta")
    for path in [*meta.glob("*.json"), *meta.glob("*.sksd-part")]:
        try:
            json.loads(path.read_bytes())
            complete = path.suffix == ".json"
        except ValueError:
            complete = False
        if not complete:
            path.unlink(missing_ok=True)


def _sweep(note: Note, installed: dict[str, Record]) -> None:
    """Remove files of packages that were being linked when it ended: no document of conda-meta tells of them."""
    owned = {file for record in installed.values() for file in record.files}
    there = {record.stem for record in installed.values()}
    for stem in note.new:
        if stem in there:
            continue
        for file in _files(Path(note.cache, stem), note.prefix):
            if file not in owned:
                _discard(Path(note.prefix, file), Path(note.prefix))


def _files(package: Path, prefix: str) -> list[str]:
    """Where the files of an unpacked package go in `prefix`."""
    try:
        paths = [str(each["_path"]) for each in json.loads((package / "info" / "paths.json").read_bytes())["paths"]]
        index = json.loads((package / "info" / "index.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if index.get("noarch") != "python":
        return paths
    folder = site_packages(prefix)
    if folder is None:
        return []
    where = str(folder.relative_to(prefix))
    found = []
    for path in paths:
        head, separator, tail = path.partition("/")
        found.append({"site-packages": where, "python-scripts": "bin"}.get(head, head) + separator + tail)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        points = json.loads((package / "info" / "link.json").read_bytes())["noarch"]["entry_points"]
        found += [f"bin/{point.partition('=')[0].strip()}" for point in points]
    return found


def _discard(path: Path, top: Path) -> None:
    """Remove a file, its byte code, and the folders that are empty then."""
    with contextlib.suppress(OSError):
        path.unlink()
    for code in path.parent.glob(f"__pycache__/{path.stem}.*.pyc") if path.suffix == ".py" else ():
        with contextlib.suppress(OSError):
            code.unlink()
    for folder in (path.parent / "__pycache__", *path.parents):
        if folder == top:
            break
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            if folder.name != "__pycache__":
                break


def listed(prefix: str) -> list[str]:
    """What lies in `bin` and among Python's packages: what pip may add to."""
    site = site_packages(prefix)
    folders: Iterable[Path] = [Path(prefix, "bin"), *([site] if site else [])]
    return [str(path.relative_to(prefix)) for folder in folders if folder.is_dir() for path in folder.iterdir()]


async def _pip_back(
    note: Note, installed: dict[str, Record], sources: Sources, out: Out, lock: int
) -> list[str]:
    if not note.names:
        return []
    pip = Pip(note.prefix, note.name, sources.settings, sources.offline, out, lock)
    notes = []
    now = pip_installed(note.prefix)
    new = sorted(set(now) - set(note.pip))
    if new:
        with contextlib.suppress(SksdError):
            await pip.uninstall(new)
    owned = {"/".join(file.split("/")[:4]) for each in installed.values() for file in each.files}
    owned |= {file for each in installed.values() for file in each.files}
    for name in set(listed(note.prefix)) - set(note.names) - owned:
        path = Path(note.prefix, name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    now = pip_installed(note.prefix)
    lost = [f"{name}=={version}" for name, version in note.pip.items() if now.get(name) != version]
    if lost:
        try:
            await pip.install(lost)
        except SksdError:
            notes.append(f"But pip could not put back {', '.join(lost)}: install them again.")
    return notes
