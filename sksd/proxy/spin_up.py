"""From a request to a running engine: find the environment, choose the kernel, activate, start."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.logger import Logger

from sksd import paths
from sksd.proxy.activation import Activations
from sksd.proxy.engines import Engines
from sksd.proxy.environments import find_environment, list_environments
from sksd.proxy.kernels import choose_kernel, shortcoming
from sksd.proxy.prefixes import PrefixReader
from sksd.proxy.sources import Sources
from sksd.wire import messages
from sksd.wire.names import INCOMPATIBLE, STARTED

log = Logger()

#: Told of each step: one word, and a sentence for the person.
Progress = Callable[[str, str], None]


class SpinningUp:
    """Environments and engines of this user together. `login`: the clean login environment; `own`: the prefix that
    sksd itself runs in. `settings` are replaced when a daemon tells what its configuration says."""

    def __init__(
        self, engines: Engines, activations: Activations, login: Mapping[str, str], own: str
    ) -> None:
        self.engines = engines
        self.settings = messages.Settings()
        self._activations = activations
        self._login = login
        self._own = own
        self._reader = PrefixReader()

    def _sources(self) -> Sources:
        return Sources(
            home=str(paths.home()),
            environ=self._login,
            own=self._own,
            exclude=self.settings.exclude,
            paths=self.settings.paths,
        )

    def listing(self, accepts: list[messages.Accept]) -> list[messages.Environment]:
        """The environments as they are now, judged by what a front end accepts."""
        return list_environments(self._sources(), self._reader, accepts)

    async def spin_up(self, wish: messages.SpinUp, progress: Progress) -> messages.Outcome:
        """Started or incompatible; raises what refuses it (sksd.errors), and leaves nothing behind then."""
        found = find_environment(self._sources(), self._reader, wish.environment)
        prefix = found.prefix
        chosen = choose_kernel(prefix, wish.accepts)
        if isinstance(chosen, list):
            sentence = f"{found.name} does not fit: {shortcoming(chosen)}"
            return messages.Outcome(outcome=INCOMPATIBLE, unmet=chosen, message=sentence)
        assert prefix.python is not None
        progress("activate", f"activating {found.name}")
        variables = await self._activations.activate(prefix, found.name, self._login)
        progress("start", f"starting {chosen.package} {chosen.version}")
        engine = await self.engines.start(
            wish, found.name, prefix.path, prefix.python, prefix.version, chosen, variables
        )
        ticket = messages.Ticket(
            ticket="", engine=engine.record.id, key=str(engine.record.connection["key"]), kernel_name=""
        )
        log.info("engine {id} runs in {prefix}", id=engine.record.id, prefix=prefix.path)
        return messages.Outcome(outcome=STARTED, engine=engine.describe(), ticket=ticket)
