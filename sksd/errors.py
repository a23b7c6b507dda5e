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


class NeedsRoot(ConfigurationError):
    """{file}, line {line}: mode = system serves all accounts of this machine, and only root can start it: start it as
    root, or say mode = user."""

    code = "needs-root"


class NoRunAs(ConfigurationError):
    """{file}, line {line}: there is no account {account} (or it is root) for the daemon to run as: make it with
    `useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin {account}`, or name another
    with run_as."""

    code = "no-run-as"


class NoGuestAccount(ConfigurationError):
    """{file}, line {line}: there is no account {account} for guests (or it is root's, or the daemon's own): make it
    with `useradd --create-home {account}`, or name another with guest_account."""

    code = "no-guest-account"


class NotForOthers(SksdError):
    """mode = system cannot be started with {program}: {problem} at {path}. Install sksd where every account can read
    it and only root can write, as with `python3 -m venv /opt/sksd`, and start it from there."""

    code = "not-for-others"


class NoPAM(SksdError):
    """mode = system needs PAM, and this machine has no libpam: install it (libpam0g, or pam)."""

    code = "no-pam"


# -- finding and trusting a host --------------------------------------------------------------------------------


class BadHost(SksdError):
    """'{host}' is not a host: give a name that `sksd hosts` lists, ADDRESS[:PORT], or `local`."""

    code = "bad-host"


class NoSuchHost(SksdError):
    """No host named {host} announces itself here: `sksd hosts` lists those that do; ADDRESS:PORT reaches one that
    does not."""

    code = "no-such-host"


class NoLocalDaemon(SksdError):
    """No sksd daemon of yours runs on this machine, and none for everybody: start one with `sksd serve`, or
    `twistd -y sksd.tac`."""

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


class ClientCertificate(SksdError):
    """{host} lets nobody in without a certificate from its own CA ({problem}): give yours with --client-certificate
    and --client-key, or ask whoever runs the host for one."""

    code = "client-certificate"


class ClientCertificateUnusable(SksdError):
    """Your certificate in {file} cannot be used: {problem}."""

    code = "client-certificate-unusable"


class KnownHostsBroken(SksdError):
    """{file} cannot be used ({problem}): mend it, or move it away and trust your hosts again."""

    code = "known-hosts"


# -- logging in -------------------------------------------------------------------------------------------------


class LoginRefused(SksdError):
    """{host} does not accept this user and password: check both (a user's own daemon takes the token that stands in
    ~/.local/state/sksd/token there)."""

    code = "login-refused"


class TooManyFailures(SksdError):
    """Too many logins from your address have failed on {host} lately: wait {seconds} s and try again."""

    code = "too-many-failures"


class TooManyConnections(SksdError):
    """You have {limit} connections to {host} already, as many as it takes: close some."""

    code = "too-many-connections"
class AccountRefused(SksdError):
    """{host} knows you, but does not let {user} in: {problem}."""

    code = "account-refused"


class TooManyGuests(SksdError):
    """{host} has {limit} guests already, as many as it takes: try again later, or log in with an account."""

    code = "too-many-guests"


class GateGone(SksdError):
    """{host} can let nobody in just now, because a part of its daemon has ended ({problem}): try again in a moment,
    or tell its administrator."""

    code = "gate-gone"


class LoginMethod(SksdError):
    """{host} does not offer the login method '{method}': it offers {methods}."""

    code = "login-method"


class SshKeyRefused(LoginRefused):
    """{host} takes none of your SSH keys for this user: put the public one into ~/.ssh/authorized_keys there, or log
    in with a password (`sksd login {host}`)."""

    code = "ssh-key-refused"


class SshKeyUnusable(SksdError):
    """The SSH key {file} cannot be used: {problem}."""

    code = "ssh-key"


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


class NothingRequired(SksdError):
    """There is no environment {name} on {host}, and nothing says what is to be in it: give --require or --file."""

    code = "nothing-required"


class EnvironmentBroken(SksdError):
    """The environment {name} on {host} cannot be used: {problem}."""

    code = "environment-broken"


class FolderSilent(SksdError):
    """The folder {folder} on {host} does not answer: is its file server there? Try again, or take another
    environment."""

    code = "folder-silent"


class ActivationFailed(SksdError):
    """The environment {name} on {host} could not be activated: {problem}."""

    code = "activation-failed"


class BadFolder(SksdError):
    """{path} on {host} is not a folder that a kernel can start in ({problem}): give another with --cwd."""

    code = "bad-folder"


class KernelLimit(SksdError):
    """{host} runs {limit} kernels already, its limit: stop one with `sksd stop {host} ID`."""

    code = "kernel-limit"


class KernelLimitOfUser(SksdError):
    """{limit} of your kernels run on {host} already, as many as one user may have there: stop one with
    `sksd stop {host} ID`."""

    code = "kernel-limit-of-user"


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
    """{host} did not start a kernel: {problem}"""

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

    def __str__(self) -> str:
        log = str(self.fields.get("log") or "").strip()
        return super().__str__() + (f" Its last lines:\n{log}" if log else "")


# -- changing environments --------------------------------------------------------------------------------------


class ChangeFailed(SksdError):
    """The environment {name} could not be changed: {problem}."""

    code = "change-failed"

    def __str__(self) -> str:
        # What was undone is known only after the failure, and it belongs to every sentence of the family.
        undone = str(self.fields.get("undone") or "")
        return f"{super().__str__()} {undone}".rstrip()


class Cancelled(ChangeFailed):
    """The change of {name} was cancelled."""

    code = "cancelled"


class NoSuchPackage(ChangeFailed):
    """There is no package `{spec}` in {channels}: check its name and version, or add the channel that has it."""

    code = "no-such-package"


class PackageMissing(ChangeFailed):
    """{package} is not installed in {name}: `sksd env packages` lists what is."""

    code = "package-missing"


class Unsolvable(ChangeFailed):
    """These packages cannot be together in one environment; ask for less, or for other versions:
    {problem}"""

    code = "unsolvable"


class BadSpec(ChangeFailed):
    """'{spec}' does not name a package ({problem}): write it as numpy, "numpy >=2" or numpy=2.1."""

    code = "bad-spec"


class BadFile(ChangeFailed):
    """This {format} cannot be used: {problem}."""

    code = "bad-file"


class BadCondarc(ChangeFailed):
    """{file} cannot be used ({problem}): mend it, or move it away."""

    code = "bad-condarc"


class EnvironmentExists(ChangeFailed):
    """{prefix} exists already ({problem}): choose another name, or remove it first."""

    code = "environment-exists"


class NotAnEnvironment(ChangeFailed):
    """{prefix} is not a conda environment ({problem}): sksd changes nothing there."""

    code = "not-an-environment"


class EnvironmentFrozen(ChangeFailed):
    """The environment {name} is frozen and must not be changed: {problem}"""

    code = "environment-frozen"


class EnvironmentReadOnly(ChangeFailed):
    """The environment {name} cannot be changed by you ({problem}): clone it, and change the clone."""

    code = "environment-read-only"


class ChannelUnreachable(ChangeFailed):
    """{url} does not answer ({problem}): check the network and the channels in .condarc, then try again."""

    code = "channel-unreachable"


class ChannelRefused(ChangeFailed):
    """{url} refuses the request ({problem}): check the channel's name and your token or password for it."""

    code = "channel-refused"


class ChannelNotAllowed(ChangeFailed):
    """The channel {channel} is not allowed on {host}: its administrator allows {allowed}."""

    code = "channel-not-allowed"


class NotCached(ChangeFailed):
    """The network is off (offline), and {package} is not in the package cache: try again with the network on."""

    code = "not-cached"


class NoPip(ChangeFailed):
    """pip packages need {what} in the environment {name}: add it to the conda packages."""

    code = "no-pip"


class PipFailed(ChangeFailed):
    """pip could not install into {name}: {problem}"""

    code = "pip-failed"


class HalfChanged(ChangeFailed):
    """The environment {name} is neither what it was nor what it should be ({problem}): free disk space and check the
    network, then run `sksd env repair`."""

    code = "half-changed"


class BackendMissing(ChangeFailed):
    """{backend} is configured to change environments, but {executable} cannot be run ({problem}): set
    backend_executable in sksd.conf."""

    code = "backend-missing"


class BackendFailed(ChangeFailed):
    """{backend} failed: {problem}"""

    code = "backend-failed"


class PixiWorkspace(ChangeFailed):
    """{prefix} belongs to a pixi workspace, which pixi changes: `{command}`."""

    code = "pixi-workspace"


class WorkerFailed(ChangeFailed):
    """The process that changes environments {problem}: what it left is undone or finished, or will be by
    `sksd env repair {host}`."""

    code = "worker-failed"


class NoSuchTask(SksdError):
    """There is no change {task} under way on {host}: it has ended."""

    code = "no-such-task"


# -- links ------------------------------------------------------------------------------------------------------


class TicketRefused(SksdError):
    """{host} does not accept this ticket: log in again for a new one."""

    code = "ticket-refused"


class LinkCut(SksdError):
    """The link to {host} is over ({problem}): the engine goes on running, and `sksd console {host} --engine {engine}`
    is back in it. Output may be missing here: `sksd log {host} {engine}` shows what is kept of it."""

    code = "link-cut"


class LinkForgotten(SksdError):
    """{host} no longer knows this link: `sksd console {host} --engine {engine}` makes another. Output may be missing
    here: `sksd log {host} {engine}` shows what is kept of it."""

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
