"""How the daemon is started: by `twistd -y sksd.tac`, by `twistd sksd`, and in the foreground by `sksd serve`.

Importing this module chooses the reactor; whatever keeps the daemon from starting is one sentence and exit code 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sksd import reactor

reactor.install()

from twisted.application import app, service  # noqa: E402
from twisted.python import usage  # noqa: E402

from sksd.errors import SksdError  # noqa: E402


class Options(usage.Options):
    """Options of `twistd sksd`."""

    synopsis = "[--config FILE]"
    longdesc = "Announces this machine, lets people log in, and starts kernels in the environment they choose."
    optParameters = [["config", "c", None, "Configuration file (default: $SKSD_CONF, else the place in the manual)."]]


def makeService(options: Options | dict[str, str | None]) -> service.IService:
    """The daemon, ready to start. Exits with one sentence and code 1 where it cannot be."""
    from twisted.internet import reactor as running

    from sksd.server import configuration
    from sksd.server.service import prepare

    try:
        file = options["config"]
        return prepare(running, configuration.read(Path(file) if file else None))
    except SksdError as error:
        raise SystemExit(f"sksd: {error}") from None


def application() -> Any:
    """For sksd.tac."""
    made = service.Application("sksd")
    makeService({"config": None}).setServiceParent(made)
    return made


def serve(config: str | None) -> None:
    """Run the daemon in the foreground until SIGINT or SIGTERM, logging to stderr. For `sksd serve`."""
    from twisted.internet import reactor as running
    from twisted.python import log

    daemon = makeService({"config": config})
    log.startLogging(sys.stderr, setStdout=False)
    made = service.Application("sksd")
    daemon.setServiceParent(made)
    app.startApplication(made, False)
    running.run()  # type: ignore[attr-defined]
