"""The environments of a user: the listing, and finding one by what a person typed.

Read from files alone (`sksd.proxy.prefixes`): 50 environments take milliseconds, and nothing of the user's
runs.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sksd.errors import BadName, EnvironmentBroken, FolderSilent, NoSuchEnvironment, NotAllowed
from sksd.proxy.kernels import ANY_KERNEL, choose_kernel, shortcoming
from sksd.proxy.prefixes import CONDA, PIXI, Prefix, PrefixReader, is_interpreter_name, normalised
from sksd.proxy.sources import At, Candidate, Sources, anywhere, candidates
from sksd.wire.messages import Accept, Environment, Kernel

#: Folder names that say nothing about a venv: its parent's name is taken instead.
GENERIC_NAMES = frozenset({".venv", "venv", "env", ".env"})


@dataclass(frozen=True, slots=True)
class Listed:
    """One environment of a user.

    `name` is unique among them; `label` is what it would be called were it alone, which is what patterns are
    matched with. `own`: sksd itself runs in it.
    """

    name: str
    label: str
    prefix: Prefix
    own: bool = False


def list_environments(
    sources: Sources, reader: PrefixReader, accepts: Sequence[Accept] = (), at: At = anywhere
) -> list[Environment]:
    """The listing that the avatar's `environments` answers: sksd's own first, then by source and name.

    Excluded ones are left out, broken ones are in it with a reason. Raises BadRequest for a bad range in
    `accepts` and nothing else.
    """
    shown = (listed for listed in gather(sources, reader, at) if not excluded(listed, sources.exclude))
    return [described(listed, accepts) for listed in shown]


def find_environment(
    sources: Sources, reader: PrefixReader, text: str, at: At = anywhere, *, broken: bool = False
) -> Listed:
    """The environment that `text` names; called by spin_up, and for changes.

    `text`: a name of the listing, an absolute prefix (one that no source has counts too), or the absolute
    path of a Python in one, which is then the Python that is taken. An environment without Python is found:
    what it lacks is for `choose_kernel` to say. Raises BadName, NoSuchEnvironment (its field `suggestion` has
    a close name, or is empty), NotAllowed for an excluded one, FolderSilent where its folder does not answer,
    EnvironmentBroken unless `broken`.
    """
    if not text.strip():
        raise BadName(name="an empty name", problem="give a name of the listing, or an absolute path")
    if "\0" in text or "\n" in text:
        raise BadName(name=repr(text), problem="a line break or a NUL cannot be in a name")
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BadName(name=ascii(text), problem="it is not UTF-8")
    if "/" in text and not os.path.isabs(text):
        raise BadName(name=text, problem="a path must be absolute")
    everything = gather(sources, reader, at)
    if os.path.isabs(text) and not at(os.path.dirname(text)):
        raise FolderSilent(folder=os.path.dirname(text))
    found = _by_path(everything, reader, text) if os.path.isabs(text) else _by_name(everything, text)
    if found is None:
        visible = [listed.name for listed in everything if not excluded(listed, sources.exclude)]
        close = difflib.get_close_matches(text, visible, n=1)
        raise NoSuchEnvironment(name=text, suggestion=close[0] if close else "")
    if excluded(found, sources.exclude):
        raise NotAllowed(problem=f"the environment {found.label} is excluded (exclude_environments)")
    if found.prefix.problem is not None and not broken:
        raise EnvironmentBroken(name=found.name, problem=found.prefix.problem)
    return found


def excluded(listed: Listed, patterns: Sequence[str]) -> bool:
    """Whether a pattern hides and refuses it: only conda's kinds, where `base` and `_x` are conventions."""
    if listed.prefix.kind not in (CONDA, PIXI):
        return False
    return any(hidden(name, patterns) for name in (listed.label, listed.name))


def hidden(name: str, patterns: Sequence[str]) -> bool:
    """Whether a conda environment of this name would be excluded."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def gather(sources: Sources, reader: PrefixReader, at: At = anywhere) -> list[Listed]:
    """Every environment, excluded ones too, each once by its real path, named. `at`: as `candidates` has it."""
    found: list[Listed] = []
    paths: set[str] = set()
    names: set[str] = set()
    folders: dict[str, str] = {}

    def add(candidate: Candidate, own: bool = False) -> None:
        if not at(os.path.dirname(candidate.path)):
            return
        path = _resolved(candidate.path, folders)
        if path in paths:
            return
        prefix = reader.read(path, interpreter=candidate.interpreter)
        if prefix is None:
            return
        paths.add(path)
        label = _label(prefix, candidate.base)
        name = path if label in names else label
        names.add(name)
        found.append(Listed(name=name, label=label, prefix=prefix, own=own))

    if sources.own:
        add(Candidate(sources.own, interpreter=True), own=True)
    for candidate in candidates(sources, at):
        add(candidate)
    return found


def _resolved(path: str, folders: dict[str, str]) -> str:
    """os.path.realpath, remembering `folders`: neighbours share all but their last step."""
    folder, name = os.path.split(os.path.normpath(path) if ".." not in path else path)
    if not name or name == ".." or os.path.islink(path):
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def _label(prefix: Prefix, base: bool = False) -> str:
    if prefix.kind == CONDA and (base or prefix.base):
        return "base"
    folder, name = os.path.split(prefix.path)
    if name in GENERIC_NAMES and prefix.kind not in (CONDA, PIXI):
        name = os.path.basename(folder)
    return name or prefix.path


def described(listed: Listed, accepts: Sequence[Accept] = ()) -> Environment:
    """One environment as it crosses the wire. Raises BadRequest as `list_environments`."""
    prefix = listed.prefix
    chosen = choose_kernel(prefix, accepts)
    if isinstance(chosen, Kernel):
        kernel: Kernel | None = chosen
        reason = prefix.problem
    else:
        kernel = _any_kernel(prefix, accepts)
        reason = prefix.problem or shortcoming(chosen)
    if _speakable(prefix.path) != prefix.path:
        reason = "its path is not plain UTF-8: rename it"
    return Environment(
        name=_speakable(listed.name),
        prefix=_speakable(prefix.path),
        kind=prefix.kind,
        python=prefix.version,
        kernel=kernel,
        fits=reason is None,
        reason=None if reason is None else _speakable(reason),
        own=listed.own,
        broken=prefix.problem is not None,
        writable=_writable(prefix),
        shared=_shared(prefix.path),
        frozen=prefix.frozen is not None,
        frozen_message=_speakable(prefix.frozen or ""),
    )


def _writable(prefix: Prefix) -> bool:
    # Asked each time: a change of rights changes no folder's time.
    places = [os.path.join(prefix.path, "conda-meta")] if prefix.kind in (CONDA, PIXI) else list(prefix.folders[-1:])
    return all(os.access(place, os.W_OK) for place in (prefix.path, *places))


def _shared(path: str) -> bool:
    try:
        return os.stat(path).st_uid != os.getuid()
    except OSError:
        return False


def _speakable(text: str) -> str:
    """`text` as it can cross the wire and stand in a line; a file name need not be either."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\n", "\\n")


def _any_kernel(prefix: Prefix, accepts: Sequence[Accept]) -> Kernel | None:
    """What is there of the kernels asked for, though it does not fit."""
    for package in (normalised(accept.package) for accept in accepts or ANY_KERNEL):
        if package in prefix.packages:
            return Kernel(package=package, version=prefix.packages[package])
    return None


def _by_name(everything: Sequence[Listed], text: str) -> Listed | None:
    return next((listed for listed in everything if listed.name == text), None)


def _by_path(everything: Sequence[Listed], reader: PrefixReader, text: str) -> Listed | None:
    if os.path.isdir(text):
        return _at(everything, reader, os.path.realpath(text), None)
    if not os.path.lexists(text):
        return None
    if not is_interpreter_name(text):
        raise BadName(name=text, problem="it is neither a folder nor a Python")
    # As Python itself looks for its prefix: from where it was called first, then from where a link leads.
    called = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
    for python in (called, os.path.realpath(text)):
        folder, name = os.path.split(os.path.dirname(python))
        found = _at(everything, reader, folder, python) if name == "bin" else None
        if found is not None:
            return found
    return None


def _at(everything: Sequence[Listed], reader: PrefixReader, path: str, python: str | None) -> Listed | None:
    """The environment at the real path `path`, listed or not; `python`: the interpreter asked for."""
    known = next((listed for listed in everything if listed.prefix.path == path), None)
    if known is not None and (python is None or _same(known.prefix.python, python)):
        return known
    prefix = reader.read(path, python, interpreter=True)
    if prefix is None or (known is None and not _credible(prefix)):
        return None
    if known is not None:
        return Listed(name=known.name, label=known.label, prefix=prefix, own=known.own)
    return Listed(name=path, label=_label(prefix), prefix=prefix)


def _same(one: str | None, other: str) -> bool:
    return one is not None and os.path.realpath(one) == os.path.realpath(other)


def _credible(prefix: Prefix) -> bool:
    """Whether a folder that no source named is an environment: any folder can have a bin/python in it."""
    if prefix.kind != "python":
        return True
    return prefix.python is not None and prefix.problem is None
