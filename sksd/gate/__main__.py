"""`python -m sksd.gate ORDER`: started by the daemon as root, with its channel as 3 and the local socket as 4."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

from sksd.gate import credentials
from sksd.gate.gate import Gate, log


def main() -> None:
    """`ORDER`: as for `Gate`, and {remove: files that go when the gate does}."""
    order = json.loads(sys.argv[1])
    os.umask(0o077)
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # It ends when the daemon does.
        signal.signal(each, signal.SIG_IGN)
    if credentials.service() != credentials.SERVICE:
        log(f"/etc/pam.d/{credentials.SERVICE} is missing: PAM is asked as `{credentials.FALLBACK}`")
    daemon, local = (socket.socket(fileno=number) for number in (3, 4))
    daemon.set_inheritable(False)
    local.set_inheritable(False)
    Gate(daemon, local, order).run()
    for path in order["remove"]:
        with contextlib.suppress(OSError):
            os.unlink(path)


if __name__ == "__main__":
    main()
