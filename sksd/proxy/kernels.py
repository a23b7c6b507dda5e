"""Which kernel of an environment a front end can work with, and what would mend it where there is none."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from packaging.version import InvalidVersion, Version

from sksd.errors import BadRequest
from sksd.proxy.prefixes import CONDA, PIXI, Prefix, normalised
from sksd.wire.messages import Accept, Kernel, Unmet

#: The packages that can be started, the preferred first, and the module of each that takes `-f CONNECTION_FILE`.
MODULES = {"spyder-kernels": "spyder_kernels.console", "ipykernel": "ipykernel_launcher"}
#: Starts the module in the first argument as `python -m` would, with sockets that never drop what the kernel says: a
#: PUB of ZeroMQ drops once 1,000 messages wait, and no kernel has an option for that. Only the kernel's own sockets
#: are made so, up to the one that publishes, which is its last.
BOOT = """\
import runpy, sys, zmq
make = zmq.Context.socket
def socket(self, kind, *args, **options):
    made = make(self, kind, *args, **options)
    made.sndhwm = 0
    if kind in (zmq.PUB, zmq.XPUB):
        zmq.Context.socket = make
    return made
zmq.Context.socket = socket
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
#: What must hold beside a kernel package for a front end to work with it (docs/decisions/0002).
BOUNDS = {"spyder-kernels": ("ipython<9.18",)}
#: What counts when the front end names nothing.
ANY_KERNEL = tuple(Accept(package=package) for package in MODULES)


def choose_kernel(prefix: Prefix, accepts: Sequence[Accept] = ()) -> Kernel | list[Unmet]:
    """The first of `accepts` that `prefix` has, or what it lacks: one Unmet for each, since any one would do.

    Called by a listing for its `fits`, and by spin_up, which turns the Unmets into "environment
    incompatible". An environment without Python lacks just that. Raises BadRequest for a range whose ends are
    not versions, and for a package that is not one of MODULES.
    """
    accepts = accepts or ANY_KERNEL
    unmet: list[Unmet] = []
    for accept in accepts:
        package = normalised(accept.package)
        if package not in MODULES:
            raise BadRequest(problem=f"{package} is no kernel that can be started: {' or '.join(MODULES)} is")
        found = prefix.packages.get(package) if prefix.python is not None else None
        inside = accepted(found or "0", accept)
        if found is not None and inside:
            return Kernel(package=package, version=found)
        wanted = requirement(accept)
        unmet.append(Unmet(requirement=wanted, found=found, mend=mending(prefix, wanted, found)))
    if prefix.python is None:
        return [Unmet(requirement="python", found=None, mend=mending(prefix, requirement(accepts[0]), None))]
    return unmet


def accepted(version: str, accept: Accept) -> bool:
    """Whether `low <= version < high`, as Spyder compares (check_version_range in spyder/utils/programs.py).

    A pre-release of `high` is inside, and so is every version with dev0 in it. A version that packaging
    cannot read is outside a range that has an end. Raises BadRequest where an end of the range is not a
    version.
    """
    low, high = (_end(accept, end) for end in (accept.low, accept.high))
    if "dev0" in version or (low is None and high is None):
        return True
    try:
        parsed = Version(version)
    except InvalidVersion:
        return False
    return (low is None or low <= parsed) and (high is None or parsed < high)


def requirement(accept: Accept) -> str:
    """The range in the words of pip and conda: `spyder-kernels>=3.1,<3.2`."""
    ends = [sign + end for sign, end in ((">=", accept.low), ("<", accept.high)) if end]
    return normalised(accept.package) + ",".join(ends)


def shortcoming(unmet: Sequence[Unmet]) -> str:
    """The Unmets of `choose_kernel` as one reason for a listing.

    Such as "spyder-kernels>=3.1,<3.2 is needed, 3.0.5 is there".
    """
    if [item.requirement for item in unmet] == ["python"]:
        return "there is no Python in it"
    there = [f"{item.requirement} is needed, {item.found} is there" for item in unmet if item.found]
    missing = [item.requirement for item in unmet if not item.found]
    if missing:
        there.append(f"{' or '.join(missing)} is not installed")
    return "; ".join(there)


def _end(accept: Accept, text: str | None) -> Version | None:
    if not text:
        return None
    try:
        return Version(text)
    except InvalidVersion:
        raise BadRequest(problem=f"'{text}' in the range of {accept.package} is not a version") from None


def mending(prefix: Prefix, wanted: str, found: str | None, *, pip: bool = False) -> str:
    """What a person would type on the host to have `wanted` (a conda spec, or a requirement of pip's) in `prefix`."""
    wanted = shlex.quote(wanted)
    if prefix.kind in (CONDA, PIXI) and prefix.python is None and not wanted.startswith("python"):
        wanted = f"python {wanted}"
    where = shlex.quote(prefix.path)
    if prefix.kind == PIXI:
        # PROJECT/.pixi/envs/NAME, or for tools of the user ~/.pixi/envs/NAME.
        envs, name = os.path.split(prefix.path)
        folder = os.path.dirname(os.path.dirname(envs))
        if folder == os.path.expanduser("~"):
            command = f"pixi global add --environment {shlex.quote(name)} {wanted}"
        else:
            command = f"cd {shlex.quote(folder)} && pixi add {'--pypi ' if pip else ''}{wanted}"
    elif prefix.kind == CONDA and (prefix.python is None or not pip):
        command = f"conda install -p {where} {wanted}"
    elif prefix.python is None:
        return f"make it again: python3 -m venv --clear {where}"
    else:
        command = f"{shlex.quote(prefix.python)} -m pip install {wanted}"
    return f"{'install it' if found is None else 'change it'}: {command}"


def kernel_spec(accepts: Sequence[Accept]) -> tuple[str, tuple[str, ...]]:
    """The conda spec of the kernel that a new environment gets for a front end, and the bounds that go with it."""
    first = (accepts or ANY_KERNEL)[0]
    return requirement(first), BOUNDS.get(normalised(first.package), ())
