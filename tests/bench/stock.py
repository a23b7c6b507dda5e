"""A stock Perspective Broker server over TLS 1.3, to measure beside; prints its port. `ada` gets in by `lovelace`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sksd import reactor as choose_reactor

choose_reactor.install()

from twisted.cred import checkers, portal  # noqa: E402
from twisted.internet import reactor  # noqa: E402
from twisted.spread import pb  # noqa: E402
from zope.interface import implementer  # noqa: E402

from sksd.server import certificate  # noqa: E402


class Person(pb.Avatar):
    """Does nothing."""

    def perspective_ping(self) -> None:
        """Nothing."""


@implementer(portal.IRealm)
class Realm:
    """Everybody is one."""

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        """Called by the portal."""
        return pb.IPerspective, Person(), lambda: None


if __name__ == "__main__":
    people = checkers.InMemoryUsernamePasswordDatabaseDontUse(ada=b"lovelace")
    factory = pb.PBServerFactory(portal.Portal(Realm(), [people]))
    options = certificate.context_factory(certificate.own(Path(sys.argv[1])))
    loop: Any = reactor
    port = loop.listenSSL(0, factory, options, interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    loop.run()
