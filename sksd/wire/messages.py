"""The shapes of everything that crosses the wire as plain dicts (docs/protocol.md).

`plain` makes the dict of a call and `read` checks one that came in; `packed` and `unpacked` do so for answers, which
travel as JSON, because Perspective Broker takes 10 ms for a listing of 50 dicts (docs/decisions/0008).

A request with a field that the receiver does not know is refused (it asks for something that would not happen); an
answer may bring fields of a newer version, which are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from sksd.errors import BadAnswer, BadRequest, Field
from sksd.wire.names import PROTOCOL

Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00\n]*$")]
Variable = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00\n=]*$")]
Path = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00\n]*$")]
Short = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00\n]*$")]
Secret = Annotated[str, Meta(max_length=4096)]
Encoded = Annotated[str, Meta(max_length=2048, pattern=r"^[A-Za-z0-9+/=]*$")]
Text = Annotated[str, Meta(max_length=65536, pattern=r"^[^\x00]*$")]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
#: What a client calls a change that it may want to cancel; empty: it will not.
TaskId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{0,64}$")]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of what a client asks."""


class Answer(msgspec.Struct, kw_only=True):
    """Base of what comes back."""


# -- hello and login --------------------------------------------------------------------------------------------


class Hello(Request):
    """First call on a connection."""

    client: Short = "sksd"
    version: Short = ""
    protocols: Annotated[list[int], Meta(max_length=32)] = msgspec.field(default_factory=lambda: [PROTOCOL])


class Welcome(Answer):
    """Answer to `Hello`: `protocol` is the version to speak, the highest that both know."""

    protocol: int
    version: str
    #: Pretty name, and the name the machine gives itself.
    name: str
    hostname: str
    #: Login methods, as `password`.
    methods: list[str] = []
    features: list[str] = []
    #: Of this connection, in base64: for the method `ssh-key` (sksd.wire.sshkey).
    nonce: str = ""


class KeyProof(Request):
    """A public SSH key and its signature for this login (sksd.wire.sshkey), both in base64."""

    key: Encoded
    signature: Encoded


class Login(Request):
    """Second call on a connection. `user` empty: in user mode the one user there is. `keys`: for `ssh-key`, those
    that the client can sign with; one that the account takes is enough."""

    method: Name = "password"
    user: Short = ""
    password: Secret = ""
    keys: Annotated[list[KeyProof], Meta(max_length=6)] = []
    protocol: int = PROTOCOL


class LoggedIn(Answer):
    """Answer to `Login`; the avatar comes beside it as a reference."""

    user: str
    guest: bool = False


# -- the host ---------------------------------------------------------------------------------------------------


class Host(Answer):
    """What the avatar's `host` answers. Sizes in bytes, load as os.getloadavg()."""

    name: str
    hostname: str
    description: str
    version: str
    mode: str
    user: str
    platform: str
    python: str
    cores: int
    load: list[float]
    memory_total: int
    memory_available: int
    running: int
    maximum: int
    fingerprint: str
    methods: list[str]
    features: list[str]


# -- environments -----------------------------------------------------------------------------------------------


class Accept(Request):
    """One kernel package that a front end can work with: `low <= version < high`, either end open when None.

    Versions are compared as Spyder does it: a pre-release of `high` is inside (docs/protocol.md).
    """

    package: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    low: Annotated[str, Meta(max_length=64)] | None = None
    high: Annotated[str, Meta(max_length=64)] | None = None


Accepts = Annotated[list[Accept], Meta(max_length=16)]


class EnvironmentsQuery(Request):
    """`accepts` in order of preference; empty means any spyder-kernels, then any ipykernel.

    `detail`: also `size` and `last_use`, which take seconds for large environments.
    """

    accepts: Accepts = []
    detail: bool = False


class Kernel(Answer):
    """The kernel package found in an environment, as `spyder-kernels` `3.1.6`."""

    package: str
    version: str


class Environment(Answer):
    """One environment of a listing.

    `name` is unique in a listing and can be given back as the request's environment, as can `prefix`. `kind`:
    conda, venv, pixi or python (an interpreter's own prefix). `python` is None when there is none. `fits`: a
    kernel that the front end accepts can start here; else `reason` says why not. `own`: sksd itself runs in it.
    `broken`: it cannot be used at all (`reason`). `writable`: this person may change its files; `shared`: it
    belongs to another account. `frozen`: it must not be changed (CEP 22), `frozen_message` says what to do instead.
    `size`: bytes on disk; `last_use`: ISO 8601 in UTC; both only when asked for, None where not to be had in time.
    """

    name: str
    prefix: str
    kind: str
    python: str | None
    kernel: Kernel | None
    fits: bool
    reason: str | None = None
    own: bool = False
    broken: bool = False
    writable: bool = False
    shared: bool = False
    frozen: bool = False
    frozen_message: str = ""
    size: int | None = None
    last_use: str | None = None


class Environments(Answer):
    """A listing, in a fixed order: sksd's own first, then by source and name.

    `silent`: folders that did not answer in time (a file server that hangs), whose environments are not listed.
    """

    environments: list[Environment]
    silent: list[str] = []


#: A conda match spec, or a requirement of pip's: one line.
Spec = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[^\x00\r\n]*$")]
Specs = Annotated[list[Spec], Meta(max_length=5000)]


class EnvironmentFile(Request):
    """A description of an environment. `explicit`: conda's list of URLs; `lock`: rattler's and pixi's lock file, or
    conda-lock.yml. `text`: at most as long as one string on the wire."""

    format: Literal["environment.yml", "explicit", "lock", "requirements.txt"]
    text: Annotated[str, Meta(max_length=600_000)]


# -- engines ----------------------------------------------------------------------------------------------------


class SpinUp(Request):
    """Start an engine.

    `environment`: a name of the listing, an absolute prefix, or the absolute path of a Python. `cwd`: absolute;
    None is the home. `variables` are added to the activated environment (None value: removed). `linger`: seconds
    after which an engine that no link is attached to is stopped (None: never). `timeout`: seconds the kernel has
    to answer its first kernel_info_request. `label`: free text for listings.

    `requirements` (conda specs) and `file`: what the environment has to meet. `create`: make it from them if there
    is none; `mend`: change it so that it meets them and has a kernel that is accepted. Nothing is changed unasked.
    `task`: as in `sksd.wire.changes`, to cancel the change.
    """

    environment: Annotated[str, Meta(max_length=4096)]
    accepts: Accepts = []
    cwd: Path | None = None
    variables: Annotated[dict[Variable, Text | None], Meta(max_length=1000)] = {}
    linger: Seconds | None = None
    timeout: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    label: Short = ""
    requirements: Specs = []
    file: EnvironmentFile | None = None
    create: bool = False
    mend: bool = False
    task: TaskId = ""


class Engine(Answer):
    """One engine. `started`: ISO 8601 in UTC. `state`: starting, running, restarting, stopping or dead; when dead
    `reason` says how ("exit code 1", "killed by SIGKILL", "stopped") and `exit_code` or `signal` give the number.
    `links`: front ends' links attached now. `stalled`: it is stopped for want of room, and `reason` says so.
    `missed`: bytes that it has said and no front end has had."""

    id: str
    environment: str
    prefix: str
    python: str | None
    kernel: Kernel
    state: str
    started: str
    pid: int | None = None
    cwd: str = ""
    label: str = ""
    links: int = 0
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    stalled: bool = False
    missed: int = 0


class Unmet(Answer):
    """One requirement that an environment does not meet, and what would mend it."""

    requirement: str
    found: str | None
    mend: str


class Outcome(Answer):
    """The answer to `SpinUp`: `outcome` is one of the five words of `sksd.wire.names`.

    started...: `engine` and `ticket` are set. Incompatible: `unmet` and `message`. Refused: `code`, `message` and
    `fields` of the error (sksd.errors).
    """

    outcome: str
    engine: Engine | None = None
    ticket: Ticket | None = None
    unmet: list[Unmet] = []
    code: str | None = None
    message: str | None = None
    fields: dict[str, Field] = {}


class Ticket(Answer):
    """What opens a link to one engine (docs/link.md): a bearer secret, good for as long as the engine lives.

    `key` and `kernel_name` belong into the local connection file (signature scheme hmac-sha256).
    """

    ticket: str
    engine: str
    key: str
    kernel_name: str


class EngineQuery(Request):
    """Names one engine by its whole id."""

    engine: Annotated[str, Meta(pattern=r"^[a-z0-9]{1,32}$")]


class Shutdown(EngineQuery):
    """`grace`: seconds the kernel has to end by itself before it is killed. `by`: from where, as "from 10.0.0.7"; the
    daemon says so, whatever a client says."""

    grace: Annotated[float, Meta(ge=0, le=600)] = 5.0
    by: Short = ""


class LogQuery(EngineQuery):
    """A page of an engine's log from byte `offset`; negative counts from the end."""

    offset: int = 0
    limit: Annotated[int, Meta(ge=1, le=262144)] = 65536


class LogPage(Answer):
    """`text`: decoded with replacement characters; `next`: the offset to go on from; `end`: nothing more now.

    Offsets count all bytes ever written; what the bounded log has dropped is skipped, and `offset` says where the
    text really begins.
    """

    text: str
    offset: Count
    next: Count
    end: bool


class Engines(Answer):
    """A listing, oldest first."""

    engines: list[Engine]


class Progress(Answer):
    """What an observer is told while a call is under way: `step` is one word, `message` a sentence.

    `done` of `total` things, `bytes` of `total_bytes`; None where not known.
    """

    step: str
    message: str
    done: int | None = None
    total: int | None = None
    bytes: int | None = None
    total_bytes: int | None = None


class Event(Answer):
    """What the client's mind is told: `event` is `engine`, and `engine` its new state; or `environments`, and the
    listing is another than it was."""

    event: str
    engine: Engine | None = None


class Nothing(Answer):
    """An answer without content."""


# -- between daemon and proxy -----------------------------------------------------------------------------------


#: What can change environments.
Backend: TypeAlias = Literal["rattler", "conda", "mamba", "micromamba", "pixi"]


class Settings(Request):
    """What the daemon's configuration says to a proxy, sent once a connection; the keys of sksd.conf."""

    exclude: list[str] = []
    paths: list[str] = []
    log_size: Annotated[int, Meta(ge=4096)] = 1024 * 1024
    journal_size: Annotated[int, Meta(ge=65536)] = 256 * 1024 * 1024
    buffer_size: Annotated[int, Meta(ge=65536)] = 1024 * 1024 * 1024
    #: Seconds after which an engine that nobody uses is stopped; None: never.
    idle_timeout: Annotated[float, Meta(gt=0)] | None = None
    backend: Backend = "rattler"
    backend_executable: str = ""
    channels: list[str] = []
    allow_channels: list[str] = []
    offline: bool = False
    may_create: bool = True


class StartEngine(Request):
    """What a proxy asks its keeper: start an engine, activated. `arguments`: the command, with CONNECTION_FILE in it;
    `variables`: its whole environment; the rest as in `SpinUp` and `Engine`."""

    environment: str
    prefix: str
    python: str
    kernel: Kernel
    arguments: list[str]
    variables: dict[str, str]
    cwd: str | None = None
    linger: Seconds | None = None
    timeout: float = 60.0
    label: str = ""


class BegunEngine(Answer):
    """The keeper's answer to `StartEngine`. `version`: what the running kernel says of its own package's version,
    None where it says nothing."""

    engine: Engine
    ticket: Ticket
    version: str | None = None


class ProxyInfo(Answer):
    """The proxy's answer to `Settings`, and the keeper's."""

    protocol: int
    version: str
    pid: int
    engines: list[Engine]


M = TypeVar("M", bound=msgspec.Struct)


def read(shape: type[M], value: object) -> M:
    """`value`, a plain dict from the wire, as a `shape`; raises BadRequest with the place and the reason."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise BadRequest(problem=str(error)) from None


#: Bytes of one string; Perspective Broker takes 640 KiB.
_CHUNK: Final = 512 * 1024


def packed(message: msgspec.Struct) -> list[bytes]:
    """`message` as the chunks of JSON that an answer carries."""
    data = msgspec.json.encode(message)
    return [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]


def unpacked(shape: type[M], value: object) -> M:
    """An answer's chunks as a `shape`; raises BadAnswer where it is something else."""
    try:
        return msgspec.json.decode(b"".join(msgspec.convert(value, list[bytes])), type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadAnswer(problem=str(error)) from None


def plain(message: msgspec.Struct) -> dict[str, Any]:
    """`message` as the fresh tree of dicts, lists and scalars that the broker carries."""
    result: dict[str, Any] = msgspec.to_builtins(message)
    return result
