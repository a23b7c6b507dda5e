"""Whether an SSH key opens the account: `python -m sksd.proxy.keys ORDER`, started by a shared host's gate with the
person's rights and nothing else, so that what a stranger sent is read by nobody who could do more."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Final

from sksd.wire import authorized_keys, sshkey

#: Seconds that a home may take; less than the gate waits.
LIMIT: Final = 20


def main() -> None:
    """`ORDER`: {"user", "home", "attempt": a `sshkey.Attempt`}, JSON; visible to others, and no secret, for the nonce
    is spent. Says {"ready": true}, or {"error": ...}, on its stdout."""
    signal.alarm(LIMIT)
    order = json.loads(sys.argv[1])
    attempt = sshkey.read_attempt(json.dumps(order["attempt"]))
    right = authorized_keys.admits(Path(order["home"]), order["user"], attempt)
    sys.stdout.write(json.dumps({"ready": True} if right else {"error": "none of these keys"}) + "\n")


if __name__ == "__main__":
    main()
