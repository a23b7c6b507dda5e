"""From a request to a running engine: find the environment, choose the kernel, activate, start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from sksd import paths
from sksd.proxy.activation import Activations
from sksd.proxy.environments import find_environment, list_environments
from sksd.proxy.keeper import Keeper
from sksd.proxy.kernels import BOOT, MODULES, choose_kernel, shortcoming
from sksd.proxy.prefixes import PrefixReader
from sksd.proxy.sources import Sources
from sksd.wire import messages
from sksd.wire.names import CONNECTION_FILE, INCOMPATIBLE, STARTED

#: Seconds that a start may take in the keeper beyond what the kernel itself is given.
_MARGIN: Final = 25.0

#: Told of each step: one word, and a sentence for the person.
Progress = Callable[[str, str], None]


class SpinningUp:
    """Environments of this user, and the keeper of the engines. `login`: the clean login environment; `own`: the
    prefix that sksd itself runs in. `settings` are replaced when a daemon tells what its configuration says."""

    def __init__(self, keeper: Keeper, activations: Activations, login: Mapping[str, str], own: str) -> None:
        self._keeper = keeper
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
        for name, value in wish.variables.items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
        start = messages.StartEngine(
            environment=found.name,
            prefix=prefix.path,
            python=prefix.version or "",
            kernel=chosen,
            # Frozen modules would hide the standard library from the debugger.
            arguments=[
                prefix.python,
                "-Xfrozen_modules=off",
                "-c",
                BOOT,
                MODULES[chosen.package],
                "-f",
                CONNECTION_FILE,
            ],
            # The wire takes only UTF-8: a kernel without such a variable is better than none.
            variables={name: value for name, value in variables.items() if _is_utf8(name + value)},
            cwd=wish.cwd,
            linger=wish.linger,
            timeout=wish.timeout,
            label=wish.label,
        )
        outcome = await self._keeper.call("start", start, messages.Outcome, timeout=wish.timeout + _MARGIN)
        outcome.outcome = STARTED
        return outcome


def _is_utf8(text: str) -> bool:
    # os.environ holds other bytes as lone surrogates.
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
