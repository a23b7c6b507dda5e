"""The port's certificate, renewed while the daemon runs: new connections get the new one, the others stay."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet import task
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from sksd.errors import SksdError
from sksd.server.certificate import Identity, context_factory

log = Logger()

#: Seconds between two looks at the files.
LOOK: Final = 60.0


def _seen(paths: list[Path]) -> list[tuple[int, ...] | None]:
    found: list[tuple[int, ...] | None] = []
    for path in paths:
        try:
            about = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size, about.st_mode))
    return found


@implementer(IOpenSSLServerConnectionCreator)
class Renewed:
    """Makes the TLS of each connection from the identity that counts now.

    `load()` reads the files anew and raises an SksdError when they cannot be used; `changed(identity)` is called when
    another identity counts. `files` are looked at every LOOK seconds from `start` to `stop`.
    """

    def __init__(
        self,
        reactor: Any,
        identity: Identity,
        load: Callable[[], Identity],
        changed: Callable[[Identity], None],
        client_ca: Path | None = None,
    ) -> None:
        self._load = load
        self._changed = changed
        self._files = [identity.certificate, identity.key, *([client_ca] if client_ca else [])]
        self._seen = _seen(self._files)
        self._use(identity)
        self._looking = task.LoopingCall(self._look)
        self._looking.clock = reactor

    def _use(self, identity: Identity) -> None:
        options = context_factory(identity)
        # Made here, so that what OpenSSL does not take is found out before it counts.
        context = options.getContext()
        self.identity, self._context = identity, context

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Called by Twisted for each connection."""
        return SSL.Connection(self._context, None)

    def start(self) -> None:
        """Called when the daemon listens."""
        self._looking.start(LOOK, now=False).addErrback(
            lambda failure: log.failure("the certificate is no longer looked at", failure=failure)
        )

    def stop(self) -> None:
        """Called when the daemon stops."""
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        if _seen(self._files) != self._seen:
            self.reload()

    def reload(self) -> None:
        """Read the files anew. Called upon SIGHUP, and when they have changed. One that cannot be used is told of in
        the log, and the old one stays."""
        # Before it is read: what changes meanwhile is looked at again.
        self._seen = _seen(self._files)
        try:
            identity = self._load()
            self._use(identity)
        except (SksdError, SSL.Error) as error:
            problem = str(error) if isinstance(error, SksdError) else "OpenSSL refuses it"
            log.error("the certificate was not renewed, the one before stays: {problem}", problem=problem)
            return
        log.info("the certificate was read anew, its fingerprint is {shown}", shown=identity.fingerprint)
        self._changed(identity)
