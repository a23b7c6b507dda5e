"""From a request to a running engine: find the environment, or make it, choose the kernel, activate, start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.logger import Logger

from sksd.errors import EnvironmentExists, NoSuchEnvironment, NothingRequired
from sksd.proxy import requirements
from sksd.proxy.activation import Activations
from sksd.proxy.catalogue import Catalogue
from sksd.proxy.changing import Changes
from sksd.proxy.engine import Engine
from sksd.proxy.engines import Engines
from sksd.proxy.environments import Listed
from sksd.proxy.kernels import accepted, choose_kernel, requirement, shortcoming
from sksd.proxy.prefixes import normalised
from sksd.proxy.requirements import Requirement
from sksd.proxy.workers import Told
from sksd.wire import messages
from sksd.wire.names import CREATED, INCOMPATIBLE, STARTED

log = Logger()


class SpinningUp:
    """Environments and engines of this user together. `login`: the clean login environment."""

    def __init__(
        self,
        engines: Engines,
        catalogue: Catalogue,
        changes: Changes,
        activations: Activations,
        login: Mapping[str, str],
    ) -> None:
        self._engines = engines
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
        engine = await self._engines.start(
            wish, found.name, prefix.path, prefix.python, prefix.version, chosen, variables
        )
        wrong = _unlike(engine, wish)
        if wrong is not None:
            await engine.stop(0.0)
            return _incompatible(found, [wrong], [])
        ticket = messages.Ticket(
            ticket="", engine=engine.record.id, key=str(engine.record.connection["key"]), kernel_name=""
        )
        log.info("engine {id} runs in {prefix}", id=engine.record.id, prefix=prefix.path)
        return messages.Outcome(outcome=outcome, engine=engine.describe(), ticket=ticket)

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


def _unlike(engine: Engine, wish: messages.SpinUp) -> messages.Unmet | None:
    """What a Spyder kernel says of its own version, where that is not accepted: files of an editable install may
    say another. Kernels of other kinds say nothing of their package's version."""
    match engine.kernel_info.get("spyder_kernels_info"):
        case [str() as version, *_]:
            package = engine.record.kernel.package
            for accept in wish.accepts:
                if normalised(accept.package) == package and not accepted(version, accept):
                    mend = f"the running kernel says {version}: install {requirement(accept)} anew"
                    return messages.Unmet(requirement=requirement(accept), found=version, mend=mend)
    return None
