"""From a request to a running engine: find the environment, or make it, choose the kernel, activate, start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sksd import paths
from sksd.errors import EnvironmentExists, NoSuchEnvironment, NothingRequired
from sksd.proxy import requirements
from sksd.proxy.activation import Activations
from sksd.proxy.catalogue import Catalogue
from sksd.proxy.changing import Changes
from sksd.proxy.environments import Listed
from sksd.proxy.keeper import Keeper
from sksd.proxy.kernels import BOOT, MODULES, accepted, choose_kernel, requirement, shortcoming
from sksd.proxy.prefixes import normalised
from sksd.proxy.requirements import Requirement
from sksd.proxy.workers import Told
from sksd.wire import messages
from sksd.wire.names import CONNECTION_FILE, CREATED, INCOMPATIBLE, STARTED

#: Seconds that a start may take in the keeper beyond what the kernel itself is given.
_MARGIN: Final = 25.0


class SpinningUp:
    """Environments of this user, and the keeper of the engines. `login`: the clean login environment."""

    def __init__(
        self,
        keeper: Keeper,
        catalogue: Catalogue,
        changes: Changes,
        activations: Activations,
        login: Mapping[str, str],
    ) -> None:
        self._keeper = keeper
        self._catalogue = catalogue
        self._changes = changes
        self._activations = activations
        self._login = login

    async def spin_up(self, wish: messages.SpinUp, told: Told) -> messages.Outcome:
        """Started, created and started, or incompatible; raises what refuses it (sksd.errors), and leaves nothing
        behind then but an environment that it made."""
        with self._changes.named(wish.task):
            return await self._spin_up(wish, told)

    async def _spin_up(self, wish: messages.SpinUp, told: Told) -> messages.Outcome:
        required = requirements.read(wish.requirements, wish.file)
        found, outcome = await self._found_or_made(wish, required, told)
        chosen = choose_kernel(found.prefix, wish.accepts)
        lacking = requirements.unmet(found.prefix, required)
        if wish.mend and (lacking or isinstance(chosen, list)):
            await self._changes.mend(found, wish, required, isinstance(chosen, list), told)
            found = await self._catalogue.find(found.prefix.path)
            chosen = choose_kernel(found.prefix, wish.accepts)
            lacking = requirements.unmet(found.prefix, required)
        if lacking or isinstance(chosen, list):
            return _incompatible(found, chosen if isinstance(chosen, list) else [], lacking)
        prefix = found.prefix
        assert prefix.python is not None
        told.progress(messages.Progress(step="activate", message=f"activating {found.name}"))
        variables = await self._activations.activate(prefix, found.name, self._login)
        told.progress(messages.Progress(step="start", message=f"starting {chosen.package} {chosen.version}"))
        begun = await self._start(found, chosen, variables, wish)
        wrong = _unlike(begun, wish)
        if wrong is not None:
            end = messages.Shutdown(engine=begun.engine.id, grace=0.0)
            await self._keeper.call("shutdown", end, messages.Engine)
            return _incompatible(found, [wrong], [])
        return messages.Outcome(outcome=outcome, engine=begun.engine, ticket=begun.ticket)

    async def _start(
        self, found: Listed, kernel: messages.Kernel, variables: dict[str, str], wish: messages.SpinUp
    ) -> messages.BegunEngine:
        python = found.prefix.python
        assert python is not None
        cwd = wish.cwd
        if paths.guest():
            # The account's own home is everybody's who comes as a guest.
            home = str(paths.private(paths.guest_home()))
            cwd = cwd or home
            variables["HOME"] = home
            variables.pop(paths.GUEST, None)
        for name, value in wish.variables.items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
        start = messages.StartEngine(
            environment=found.name,
            prefix=found.prefix.path,
            python=found.prefix.version or "",
            kernel=kernel,
            # Frozen modules would hide the standard library from the debugger.
            arguments=[python, "-Xfrozen_modules=off", "-c", BOOT, MODULES[kernel.package], "-f", CONNECTION_FILE],
            # The wire takes only UTF-8: a kernel without such a variable is better than none.
            variables={name: value for name, value in variables.items() if _is_utf8(name + value)},
            cwd=cwd,
            linger=wish.linger,
            timeout=wish.timeout,
            label=wish.label,
        )
        return await self._keeper.call("start", start, messages.BegunEngine, timeout=wish.timeout + _MARGIN)

    async def _found_or_made(
        self, wish: messages.SpinUp, required: Sequence[Requirement], told: Told
    ) -> tuple[Listed, str]:
        try:
            return await self._catalogue.find(wish.environment), STARTED
        except NoSuchEnvironment:
            if not wish.create:
                raise
        if not required:
            raise NothingRequired(name=wish.environment)
        try:
            made = await self._changes.create(wish, told)
        except EnvironmentExists:
            # Somebody was quicker, with the same request perhaps.
            try:
                return await self._catalogue.find(wish.environment), STARTED
            except NoSuchEnvironment:
                pass
            raise
        return await self._catalogue.find(made.prefix), CREATED


def _incompatible(
    found: Listed, kernel: list[messages.Unmet], lacking: list[messages.Unmet]
) -> messages.Outcome:
    # One of the kernels would do; of the others all are needed.
    reasons = [shortcoming(part) for part in (kernel, *([each] for each in lacking)) if part]
    sentence = f"{found.name} does not fit: {'; '.join(reasons)}"
    return messages.Outcome(outcome=INCOMPATIBLE, unmet=[*kernel, *lacking], message=sentence)


def _unlike(begun: messages.BegunEngine, wish: messages.SpinUp) -> messages.Unmet | None:
    """What a Spyder kernel says of its own version, where that is not accepted: files of an editable install may
    say another. Kernels of other kinds say nothing of their package's version."""
    if begun.version is None:
        return None
    for accept in wish.accepts:
        if normalised(accept.package) == begun.engine.kernel.package and not accepted(begun.version, accept):
            mend = f"the running kernel says {begun.version}: install {requirement(accept)} anew"
            return messages.Unmet(requirement=requirement(accept), found=begun.version, mend=mend)
    return None


def _is_utf8(text: str) -> bool:
    # os.environ holds other bytes as lone surrogates.
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
