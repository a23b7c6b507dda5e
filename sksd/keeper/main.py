"""The keeper's process: one a user. It ends when nobody is connected, no engine is left, and no link waits for its
front end to come back."""

from __future__ import annotations

import os
import shutil
from typing import Any, Final

from sksd import reactor as choose_reactor

choose_reactor.install()

from sksd import paths  # noqa: E402
from sksd.errors import SksdError  # noqa: E402
from sksd.keeper.engine import Engine, Sizes  # noqa: E402
from sksd.keeper.engines import SIZES, Engines  # noqa: E402
from sksd.keeper.links import Links  # noqa: E402
from sksd.keeper.log import BoundedLogs  # noqa: E402
from sksd.keeper.looking import Looking  # noqa: E402
from sksd.keeper.root import KeeperRoot, Listeners  # noqa: E402
from sksd.wire.broker import BrokerFactory, LimitedBroker  # noqa: E402
from sksd.wire.messages import Settings  # noqa: E402
from sksd.wire.names import DEAD, PREAMBLE_HANDOVER, PREAMBLE_LINK, PREAMBLE_PB  # noqa: E402
from sksd.wire.resident import Entrance, Resident, lock, run  # noqa: E402

#: Shorter than a proxy's, which keeps it company.
LINGER: Final = 0.2


class Keeper:
    """What the parts of the process share."""

    def __init__(self, reactor: Any) -> None:
        self.listeners = Listeners()
        self.logs = BoundedLogs(reactor, Settings().log_size)
        self.engines = Engines(reactor, self.logs, self._changed)
        self.looking = Looking(reactor, self.engines)
        self.links = Links(reactor, self.engines, self._rest)
        self.brokers = BrokerFactory()
        self.resident = Resident(
            reactor,
            {
                PREAMBLE_PB: self._broker,
                PREAMBLE_LINK: lambda _: self.links.door(),
                PREAMBLE_HANDOVER: self.links.handover,
            },
            lambda: bool(self.engines.living() or self.links.waiting()),
            LINGER,
        )
        self.engines.adopt()

    def _changed(self, engine: Engine) -> None:
        self.listeners.changed(engine)
        if engine.state == DEAD:
            self._rest()

    def _rest(self) -> None:
        self.resident.rest()

    def _broker(self, _: Entrance) -> LimitedBroker:
        """For a proxy's connection. Whoever can open the socket is this user, or root: no login."""
        broker = self.brokers.build(False, trusted=True)
        broker.setNameForLocal("root", KeeperRoot(self.engines, self._set, self.listeners.add, os.getpid()))
        return broker

    def _set(self, settings: Settings) -> None:
        self.logs.resize(settings.log_size)
        self.looking.allow(settings.idle_timeout)
        self.engines.sizes = Sizes(settings.journal_size, settings.buffer_size, SIZES.memory)

    def release(self) -> None:
        """Called when the process ends."""
        self.looking.stop()
        self.engines.release()


def main() -> None:
    """Run until nobody needs it."""
    keeper: list[Keeper] = []

    def begin(reactor: Any) -> Resident:
        keeper.append(Keeper(reactor))
        return keeper[0].resident

    run(paths.keeper_socket(), begin, lambda: keeper[0].release())
    if paths.guest() and not keeper[0].engines.living():
        forget_guest()


def forget_guest() -> None:
    """A guest has gone and no engine is left: nothing of the guest stays, unless a proxy has come meanwhile."""
    try:
        held = lock(paths.proxy_socket().with_suffix(".lock"))
    except SksdError:
        return
    for folder in (paths.state(), paths.runtime()):
        shutil.rmtree(folder, ignore_errors=True)
    os.close(held)
