"""Every error a person can meet.

The docstring of a class IS the sentence the person reads: its ``{fields}`` are filled in where the error is
raised, and each sentence says what to do next. The code crosses the wire (docs/protocol.md); the receiving side
makes the same class again with `from_code`. The command line prints an error in one place, `sksd.cli.main`.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from typing import ClassVar

Field = str | int | float | bool | None


class _Fields(dict[str, Field]):
    def __missing__(self, name: str) -> str:
        return {"host": "the host"}.get(name, "?")


class SksdError(Exception):
    """Something went wrong inside sksd: {problem}."""

    code: ClassVar[str] = "error"
    #: Exit code of the command line: 1 the thing failed, 2 wrong use.
    exit_code: ClassVar[int] = 1

    # Positional only: a field that comes over the wire may be called `self`, too.
    def __init__(self, /, **fields: Field) -> None:
        super().__init__(fields)
        self.fields: dict[str, Field] = fields

    def __str__(self) -> str:
        sentence = inspect.cleandoc(type(self).__doc__ or "").replace("\n", " ")
        parts = sentence.split("`")
        # What stands in backticks is there to be copied: a name with a space in it must stay one word.
        quoted = {name: shlex.quote(v) if isinstance(v, str) else v for name, v in self.fields.items()}
        parts[::2] = [part.format_map(_Fields(self.fields)) for part in parts[::2]]
        parts[1::2] = [part.format_map(_Fields(quoted)) for part in parts[1::2]]
        return "`".join(parts)


class InternalError(SksdError):
    """Something went wrong inside sksd on {host}: its log tells more under {log_id}."""

    code = "internal"


class UnknownError(SksdError):
    """{message}"""

    code = "unknown"


class BadRequest(SksdError):
    """{host} does not understand the request: {problem}."""

    code = "bad-request"


class BadAnswer(SksdError):
    """{host} answered what this sksd does not understand ({problem}): upgrade the older of the two."""

    code = "bad-answer"


class TooLarge(SksdError):
    """The answer is too large to send ({size} bytes): ask for less at once."""

    code = "too-large"


class ProtocolMismatch(SksdError):
    """{host} speaks protocol {theirs}, this sksd speaks {ours}: upgrade the older of the two."""

    code = "protocol"


class TimedOut(SksdError):
    """{host} did not answer within {seconds} s: try again, or give it longer with --timeout."""

    code = "timeout"


# -- configuration and start ------------------------------------------------------------------------------------


class ConfigurationError(SksdError):
    """{file}, line {line}: {problem}."""

    code = "configuration"


class ConfigurationFile(SksdError):
    """{file}: {problem}."""

    code = "configuration-file"


class PortBusy(ConfigurationError):
    """{file}, line {line}: port {port} is taken by another program: choose another, or leave it out for a free
    one."""

    code = "port-busy"


class CannotListen(SksdError):
    """Cannot listen on {address}: {problem}."""

    code = "cannot-listen"


class AlreadyRunning(SksdError):
    """A daemon of yours runs already (process {pid}, port {port}): stop it first, or use it with `sksd info
    local`."""

    code = "already-running"


# -- finding and trusting a host --------------------------------------------------------------------------------


class BadHost(SksdError):
    """'{host}' is not a host: give a name that `sksd hosts` lists, ADDRESS[:PORT], or `local`."""

    code = "bad-host"


class NoSuchHost(SksdError):
    """No host named {host} announces itself here: `sksd hosts` lists those that do; ADDRESS:PORT reaches one that
    does not."""

    code = "no-such-host"


class NoLocalDaemon(SksdError):
    """No sksd daemon of yours runs on this machine: start one with `sksd serve`, or `twistd -y sksd.tac`."""

    code = "no-local-daemon"


class Unreachable(SksdError):
    """{host} does not answer at {address} ({problem}): is the daemon running there, and the port open?"""

    code = "unreachable"


class NotSksd(SksdError):
    """What answers at {address} is not an sksd daemon ({problem}): check the address and the port."""

    code = "not-sksd"


class HostGone(SksdError):
    """The connection to {host} was lost ({problem}): engines go on running there, `sksd engines {host}` lists
    them."""

    code = "host-gone"


class CertificateUnknown(SksdError):
    """The certificate of {host} is not known here. Its fingerprint is {fingerprint}: compare it with the one that
    `sksd info local` shows on that machine, then say `sksd trust {host} --fingerprint {fingerprint}`, or give
    --accept-new."""

    code = "certificate-unknown"


class CertificateChanged(SksdError):
    """The certificate of {host} has changed: it was {expected}, now it is {fingerprint}. Somebody may be listening
    in. If the host was really set up anew, say `sksd trust {host} --forget` and trust it again."""

    code = "certificate-changed"


class CertificateRefused(SksdError):
    """The certificate of {host} was refused: {problem}."""

    code = "certificate-refused"


class KnownHostsBroken(SksdError):
    """{file} cannot be used ({problem}): mend it, or move it away and trust your hosts again."""

    code = "known-hosts"


# -- logging in -------------------------------------------------------------------------------------------------


class LoginRefused(SksdError):
    """{host} does not accept this user and password: check both (a user's own daemon takes the token that stands in
    ~/.local/state/sksd/token there)."""

    code = "login-refused"


class LoginMethod(SksdError):
    """{host} does not offer the login method '{method}': it offers {methods}."""

    code = "login-method"


class NoPassword(SksdError):
    """A password is needed for {user} on {host}: run this at a terminal, use `sksd login {host}`, or give
    SKSD_PASSWORD or --password-stdin."""

    code = "no-password"


class NoKeyring(SksdError):
    """This machine has no keyring that can hold the password ({problem}): give SKSD_PASSWORD or --password-stdin each
    time, or set one up (`python -m keyring --list-backends` shows what there is)."""

    code = "no-keyring"


class NotAllowed(SksdError):
    """{host} does not allow that: {problem}."""

    code = "not-allowed"


# -- the proxy --------------------------------------------------------------------------------------------------


class ProxyFailed(SksdError):
    """The proxy of {user} on {host} could not be started: {problem}."""

    code = "proxy-failed"


class ProxyLost(SksdError):
    """The proxy of {user} on {host} ended in the middle of this ({problem}): try again, engines that ran are kept."""

    code = "proxy-lost"


class DiskFull(SksdError):
    """No space is left on {host} at {path}: free some and try again; nothing was kept of this."""

    code = "disk-full"


class CannotWrite(SksdError):
    """{path} on {host} cannot be written ({problem}): mend its rights and try again."""

    code = "cannot-write"


class CannotRead(SksdError):
    """{path} on {host} cannot be read ({problem}): was it removed? What stood there is lost, what comes now is
    kept."""

    code = "cannot-read"


# -- environments and engines -----------------------------------------------------------------------------------


class BadName(SksdError):
    """{name} is not an environment: {problem}."""

    code = "bad-name"


class NoSuchEnvironment(SksdError):
    """There is no environment {name} on {host}: `sksd envs {host}` lists what there is."""

    code = "no-such-environment"


class NothingFits(SksdError):
    """No environment on {host} has a kernel that fits: `sksd envs {host}` says for each what is missing."""

    code = "nothing-fits"


class EnvironmentBroken(SksdError):
    """The environment {name} on {host} cannot be used: {problem}."""

    code = "environment-broken"


class ActivationFailed(SksdError):
    """The environment {name} on {host} could not be activated: {problem}."""

    code = "activation-failed"


class BadFolder(SksdError):
    """{path} on {host} is not a folder that a kernel can start in ({problem}): give another with --cwd."""

    code = "bad-folder"


class KernelLimit(SksdError):
    """{host} runs {limit} kernels already, its limit: stop one with `sksd stop {host} ID`."""

    code = "kernel-limit"


class KernelDied(SksdError):
    """The kernel died while it was starting ({how}). Its last lines:
    {log}"""

    code = "kernel-died"

    def __str__(self) -> str:
        log = str(self.fields.get("log") or "").strip() or "(it wrote nothing)"
        return f"The kernel died while it was starting ({self.fields.get('how', '?')}). Its last lines:\n{log}"


class KernelSilent(SksdError):
    """The kernel did not answer within {seconds} s and was stopped. Its last lines:
    {log}"""

    code = "kernel-silent"

    def __str__(self) -> str:
        log = str(self.fields.get("log") or "").strip() or "(it wrote nothing)"
        return (
            f"The kernel did not answer within {self.fields.get('seconds', '?')} s and was stopped."
            f" Its last lines:\n{log}"
        )


class NotStarted(SksdError):
    """{host} did not start a kernel: {problem}."""

    code = "not-started"


class NoSuchEngine(SksdError):
    """There is no engine {engine} on {host}: `sksd engines {host}` lists what runs."""

    code = "no-such-engine"


class EngineAmbiguous(SksdError):
    """Several engines on {host} begin with {engine}: give more of the id."""

    code = "engine-ambiguous"


class EngineEnded(SksdError):
    """The engine {engine} on {host} has ended ({how}): start another with `sksd start {host} ENV`."""

    code = "engine-ended"


# -- links ------------------------------------------------------------------------------------------------------


class TicketRefused(SksdError):
    """{host} does not accept this ticket: log in again for a new one."""

    code = "ticket-refused"


class LinkCut(SksdError):
    """The link to {host} was cut ({problem}): the engine goes on running, `sksd console {host} --engine {engine}`
    is back in it, but output from in between may be missing."""

    code = "link-cut"


class LinkForgotten(SksdError):
    """{host} no longer knows this link: another is made."""

    code = "link-forgotten"


class StateInUse(SksdError):
    """A relay that runs has {path} as its state: end that one first, or give this one another --state."""

    code = "state-in-use"


class StateOfAnother(SksdError):
    """{path} {problem}: give another --state, or remove it."""

    code = "state-of-another"


class LinkProtocol(SksdError):
    """The other end of the link broke its protocol: {problem}."""

    code = "link-protocol"


class ZmtpProtocol(SksdError):
    """What is connected to a channel of the kernel broke ZeroMQ's protocol: {problem}. Front ends must speak ZMTP 3
    without encryption (any libzmq from 4.0 does)."""

    code = "zmtp-protocol"


def _family(base: type[SksdError]) -> dict[str, type[SksdError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found |= _family(child)
    return found


def from_code(code: str, message: str, fields: Mapping[str, Field]) -> SksdError:
    """The error that another sksd sent as `code`, `message` and `fields`.

    A code of a newer sksd that this one does not know becomes an `UnknownError` with the sender's sentence.
    """
    known = _family(SksdError).get(code)
    if known is None:
        return UnknownError(message=message)
    return known(**fields)
