"""Changes by conda, mamba, micromamba or pixi, for who has configured one of them: the same contract as rattler's.

The executable makes the plan and the change, and keeps history and lists as it does; locks, notes, pip's packages,
what is refused and what is undone are the same as with rattler. Never chosen by sksd itself.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rattler.platform import Subdir

from sksd.conda import changing, children, export, history, making, places, records, registry
from sksd.conda.messages import Action, BackendName, Done, Operation, Plan
from sksd.conda.pip import check
from sksd.conda.records import Record
from sksd.conda.secrets import mask
from sksd.conda.solve import spec_of
from sksd.conda.work import Work, by_name
from sksd.errors import (
    BackendFailed,
    BackendMissing,
    BadRequest,
    ChannelUnreachable,
    DiskFull,
    NoSuchPackage,
    PixiWorkspace,
    SksdError,
    Unsolvable,
)

#: Of what a program says about its failure.
_LONGEST: Final = 2000


class Tool:
    """The configured executable, at work on one prefix."""

    def __init__(self, work: Work) -> None:
        self._work = work
        wanted = work.job.executable or work.job.backend
        found = shutil.which(wanted)
        if found is None:
            raise BackendMissing(
                name=work.job.name, backend=work.job.backend, executable=wanted, problem="it is not there"
            )
        self._executable = found

    async def plan(self, *arguments: str) -> Plan:
        """What `arguments` would do, by a dry run of its own."""
        self._work.out.progress("solving", f"{self._work.job.backend} is finding packages that fit together.")
        answer = await self._run([*arguments, "--dry-run"])
        return plan_of(answer, records.read(self._work.prefix))

    async def change(self, *arguments: str) -> None:
        """Do it."""
        self._work.out.progress("linking", f"{self._work.job.backend} is changing the packages.")
        await self._run(list(arguments))

    async def pixi(self, *arguments: str) -> None:
        """Run pixi, which has no JSON for this."""
        self._work.out.progress("linking", "pixi is changing the workspace.")
        await self._call([self._executable, *arguments])

    async def _run(self, arguments: list[str]) -> dict[str, Any]:
        job = self._work.job
        command, *rest = arguments
        options = ["--yes", "--json", "--prefix", self._work.prefix]
        if job.channels or job.host.channels:
            options.append("--override-channels")
            options += [word for name in self._work.sources.names for word in ("--channel", name)]
        if self._work.sources.offline:
            options.append("--offline")
        return await self._call([self._executable, command, *options, *rest])

    async def _call(self, command: list[str]) -> dict[str, Any]:
        work = self._work

        def heard(line: str) -> None:
            for part in line.split("\0"):
                if (fetched := progress_of(part)) is not None:
                    work.out.progress("downloading", *fetched)

        environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        try:
            code, errors, output = await children.run(command, environ, work.lock_of(work.prefix), heard)
        except OSError as error:
            problem = error.strerror or str(error)
            raise BackendMissing(
                name=work.name, backend=work.job.backend, executable=command[0], problem=problem
            ) from None
        answer = answer_of(output)
        if code or answer.get("success") is False:
            raise reason_of(answer, errors, work)
        return answer


def answer_of(output: str) -> dict[str, Any]:
    """The last JSON document of what conda wrote; empty where there is none."""
    decoder = json.JSONDecoder()
    found: dict[str, Any] = {}
    for part in output.split("\0"):
        start = part.find("{")
        while start >= 0:
            try:
                document, end = decoder.raw_decode(part, start)
            except ValueError:
                start = part.find("\n{", start + 1)
                start += start >= 0
                continue
            found = document if isinstance(document, dict) else found
            start = part.find("{", end)
    return found


def progress_of(line: str) -> tuple[str, int, int] | None:
    """Sentence, per cent, 100 of one of conda's lines about a download."""
    if '"fetch"' not in line or '"progress"' not in line:
        return None
    try:
        document = json.loads(line)
        return f"Downloading {document['fetch'].strip()}.", int(100 * float(document["progress"])), 100
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def plan_of(answer: Mapping[str, Any], installed: Mapping[str, Record]) -> Plan:
    """The plan in conda's answer to a dry run; mamba and micromamba answer in the same shape."""
    actions = answer.get("actions")
    actions = actions[0] if isinstance(actions, list) and actions else actions
    if not isinstance(actions, dict):
        return Plan(actions=[])
    linked = {str(each.get("name")): each for each in actions.get("LINK") or ()}
    fetched = {str(each.get("name")): each for each in actions.get("FETCH") or ()}
    found = []
    for name, each in sorted(linked.items()):
        old = installed.get(name)
        version = str(each.get("version", ""))
        kind = "install" if old is None else "reinstall" if old.version == version else "upgrade"
        if old is not None and kind == "upgrade" and _older(version, old.version):
            kind = "downgrade"
        found.append(
            Action(
                action=kind,  # type: ignore[arg-type]
                name=name,
                version=version,
                build=str(each.get("build_string") or each.get("build") or ""),
                channel=mask(str(each.get("base_url") or each.get("channel") or "")),
                size=fetched.get(name, {}).get("size"),
                old_version=old.version if old else "",
            )
        )
    gone = {str(each.get("name")): each for each in actions.get("UNLINK") or ()}
    for name in sorted(set(gone) - set(linked)):
        found.append(Action(action="remove", name=name, version=str(gone[name].get("version", ""))))
    return Plan(actions=found, download_bytes=sum(int(each.get("size") or 0) for each in fetched.values()))


def _older(one: str, other: str) -> bool:
    import rattler

    return rattler.Version(one) < rattler.Version(other)


def reason_of(answer: Mapping[str, Any], errors: Sequence[str], work: Work) -> SksdError:
    """Why it failed, from conda's JSON or from the last lines it wrote."""
    kind = str(answer.get("exception_name", ""))
    problems = answer.get("solver_problems")
    said = "\n".join(map(str, problems)) if isinstance(problems, list) else str(answer.get("message") or "")
    said = mask(said or "\n".join(errors[-5:]) or "it did not say why").strip()[:_LONGEST]
    if "NoSpaceLeft" in kind or "No space left on device" in said:
        return DiskFull(path=work.prefix)
    if kind.startswith(("PackagesNotFound", "ResolvePackageNotFound")):
        wanted = ", ".join(map(str, answer.get("packages") or answer.get("bad_deps") or ())) or said
        return NoSuchPackage(name=work.name, spec=wanted, channels=", ".join(work.sources.names))
    if "Unsatisfiable" in kind or "SpecsConfigurationConflict" in kind or problems:
        return Unsolvable(name=work.name, problem=said)
    if kind in ("CondaHTTPError", "CondaSSLError", "UnavailableInvalidChannel", "ProxyError", "ConnectionError"):
        return ChannelUnreachable(name=work.name, url=", ".join(work.sources.names), problem=said)
    return BackendFailed(name=work.name, backend=work.job.backend, problem=said)


# -- conda, mamba, micromamba ------------------------------------------------------------------------------------


async def create(work: Work) -> Done:
    """A new environment, from specs or from a file."""
    job = work.job
    tool = Tool(work)
    given, exact = making.described(work)
    prefix = places.new(job.prefix, job.name, work.sources.folders)
    await work.lock(prefix)
    places.refuse_making(prefix)
    pip = [*given.pip, *job.pip]
    if exact is None and given.urls:
        exact = await work.solver.exactly(given.urls)
    with tempfile.TemporaryDirectory(prefix="sksd-") as folder:
        if exact is not None:
            making.miss_kernel(work, [each.name.normalized for each in exact])
            arguments = ["create", "--file", _listed(folder, [f"{each.url}{_hash(each.md5)}" for each in exact])]
            plan = await work.solver.plan({}, exact)
        else:
            specs = making.wanted([*given.specs, *job.specs], pip, (), job.kernel)
            bounds = job.kernel.bounds if job.kernel else []
            # Channels of a file: conda takes those of an environment.yml alone.
            more = [word for name in given.channels if name != "nodefaults" for word in ("--channel", name)]
            arguments = ["create", *more, *_checked(work, [*specs, *bounds])]
            plan = await tool.plan(*arguments)
        plan.actions += [Action(action="install", name=history.name_of(line), channel="pypi") for line in pip]
        work.out.event(plan)
        if job.dry_run:
            return work.done(changed=False)
        work.begin(work.make_note(prefix))
        await tool.change(*arguments)
    if pip:
        await work.pip().install(pip)
    return _made(work, given.variables)


async def clone(work: Work) -> Done:
    """A new environment with the packages of another; rename: and that one's end."""
    job = work.job
    tool = Tool(work)
    source, prefix = await work.copied()
    installed = records.read(source)
    kept = [
        Action(action="install", name=each.name, version=each.version, build=each.build, channel=mask(each.base))
        for each in installed.values()
    ]
    work.out.event(Plan(actions=kept))
    if job.dry_run:
        return work.done(changed=False)
    work.begin(work.make_note(prefix))
    with tempfile.TemporaryDirectory(prefix="sksd-") as folder:
        text = export.explicit(str(Subdir.current()), installed.values())
        await tool.change("create", "--file", _listed(folder, text.partition("@EXPLICIT\n")[2].splitlines()))
    making.copy_rest(source, prefix, {file for each in installed.values() for file in each.files})
    done = _made(work, {})
    if job.operation == "rename":
        await making.erase_all(work, source)
    return done


async def change(work: Work) -> Done:
    """Add, update or remove packages."""
    job = work.job
    tool = Tool(work)
    installed = await changing.opened(work)
    by_pip = records.pip_installed(work.prefix)
    arguments: list[str] = []
    unpip: list[str] = []
    match job.operation:
        case "add":
            if job.specs:
                arguments = ["install", *_checked(work, [*job.specs, *_kernel(work, installed)])]
            elif not job.pip:
                raise BadRequest(problem="name the packages to add")
        case "update":
            changing.check_installed(work, by_name(job.specs), installed)
            if job.specs or not job.pip:
                arguments = _update(work, _checked(work, job.specs), _kernel(work, installed))
        case _:
            names = [*by_name(job.specs), *(history.name_of(line) for line in job.pip)]
            unpip = [name for name in names if name not in installed and records.normal(name) in by_pip]
            names = [name for name in names if name not in unpip]
            changing.check_installed(work, names, installed)
            arguments = ["remove", *names] if names else []
    plan = await tool.plan(*arguments) if arguments else Plan(actions=[])
    pip = job.pip if job.operation != "remove_packages" else []
    plan.actions += [Action(action="install", name=history.name_of(line), channel="pypi") for line in pip]
    work.out.event(plan)
    if pip or unpip:
        check(work.prefix, work.name)
    if job.dry_run or not (plan.actions or unpip):
        return work.done(changed=False)
    note = work.change_note([], bool(pip or unpip))
    note.new = [f"{each.name}-{each.version}-{each.build}" for each in plan.actions if each.channel != "pypi"]
    work.begin(note)
    if arguments:
        await tool.change(*arguments)
    if unpip:
        await work.pip().uninstall(unpip)
    if pip:
        await work.pip().install(pip, upgrade=job.operation == "update")
    registry.register(work.registry, work.prefix)
    work.settle()
    return work.done(changed=True)


def _kernel(work: Work, installed: Mapping[str, Record]) -> list[str]:
    """What must hold of the kernel that is there."""
    kernel = work.job.kernel
    if kernel is None or history.name_of(kernel.spec) not in installed:
        return []
    named = by_name(work.job.specs)
    return [spec for spec in (kernel.spec, *kernel.bounds) if history.name_of(spec) not in named]


def _update(work: Work, specs: list[str], kernel: list[str]) -> list[str]:
    if work.job.backend != "conda":
        return ["update", *([*specs, *kernel] if specs else ["--all"])]
    # conda's update takes bare names alone.
    if specs:
        bare = not kernel and all(history.name_of(spec) == spec for spec in specs)
        return ["update" if bare else "install", *specs, *kernel]
    return ["install", "--update-all", *kernel] if kernel else ["update", "--all"]


def _made(work: Work, variables: Mapping[str, str]) -> Done:
    # micromamba makes no history for an environment without packages.
    meta = Path(work.prefix, "conda-meta")
    meta.mkdir(parents=True, exist_ok=True)
    (meta / "history").touch()
    if variables:
        making.write_variables(work.prefix, variables)
    registry.register(work.registry, work.prefix)
    work.settle()
    return work.done(changed=True)


def _checked(work: Work, specs: Sequence[str]) -> list[str]:
    """Raises BadSpec: no spec may be taken for an option; ChannelNotAllowed."""
    for spec in specs:
        spec_of(spec)
        if "::" in spec:
            work.sources.place(spec.partition("::")[0].strip())
    return list(specs)


def _listed(folder: str, lines: Sequence[str]) -> str:
    path = Path(folder, "explicit.txt")
    path.write_text("\n".join(["@EXPLICIT", *lines, ""]), encoding="utf-8")
    return str(path)


def _hash(md5: bytes | None) -> str:
    return f"#{md5.hex()}" if md5 else ""


# -- pixi --------------------------------------------------------------------------------------------------------


async def pixi(work: Work) -> Done:
    """Add or remove packages of a pixi workspace, by its manifest."""
    job = work.job
    prefix = work.existing()
    await work.lock(prefix)
    workspace = places.pixi_workspace(prefix)
    if workspace is None or job.dry_run:
        problem = "it changes workspaces of its own alone" if workspace is None else "it has no dry run for this"
        raise BackendFailed(name=work.name, backend="pixi", problem=problem)
    word = "add" if job.operation == "add" else "remove"
    tool = Tool(work)
    for specs, more in ((_checked(work, job.specs), []), (job.pip, ["--pypi"])):
        if specs:
            await tool.pixi(word, "--manifest-path", workspace, *more, *specs)
    return work.done(changed=True)


async def _not_pixi(work: Work) -> Done:
    job = work.job
    prefix = job.prefix or job.name
    command = {"update": "pixi update", "clone": "pixi init"}.get(job.operation, "pixi init")
    raise PixiWorkspace(name=prefix, prefix=prefix, command=command)


_CONDA: Final[dict[Operation, Callable[[Work], Awaitable[Done]]]] = {
    "create": create,
    "import": create,
    "clone": clone,
    "rename": clone,
    "add": change,
    "update": change,
    "remove_packages": change,
}
_PIXI: Final[dict[Operation, Callable[[Work], Awaitable[Done]]]] = {
    **dict.fromkeys(_CONDA, _not_pixi),
    "remove": _not_pixi,
    "add": pixi,
    "remove_packages": pixi,
}
#: What is done another way than with rattler.
OPERATIONS: Final[dict[tuple[BackendName, Operation], Callable[[Work], Awaitable[Done]]]] = {
    **{(name, word): run for name in ("conda", "mamba", "micromamba") for word, run in _CONDA.items()},  # type: ignore[misc]
    **{("pixi", word): run for word, run in _PIXI.items()},
}
