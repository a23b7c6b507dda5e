"""The proxy's process: one a user. It ends when nobody is connected; the engines have a keeper."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from sksd import reactor as choose_reactor

choose_reactor.install()

from twisted.internet import defer  # noqa: E402
from twisted.internet.protocol import Protocol  # noqa: E402
from twisted.logger import Logger  # noqa: E402

from sksd import paths  # noqa: E402
from sksd.errors import SksdError  # noqa: E402
from sksd.proxy import shell  # noqa: E402
from sksd.proxy.activation import Activations  # noqa: E402
from sksd.proxy.catalogue import Catalogue  # noqa: E402
from sksd.proxy.changing import Changes  # noqa: E402
from sksd.proxy.keeper import HandOver, Keeper  # noqa: E402
from sksd.proxy.root import Listeners, ProxyRoot  # noqa: E402
from sksd.proxy.spin_up import SpinningUp  # noqa: E402
from sksd.proxy.workers import Workers  # noqa: E402
from sksd.wire.broker import BrokerFactory  # noqa: E402
from sksd.wire.messages import Settings  # noqa: E402
from sksd.wire.names import PREAMBLE_GATE, PREAMBLE_LINK, PREAMBLE_PB  # noqa: E402
from sksd.wire.resident import Build, Entrance, Resident, run  # noqa: E402
from sksd.wire.tickets import Tickets  # noqa: E402

log = Logger()


class HangUp(Protocol):
    """For who may not speak here."""

    def connectionMade(self) -> None:
        """Not a word."""
        self.transport.abortConnection()  # type: ignore[union-attr]


class Proxy:
    """What the parts of the process share."""

    def __init__(self, reactor: Any) -> None:
        login = dict(os.environ)
        self.listeners = Listeners()
        self.keeper = Keeper(reactor, login, self.listeners.told)
        activations = Activations(partial(shell.run, reactor))
        changed = self.listeners.environments_changed
        self.catalogue = Catalogue(reactor, login, sys.prefix, changed)
        self.workers = Workers(reactor, lambda: self.resident.rest(), login)
        self.changes = Changes(self.catalogue, self.workers, changed, self.keeper.running_in)
        self.spinning = SpinningUp(self.keeper, self.catalogue, self.changes, activations, login)
        self.brokers = BrokerFactory()
        entrances: dict[bytes, Build] = {PREAMBLE_PB: self._broker, PREAMBLE_LINK: partial(HandOver, self.keeper)}
        self.resident = Resident(reactor, entrances, lambda: bool(self.workers.busy()), prologue=PREAMBLE_GATE)
        reactor.callWhenRunning(self.changes.repair_at_start)
        # Soon it will be needed, and it takes its time.
        reactor.callWhenRunning(lambda: defer.ensureDeferred(self._begin()))

    async def _begin(self) -> None:
        try:
            await self.keeper.reach()
        except SksdError as error:
            log.error("{why}", why=str(error))

    def _broker(self, entrance: Entrance) -> Protocol:
        """For a daemon's connection. Whoever can open the socket is this user, or root: no login.

        A gate's line may have come before, with the key that tickets are made with (docs/protocol.md); where it says
        that a link must follow, nobody is here.
        """
        ticket: Callable[[str], str] = lambda _: ""  # noqa: E731
        if entrance.prologue:
            key, only, user = entrance.prologue.split(" ", 2)
            ticket = partial(Tickets(key).issue, user)
            if only == "link":
                return HangUp()
        broker = self.brokers.build(False, trusted=True)
        root = ProxyRoot(
            self.keeper,
            self.catalogue,
            self.changes,
            self.spinning,
            self._set,
            self.listeners.add,
            os.getpid(),
            ticket,
        )
        broker.setNameForLocal("root", root)
        return broker

    async def _set(self, settings: Settings) -> None:
        self.catalogue.settings = settings
        await self.keeper.configure(settings)


def main() -> None:
    """Run until nobody needs it."""
    proxy: list[Proxy] = []

    def begin(reactor: Any) -> Resident:
        proxy.append(Proxy(reactor))
        return proxy[0].resident

    run(paths.proxy_socket(), begin, lambda: proxy[0].keeper.disconnect())
