"""The environments of this user as a service: read off the reactor's thread, found by name, told when they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sksd import paths
from sksd.proxy.details import Details
from sksd.proxy.environments import Listed, described, excluded, find_environment, gather
from sksd.proxy.prefixes import PrefixReader
from sksd.proxy.reading import Reader
from sksd.proxy.sources import At, Sources
from sksd.wire import messages


class Catalogue:
    """`login`: the clean login environment; `own`: the prefix that sksd itself runs in. `changed` is called when a
    listing is another than the last one was. `settings` are replaced when a daemon tells what its configuration
    says."""

    def __init__(self, reactor: Any, login: Mapping[str, str], own: str, changed: Callable[[], None]) -> None:
        self.settings = messages.Settings()
        self._login = login
        self._own = own
        self._changed = changed
        self._reader = Reader(reactor)
        self._prefixes = PrefixReader()
        self._details = Details(reactor.seconds)
        self._last: list[Listed] | None = None

    def _sources(self) -> Sources:
        return Sources(
            home=str(paths.home()),
            environ=self._login,
            own=self._own,
            exclude=self.settings.exclude,
            paths=self.settings.paths,
        )

    async def listing(self, query: messages.EnvironmentsQuery) -> messages.Environments:
        """The environments as they are now, judged by what a front end accepts."""
        sources = self._sources()

        def read(at: At) -> tuple[list[Listed], list[messages.Environment]]:
            everything = gather(sources, self._prefixes, at)
            shown = [each for each in everything if not excluded(each, sources.exclude) and at(each.prefix.path)]
            return shown, [described(listed, query.accepts) for listed in shown]

        (shown, found), silent = await self._reader.read(read)
        if self._last is not None and shown != self._last:
            self._changed()
        self._last = shown
        if query.detail:
            prefixes = [listed.prefix for listed in shown]
            about, more = await self._reader.read(lambda at: self._details.of(prefixes, at))
            silent = sorted({*silent, *more})
            for listed, environment in zip(shown, found, strict=True):
                environment.size, environment.last_use = about[listed.prefix.path]
        return messages.Environments(environments=found, silent=silent)

    async def find(self, text: str, *, broken: bool = False) -> Listed:
        """The environment that `text` names. Raises as `find_environment`, and FolderSilent."""
        sources = self._sources()
        found, _ = await self._reader.read(
            lambda at: find_environment(sources, self._prefixes, text, at, broken=broken)
        )
        return found
