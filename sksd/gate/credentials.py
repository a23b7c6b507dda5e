"""Asking PAM, in a child of the gate for each question."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Final

from pam import PamAuthenticator

from sksd.gate import person
from sksd.wire.gate import ACCOUNT, LONGEST_NAME, LONGEST_SECRET, REFUSED

#: The service file of ours, and the one for where it is missing.
SERVICE: Final = "sksd"
FALLBACK: Final = "login"
#: pam(3): items, flags, and what went well.
_RHOST, _FAIL_DELAY, _ESTABLISH_CRED, _DELETE_CRED, _SUCCESS = 4, 10, 2, 4, 0
#: What acct_mgmt says (pam(3)), in words.
_PROBLEMS: Final = {
    6: "the administrator of that machine does not allow it",
    12: "the password must be changed first, by logging in there in another way",
    27: "the password has expired, and must be changed first",
}
_DELAY: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def service() -> str:
    """The PAM service to ask."""
    return SERVICE if Path("/etc/pam.d", SERVICE).exists() else FALLBACK


class Pam(PamAuthenticator):  # type: ignore[misc, unused-ignore]
    """python-pam with what it lacks: the address of the peer, no delay of PAM's own (the gate has one for all), and
    an account without a password, for whom this machine already knows."""

    def __init__(self, rhost: str = "", trusted: bool = False) -> None:
        super().__init__()
        self.right = trusted
        self._no_delay = _DELAY(lambda *_: None)
        library: Any = self
        start, authenticate = library.pam_start, library.pam_authenticate

        def started(service: bytes, user: bytes, conversation: Any, handle: Any) -> int:
            # Sessions go on talking to it after python-pam has let go of it.
            self._kept = conversation
            code: int = start(service, user, conversation, handle)
            if code == _SUCCESS:
                self.pam_set_item(self.handle, _FAIL_DELAY, ctypes.cast(self._no_delay, ctypes.c_void_p))
                if rhost:
                    self.pam_set_item(self.handle, _RHOST, ctypes.c_char_p(rhost.encode()))
            return code

        def authenticated(handle: Any, flags: int) -> int:
            code: int = _SUCCESS if trusted else authenticate(handle, flags)
            self.right = code == _SUCCESS
            self.messages.clear()
            return code

        self.pam_start, self.pam_authenticate = started, authenticated

    def ask(self, user: str, password: str, service: str) -> str | None:
        """None when the account may come in, else why not; `right` says whether the password was."""
        if self.authenticate(user, password, service, call_end=False, resetcreds=False):
            return None
        # Where a service file ends in pam_deny, the code says nothing, but a module has told why.
        return _PROBLEMS.get(self.code) or (self.messages or [str(self.reason)])[-1].strip(" .\n")

    def open(self, user: str, service: str) -> dict[str, str]:
        """Open a session, without a password; answers PAM's variables. Raises OSError with PAM's reason."""
        if problem := self.ask(user, "", service):
            raise OSError(0, problem)
        if self.pam_setcred(self.handle, _ESTABLISH_CRED) != _SUCCESS or self.open_session() != _SUCCESS:
            raise OSError(0, f"PAM opens no session: {self.reason}")
        found = self.getenvlist()
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Close the session."""
        self.close_session()
        self.pam_setcred(self.handle, _DELETE_CRED)
        self.end()


def check(user: str, password: str, rhost: str, closed: list[int]) -> dict[str, Any]:
    """Whether the password opens the account; `closed` are uids that never come in. Answers {account, uid} or
    {reason, problem}."""
    # NUL ends a string in C, and an empty password is none: PAM is not asked.
    worth = 0 < len(user) <= LONGEST_NAME and 0 < len(password) <= LONGEST_SECRET
    if not worth or any(letter in user + password for letter in "\0\n\r"):
        return {"reason": REFUSED}
    found = person.find(user)
    # Asked about those who are not there, too, so that it takes as long.
    return _asked(Pam(rhost), found, found.pw_name if found else user, password, closed)


def check_known(who: person.Person | None, closed: list[int], name: str = "") -> dict[str, Any]:
    """As `check`, for somebody whom this machine knows already; `name`: of a guest, who shares the account."""
    said = _asked(Pam(trusted=True), who, who.pw_name if who else "", "", closed)
    return {**said, "account": name} if name and "account" in said else said


def check_key(request: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
    """Whether an SSH key opens the account `user`: `secret` is an attempt (sksd.wire.sshkey), `fresh` whether its
    nonce is. What a stranger sent, and the person's file, is read by a process with the person's rights only."""
    who = person.find(str(request["user"])) if request["fresh"] else None
    if who is not None and who.pw_uid not in order["closed"]:
        wanted = {"user": who.pw_name, "home": who.pw_dir, "attempt": request["secret"], "lang": order["lang"]}
        if not person.begin("sksd.proxy.keys", wanted, who):
            return check_known(who, order["closed"])
    return {"reason": REFUSED}


def _asked(pam: Pam, who: person.Person | None, name: str, password: str, closed: list[int]) -> dict[str, Any]:
    problem = pam.ask(name, password, service())
    if who is None or not pam.right or who.pw_uid in closed:
        return {"reason": REFUSED}
    if problem is not None:
        return {"reason": ACCOUNT, "problem": problem}
    return {"account": who.pw_name, "uid": who.pw_uid}
