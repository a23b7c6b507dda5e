"""The gate: the one process of a shared host's daemon that keeps root's rights.

It reads no network and no file of a person's. The daemon may ask it three things (docs/security.md has the contract):

    nonce  {} -> {nonce}: what an SSH key has to sign, once
    check  {method, user, secret, rhost} -> {account, grant}, or {reason, problem}
    proxy  {grant} -> a connection to the proxy of that grant's account (a descriptor), or {reason, problem};
           with {end: true}: the login is over, and its grant

so that a daemon that was taken over can start nothing for anybody who has not come in. The process itself only makes
and reads grants; each request is answered by a child of its own, which may hang in PAM without holding anybody up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from sksd.errors import TicketRefused
from sksd.gate import credentials, person
from sksd.gate.grants import Grant, Grants
from sksd.wire import gate as wire
from sksd.wire.names import PREAMBLE_GATE
from sksd.wire.tickets import Tickets, account_key, claimed_user
from sksd.wire.who import SHORTEST_TOKEN, Rules, guest_name, guest_of

#: Seconds that a refusal takes at least, whatever it is for.
FLOOR: Final = 1.5
#: Seconds a child may take, and children at once: a daemon that asks for more waits.
LIMIT: Final = 30
MOST: Final = 64

Message = dict[str, Any]
#: And a connection that goes with it, if one does.
Answer = tuple[Message, socket.socket | None]


def main() -> None:
    """`python -m sksd.gate ORDER`: started by the daemon as root, with its channel as 3 and the local socket as 4.
    `ORDER`: as for `Gate`."""
    order = json.loads(sys.argv[1])
    os.umask(0o077)
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # It ends when the daemon does.
        signal.signal(each, signal.SIG_IGN)
    if credentials.service() != credentials.SERVICE:
        log(f"/etc/pam.d/{credentials.SERVICE} is missing: PAM is asked as `{credentials.FALLBACK}`")
    daemon, local = (socket.socket(fileno=number) for number in (3, 4))
    for channel in (daemon, local):
        channel.set_inheritable(False)
    Gate(daemon, local, order).run()


def log(line: str) -> None:
    """One line for the daemon's log."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))


class Gate:
    """`daemon`: the channel to the daemon; `local`: a listening UNIX socket. `order`: {secret: path of the file that
    tickets' keys are made of, closed: uids that never come in, rules: those of `sksd.wire.who`, guest: the account of
    guests, or none, cast: whoever has no account is one, lang, limits: by names of setrlimit(2)}."""

    def __init__(self, daemon: socket.socket, local: socket.socket, order: Message) -> None:
        self._daemon, self._local, self._order = daemon, local, order
        self._secret = Path(order["secret"]).read_text("ascii").strip()
        self._grants = Grants()
        self._children: set[int] = set()
        local.setblocking(False)

    def run(self) -> None:
        """Until the daemon is gone."""
        signal.signal(signal.SIGCHLD, self._reap)
        while True:
            try:
                if (found := wire.receive(self._daemon)) is None:
                    return
                self._asked(found[0])
            except ConnectionError:
                return
            except (ValueError, KeyError, TypeError, OSError) as wrong:
                log(f"gate: a request of the daemon's was no use: {type(wrong).__name__}")

    def _asked(self, request: Message) -> None:
        ask, now = request["ask"], time.monotonic()
        local = grant = None
        if ask == wire.NONCE:
            return wire.send(self._daemon, {"id": request.get("id"), "nonce": self._grants.nonce(now)})
        if ask == wire.PROXY:
            grant = self._grants.read(str(request["grant"]), now, bool(request.get("end")))
            if request.get("end"):
                return
        elif ask != wire.CHECK:
            raise ValueError
        elif request["method"] == wire.SSH_KEY:
            request["fresh"] = self._grants.fresh(request["secret"]["nonce"], now)
        elif request["method"] == wire.LOCAL:
            # Accepted here and nowhere else, so that the daemon cannot stage who connected.
            with contextlib.suppress(OSError):
                local = self._local.accept()[0]
        if self._child() == 0:
            try:
                said, found = self._answer(ask, grant, request, local)
                wire.send(self._daemon, {"id": request.get("id"), **said}, found.fileno() if found else None)
            finally:
                os._exit(0)
        if local is not None:
            local.close()

    def _child(self) -> int:
        while len(self._children) >= MOST:
            time.sleep(0.05)
        # Not to be reaped before it is known.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            # PAM's modules wait for children of their own.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.alarm(LIMIT)
        else:
            self._children.add(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        return pid

    def _reap(self, *_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while gone := os.waitpid(-1, os.WNOHANG)[0]:
                self._children.discard(gone)

    # -- in the child -----------------------------------------------------------------------------------------------

    def _answer(self, ask: str, grant: Grant | None, request: Message, local: socket.socket | None) -> Answer:
        try:
            return self._proxy(grant, request) if ask == wire.PROXY else self._check(request, local)
        except Exception as error:
            # Neither a traceback nor a word that may be a password.
            log(f"gate: {type(error).__name__} in {ask}")
            return {"reason": wire.FAILED, "problem": "the gate's log tells more"}, None

    def _check(self, request: Message, local: socket.socket | None) -> Answer:
        started, method = time.monotonic(), request["method"]
        said: Message = {"reason": wire.REFUSED if method == wire.GUEST else wire.BAD}
        user, secret, rhost = (str(request.get(name, "")) for name in ("user", "secret", "rhost"))
        if method == wire.PASSWORD and user and self._order["cast"] and person.find(user) is None:
            method, secret = wire.GUEST, f"{user} {secret}".ljust(SHORTEST_TOKEN, "\0")
        if method == wire.PASSWORD:
            said = credentials.check(user, secret, rhost, self._order["closed"])
        elif method == wire.SSH_KEY:
            said = credentials.check_key(request, self._order)
        elif method == wire.TICKET:
            said = self._check_ticket(secret)
        elif method == wire.GUEST and self._order["guest"] and len(secret) >= SHORTEST_TOKEN:
            name = guest_name(self._order["guest"], self._secret, secret)
            said = credentials.check_known(person.find(name), self._order["closed"], name)
        elif local is not None:
            peer = struct.unpack("3i", local.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            said = credentials.check_known(person.find(peer[1]), self._order["closed"])
        if said.get("reason") == wire.REFUSED and method in (wire.PASSWORD, wire.SSH_KEY):
            time.sleep(max(0.0, started + FLOOR - time.monotonic()))
        name = said.get("account", "")
        if name and not guest_of(name) and (problem := person.problem(name, Rules(**self._order["rules"]))):
            said = {"reason": wire.ACCOUNT, "problem": problem}
        if "account" in said:
            said["grant"] = self._grants.make(name, said.pop("uid"), method == wire.TICKET, time.monotonic())
        return said, local

    def _check_ticket(self, ticket: str) -> Message:
        try:
            who = person.find(name := claimed_user(ticket))
            # Nobody has a ticket of an account that is not there.
            _, engine = Tickets(account_key(self._secret, name, who.pw_uid if who else -1)).check(ticket)
        except TicketRefused:
            return {"reason": wire.BAD_TICKET}
        return {**credentials.check_known(who, self._order["closed"], name), "engine": engine}

    def _proxy(self, grant: Grant | None, request: Message) -> Answer:
        if grant is None:
            return {"reason": wire.BAD}, None
        who = person.find(grant.user)
        if who is None or who.pw_uid != grant.uid:
            return {"reason": wire.FAILED, "problem": "the account is gone"}, None
        key = account_key(self._secret, grant.user, who.pw_uid)
        try:
            # One at a time for each person, or two would start two.
            with open(Path(self._order["secret"]).with_name(f"{who.pw_uid}.lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if (found := person.connect(who, user := grant.user, lang := self._order["lang"])) is None:
                    problem = person.begin("sksd.gate.session", {**self._order, "user": user})
                    found = None if problem else person.connect(who, user, lang)
            if found is None:
                raise OSError(0, problem or "it cannot be found after its start")
            found.sendall(PREAMBLE_GATE + f"{key} {'link' if grant.link else 'any'} {grant.user}\n".encode())
        except OSError as failed:
            return {"reason": wire.FAILED, "problem": failed.strerror or str(failed)}, None
        return {}, found
