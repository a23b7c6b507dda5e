"""One login session of one person: root's part of it, which holds the PAM session and waits, and below it the proxy,
the engines, and whatever they start. `python -m sksd.gate.session ORDER`; started by the gate, which it outlives.

It says {"ready": true} or {"error": sentence} on its stdout; the first is the proxy's own word.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, Final

from sksd import paths
from sksd.errors import SksdError
from sksd.gate import credentials, person

_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_PR_SET_CHILD_SUBREAPER: Final = 36


def main() -> None:
    """`ORDER`: {"user": the person, or guest, "lang", "limits": {a name of setrlimit(2): a number}}, JSON."""
    order = json.loads(sys.argv[1])
    for each in _SIGNALS:
        # Its children end by these, and it does once they have.
        signal.signal(each, signal.SIG_IGN)
    pam = credentials.Pam(trusted=True)
    try:
        if (who := person.find(order["user"])) is None:
            return _say("the account is gone")
        os.initgroups(who.pw_name, who.pw_gid)
        granted = pam.open(who.pw_name, credentials.service())
    except OSError as failed:
        return _say(str(failed.strerror))
    # Engines outlive the proxy, and then become children of this process instead of init's.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.fork() == 0:
        try:
            _proxy(who, order, granted)
        except (OSError, ValueError, SksdError) as failed:
            _say(str(failed))
        finally:
            os._exit(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(ChildProcessError):
        while os.wait():
            pass
    pam.close()


def _say(problem: str) -> None:
    os.write(1, json.dumps({"error": problem}).encode() + b"\n")


def _proxy(who: person.Person, order: dict[str, Any], granted: dict[str, str]) -> None:
    # What PAM's modules keep open holds the session, and is none of the person's.
    os.closerange(3, 65536)
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    for name, value in order["limits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (lowest, lowest))
    person.become(who)
    os.umask(0o077)
    os.setsid()
    environ = person.environment(who, order["user"], order["lang"], granted)
    os.environ.clear()
    os.environ.update(environ)
    os.dup2(paths.open_log("proxy")[1], 2)
    try:
        os.chdir(who.pw_dir)
    except OSError as failed:
        os.write(2, f"the home {who.pw_dir} cannot be entered ({failed.strerror}): in / instead\n".encode())
        os.chdir("/")
    os.execve(sys.executable, [sys.executable, "-P", "-m", "sksd.proxy"], environ)


if __name__ == "__main__":
    main()
