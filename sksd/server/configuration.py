"""The daemon's configuration: an INI file, every key of which has a default.

`KEYS` is the one list of what there is; `etc/sksd.conf` shows the same with the same defaults, which a test
proves. The service reads it once at the start, before anything listens.
"""

from __future__ import annotations

import configparser
import difflib
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast, get_args

import attrs

from sksd import paths
from sksd.errors import ConfigurationError, ConfigurationFile
from sksd.server import arithmetic
from sksd.wire.messages import Backend

#: The configuration of a daemon that root starts.
SYSTEM_FILE: Final = Path("/etc/sksd/sksd.conf")
#: Bytes of a configuration file.
LARGEST_FILE: Final = 1024 * 1024

_SUFFIXES: Final = {"": 1, "K": 1024, "M": 1024 * 1024, "G": 1024**3}
#: What no line of text holds: C0 without tab, line feed and carriage return, DEL, C1.
_BINARY: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _cores() -> int:
    # Not on every platform; where it is, it knows what taskset and cpusets leave.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@attrs.frozen
class Machine:
    """What defaults depend on: the machine's own name, and its number of usable cores."""

    hostname: str = attrs.field(factory=socket.gethostname)
    cores: int = attrs.field(factory=_cores)


Parse = Callable[[str, Machine], Any]


def _switch(text: str, machine: Machine) -> bool:
    value = {"yes": True, "true": True, "on": True, "1": True}.get(text.lower())
    if value is None and text.lower() not in ("no", "false", "off", "0"):
        raise ValueError("it must be yes or no")
    return bool(value)


def _mode(text: str, machine: Machine) -> str:
    if text not in ("user", "system"):
        raise ValueError("it must be user or system")
    return text


def _audit(text: str, machine: Machine) -> str:
    if text not in ("auto", "journal", "file", "no"):
        raise ValueError("it must be auto, journal, file or no")
    return text


def _account(text: str, machine: Machine) -> str:
    if not re.fullmatch(r"[^\s:/,]{1,32}", text):
        raise ValueError("it must be the name of an account")
    return text


def _account_or_none(text: str, machine: Machine) -> str:
    return _account(text, machine) if text else ""


def _limit(text: str, machine: Machine) -> int | None:
    found = re.fullmatch(r"([0-9]{1,12}) ?([KMG]?)B?", text.upper())
    if text and (found is None or not int(found[1])):
        raise ValueError("it must be a number, with K, M or G behind it for more, or empty")
    return int(found[1]) * _SUFFIXES[found[2]] if found else None


def _line(text: str, machine: Machine) -> str:
    return text


def _pretty(text: str, machine: Machine) -> str:
    if len(text.encode()) > 63:
        raise ValueError("it is longer than 63 bytes")
    return text or machine.hostname


def _address(text: str, machine: Machine) -> str:
    if not text:
        return ""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("it must be an IP address as 192.0.2.7 or fd00::7, or empty for all") from None


def _port(text: str, machine: Machine) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError("it must be a number from 0 to 65535")
    return int(text)


def _file(text: str, machine: Machine) -> Path | None:
    if not text:
        return None
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError("it must be an absolute path, or begin with ~/")
    return path


def _maximum(text: str, machine: Machine) -> int:
    value = arithmetic.compute(text, {"CORES": machine.cores})
    if not 1 <= value <= 10_000:
        raise ValueError(f"it is {value} on this machine, and must be from 1 to 10000")
    return value


def _maximum_or_any(text: str, machine: Machine) -> int | None:
    return _maximum(text, machine) if text else None


def _duration(text: str, machine: Machine) -> float | None:
    found = re.fullmatch(r"([0-9]{1,9}) ?(|s|seconds?|min|minutes?|h|hours?)", text.lower())
    if text and (found is None or not int(found[1])):
        raise ValueError("it must be a number of seconds, or as `90 s`, `30 min`, `2 h`, or empty")
    return float(int(found[1]) * {"h": 3600, "m": 60}.get(found[2][:1], 1)) if found else None


def _size(text: str, machine: Machine) -> int:
    return _amount(text, 4096, 1024**3, "from 4K to 1024M")


def _large_size(text: str, machine: Machine) -> int:
    return _amount(text, 1024**2, 1024**4, "from 1M to 1048576M")


def _amount(text: str, least: int, most: int, bounds: str) -> int:
    found = re.fullmatch(r"([0-9]{1,12}) ?([KM]?)B?", text.upper())
    if found is None:
        raise ValueError("it must be a number of bytes, with K or M behind it for more")
    value = int(found[1]) * _SUFFIXES[found[2]]
    if not least <= value <= most:
        raise ValueError(f"it must be {bounds}")
    return value


def _split(text: str) -> Iterator[str]:
    return (part.strip() for part in re.split(r"[,\n]", text) if part.strip())


def _patterns(text: str, machine: Machine) -> tuple[str, ...]:
    return tuple(_split(text))


def _backend(text: str, machine: Machine) -> Backend:
    if text not in get_args(Backend):
        raise ValueError(f"it must be one of {', '.join(get_args(Backend))}")
    return cast(Backend, text)


def _folders(text: str, machine: Machine) -> tuple[str, ...]:
    folders = tuple(os.path.expanduser(folder) for folder in _split(text))
    for folder in folders:
        if not os.path.isabs(folder):
            raise ValueError(f"'{folder}' must be an absolute path, or begin with ~/")
    return folders


@attrs.frozen
class Key:
    """One key: where it stands, how it is read, its default as the file would say it, and what it does.

    `name` is the attribute of Configuration, too. `parse` raises ValueError with the problem in words.
    """

    section: str
    name: str
    parse: Parse
    default: str
    explanation: str
    several_lines: bool = False


KEYS: Final = (
    Key(
        "sksd", "mode", _mode, "user", "Whom the daemon serves: the user who starts it, or all accounts."
    ),
    Key("sksd", "run_as", _account, "_sksd", "With mode = system, whom the part that reads the network runs as."),
    Key("sksd", "allow_root", _switch, "no", "With mode = system, whether root may log in."),
    Key(
        "sksd",
        "allow_users",
        _patterns,
        "",
        "With mode = system, who may log in: accounts or patterns, separated by commas. Empty: everybody.",
        several_lines=True,
    ),
    Key(
        "sksd",
        "deny_users",
        _patterns,
        "",
        "With mode = system, who may not, whatever else allows it: accounts or patterns.",
        several_lines=True,
    ),
    Key(
        "sksd",
        "allow_groups",
        _patterns,
        "",
        "With mode = system, groups whose members may log in, too: names or patterns.",
        several_lines=True,
    ),
    Key("sksd", "enable", _switch, "yes", "`no`: the daemon refuses to start."),
    Key("sksd", "name", _pretty, "", "The name under which people find this host. Empty: the machine's name."),
    Key("sksd", "description", _line, "", "One line about this host, for people."),
    Key("sksd", "listen", _address, "", "The address to listen on. Empty: all of them."),
    Key("sksd", "port", _port, "0", "The TCP port. 0: a free one, chosen at the first start and remembered."),
    Key("sksd", "announce", _switch, "yes", "Whether the local network is told that this host is here."),
    Key(
        "sksd",
        "announce_environments",
        _switch,
        "no",
        "Whether the names of the environments are told to the local network, too.",
    ),
    Key("sksd", "ssh_keys", _switch, "yes", "Whether the SSH keys in ~/.ssh/authorized_keys open the account, too."),
    Key("sksd", "audit", _audit, "auto", "Where logins, and what they start and stop, are recorded."),
    Key(
        "tls", "certificate", _file, "", "A certificate of your own, PEM, with its chain. Empty: one is made."
    ),
    Key("tls", "key", _file, "", "The private key of that certificate, PEM, readable by its owner only."),
    Key("tls", "client_ca", _file, "", "The CA, PEM, whose certificates clients must show. Empty: they need none."),
    Key(
        "kernels",
        "max_kernels",
        _maximum,
        "4 * CORES",
        "How many kernels may run at once: a number, or arithmetic on CORES.",
    ),
    Key(
        "kernels",
        "max_kernels_per_user",
        _maximum_or_any,
        "",
        "How many kernels of one user may run at once: a number, or arithmetic on CORES. Empty: max_kernels.",
    ),
    Key("kernels", "idle_timeout", _duration, "", "How long a kernel may go unused before it is stopped."),
    Key("kernels", "log_size", _size, "1M", "How much of what each kernel's process writes is kept in its log."),
    Key("kernels", "journal_size", _large_size, "256M", "How much of what each kernel has said is kept on disk."),
    Key("kernels", "buffer_size", _large_size, "1024M", "How much may wait on disk for a front end that is cut."),
    Key(
        "guest",
        "guest_account",
        _account_or_none,
        "",
        "With mode = system, the account that guests share, who need no password. Empty: there are none.",
    ),
    Key("guest", "guest_unknown", _switch, "no", "Whether somebody whose name no account has comes in as a guest."),
    Key(
        "guest",
        "guest_can_manage_environments",
        _switch,
        "no",
        "Whether guests may make, change and remove the environments that they share.",
    ),
    Key("guest", "max_guests", _maximum, "2 * CORES", "How many guests there may be at once."),
    Key("limits", "memory", _limit, "", "With mode = system, bytes of address space of each process. Empty: any."),
    Key("limits", "processes", _limit, "", "With mode = system, processes and threads of each user. Empty: any."),
    Key("limits", "open_files", _limit, "", "With mode = system, open files of each process. Empty: any."),
    Key(
        "environments",
        "exclude_environments",
        _patterns,
        "base, _*",
        "Environments that are not offered: names or patterns, separated by commas.",
        several_lines=True,
    ),
    Key(
        "environments",
        "paths",
        _folders,
        "",
        "Further folders to look for environments in: paths or patterns, separated by commas.",
        several_lines=True,
    ),
    Key(
        "environments", "may_create", _switch, "yes", "Whether people may make, change and remove environments."
    ),
    Key(
        "environments",
        "backend",
        _backend,
        "rattler",
        "What changes environments: rattler (which comes with sksd), conda, mamba, micromamba or pixi.",
    ),
    Key(
        "environments",
        "backend_executable",
        _line,
        "",
        "Another backend's program: a path, or a name on PATH. Empty: the backend's own name.",
    ),
    Key(
        "environments",
        "channels",
        _patterns,
        "",
        "Channels to use instead of those of each person's .condarc, separated by commas. Empty: theirs.",
        several_lines=True,
    ),
    Key(
        "environments",
        "allow_channels",
        _patterns,
        "",
        "The only channels that may be used, separated by commas. Empty: all.",
        several_lines=True,
    ),
    Key("environments", "offline", _switch, "no", "Whether environments are made from the package cache alone."),
)
#: Keys that a section [user NAME] may have, for that account alone.
OF_USER: Final = ("max_kernels_per_user", "idle_timeout", "exclude_environments", "may_create")
_KNOWN: Final = {(key.section, key.name): key for key in KEYS}
_OF_USER: Final = {key.name: key for key in KEYS if key.name in OF_USER}
_USER: Final = re.compile(r"user ([^\s:/,]{1,32})")
_SECTIONS: Final = tuple(dict.fromkeys(key.section for key in KEYS))


@attrs.frozen(kw_only=True)
class Configuration:
    """What the daemon was told. `file` is None when there was none; `lines` says where each given key
    stands."""

    #: `user` or `system`.
    mode: str
    #: The account's name, which need not exist.
    run_as: str
    allow_root: bool
    #: fnmatch patterns of names.
    allow_users: tuple[str, ...]
    deny_users: tuple[str, ...]
    allow_groups: tuple[str, ...]
    enable: bool
    #: Pretty name, never empty.
    name: str
    description: str
    #: An IP address; empty means all of them, IPv4 and IPv6.
    listen: str
    #: 0 means a free one, remembered.
    port: int
    announce: bool
    announce_environments: bool
    ssh_keys: bool
    #: `auto`, `journal`, `file` or `no` (sksd.server.audit).
    audit: str
    #: Absolute paths of PEM files; both or neither.
    certificate: Path | None
    key: Path | None
    client_ca: Path | None
    #: At least 1.
    max_kernels: int
    #: None: as many as there may be in all.
    max_kernels_per_user: int | None
    #: Seconds; None: no kernel is stopped for it.
    idle_timeout: float | None
    #: Bytes kept of each kernel's log.
    log_size: int
    journal_size: int
    buffer_size: int
    #: The account's name, which need not exist; empty: no guests.
    guest_account: str
    guest_unknown: bool
    guest_can_manage_environments: bool
    max_guests: int
    #: setrlimit(2)'s RLIMIT_AS, RLIMIT_NPROC and RLIMIT_NOFILE, or None.
    memory: int | None
    processes: int | None
    open_files: int | None
    #: fnmatch patterns of names.
    exclude_environments: tuple[str, ...]
    #: Absolute folders, or glob patterns of folders.
    paths: tuple[str, ...]
    may_create: bool
    backend: Backend
    #: A path, or a name on PATH; empty: the backend's own name.
    backend_executable: str
    #: Names or URLs of conda channels.
    channels: tuple[str, ...]
    allow_channels: tuple[str, ...]
    offline: bool
    #: By account, what its section says otherwise.
    users: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    file: Path | None = None
    lines: Mapping[tuple[str, str], int] = attrs.field(factory=dict, repr=False, eq=False)

    def line(self, section: str, name: str) -> int:
        """The line of a key, for the error that its value causes later (PortBusy); 0 when it was not
        given."""
        return self.lines.get((section, name), 0)

    def of(self, account: str) -> Configuration:
        """What holds for one account: its section [user NAME] wins."""
        return attrs.evolve(self, **self.users.get(account, {}))

    def check_enabled(self) -> None:
        """Called by the service before it starts; raises ConfigurationError when `enable` is no."""
        if not self.enable:
            raise ConfigurationError(
                file=str(self.file),
                line=self.line("sksd", "enable"),
                problem="sksd is switched off here (enable = no): say `enable = yes` to start it",
            )


def place(environ: Mapping[str, str] = os.environ, *, uid: int | None = None, system: Path = SYSTEM_FILE) -> Path:
    """The file that counts: $SKSD_CONF, else the system's when root starts the daemon and there is one, else
    the caller's own. It need not exist."""
    if given := environ.get("SKSD_CONF", ""):
        return Path(given).expanduser()
    if (os.geteuid() if uid is None else uid) == 0 and system.exists():
        return system
    return paths.configuration_file()


def _bytes(path: Path) -> bytes:
    """The file's content, once it is sure that nobody else could have written it."""
    try:
        # Not to be held up by a FIFO in the place of the file.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                problem = "it is not an ordinary file"
            elif about.st_uid not in (0, os.geteuid()):
                problem = "it belongs to somebody else, and must belong to you or to root"
            elif about.st_mode & 0o022:
                problem = f"others may write it: say `chmod go-w {path}`"
            elif about.st_size > LARGEST_FILE:
                problem = "it is larger than 1 MB"
            else:
                return file.read(LARGEST_FILE)
    except OSError as error:
        problem = {
            FileNotFoundError: "there is no such file",
            PermissionError: "you may not read it",
            IsADirectoryError: "it is a folder, not a file",
        }.get(type(error), error.strerror or str(error))
    except ValueError as error:
        # A NUL in the path.
        raise ConfigurationFile(file=repr(str(path)), problem=str(error)) from None
    raise ConfigurationFile(file=str(path), problem=problem)


def _text(path: Path, data: bytes) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(file=str(path), line=line, problem="this is not UTF-8 text") from None
    if found := _BINARY.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigurationError(file=str(path), line=line, problem="this is not text") from None
    # Not splitlines(), which knows more ends of lines than an editor counts.
    return text.split("\n")


class _Parser(configparser.ConfigParser):
    """Remembers the line of each section and key: configparser tells lines only of its own errors."""

    def __init__(self) -> None:
        super().__init__(
            delimiters=("=",),
            interpolation=None,
            # [DEFAULT] is to be an unknown section as any other.
            default_section="\n",
        )
        self._at = 0
        self._seen: list[int] = []

    def optionxform(self, optionstr: str) -> str:
        # Called once for each key as its line is read.
        self._seen.append(self._at)
        return optionstr.lower()

    def read_lines(self, lines: list[str]) -> dict[tuple[str, str], int]:
        """Read all; the answer gives the line of each (section, key)."""

        def counted() -> Iterator[str]:
            for self._at, line in enumerate(lines, start=1):
                yield line

        self.read_file(counted())
        keys = [(section, name) for section in self.sections() for name in self._sections[section]]
        return dict(zip(keys, self._seen, strict=True))

    _sections: dict[str, dict[str, str]]


def _hint(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {close[0]}?" if close else f" (there are {', '.join(known)})"


def _parsed(path: Path, lines: list[str]) -> tuple[_Parser, dict[tuple[str, str], int]]:
    def wrong(line: int, problem: str) -> ConfigurationError:
        return ConfigurationError(file=str(path), line=line, problem=problem)

    parser = _Parser()
    try:
        return parser, parser.read_lines(lines)
    except configparser.DuplicateSectionError as error:
        raise wrong(error.lineno or 0, f"the section [{error.section}] is there already") from None
    except configparser.DuplicateOptionError as error:
        raise wrong(error.lineno or 0, f"{error.option} is there already in [{error.section}]") from None
    except configparser.MissingSectionHeaderError as error:
        raise wrong(error.lineno, "a section as [sksd] must come first") from None
    except configparser.ParsingError as error:
        raise wrong(int(error.errors[0][0]), "this is neither `key = value` nor a [section]") from None


def _section_line(lines: list[str], section: str) -> int:
    header = re.compile(rf"\s*\[{re.escape(section)}\]")
    return next((number for number, line in enumerate(lines, start=1) if header.match(line)), 0)


def _values(path: Path, machine: Machine) -> tuple[dict[str, Any], dict[tuple[str, str], int]]:
    lines = _text(path, _bytes(path))
    parser, places = _parsed(path, lines)

    def wrong(line: int, problem: str) -> ConfigurationError:
        return ConfigurationError(file=str(path), line=line, problem=problem)

    known_sections = (*_SECTIONS, "user NAME")
    for section in parser.sections():
        if section not in _SECTIONS and not _USER.fullmatch(section):
            hint = _hint(section, known_sections)
            raise wrong(_section_line(lines, section), f"unknown section [{section}]{hint}")
    values: dict[str, Any] = {}
    users: dict[str, dict[str, Any]] = {}
    for (section, name), line in places.items():
        user = _USER.fullmatch(section)
        key = _OF_USER.get(name) if user else _KNOWN.get((section, name))
        if key is None:
            elsewhere = next((key.section for key in KEYS if key.name == name), None)
            known = OF_USER if user else tuple(key.name for key in KEYS if key.section == section)
            hint = f": it belongs into [{elsewhere}]" if elsewhere else _hint(name, known)
            raise wrong(line, f"unknown key {name} in [{section}]{hint}")
        text = parser.get(section, name)
        try:
            if "\n" in text and not key.several_lines:
                raise ValueError("the next line is indented and so belongs to it, but it takes one line only")
            said = users.setdefault(user[1], {}) if user else values
            said[key.name] = key.parse(text, machine)
        except ValueError as error:
            raise wrong(line, f"{name} = {' '.join(text.split())[:80]}: {error}") from None
    values["users"] = users
    if (values.get("certificate") is None) != (values.get("key") is None):
        given, other = ("certificate", "key") if values.get("certificate") else ("key", "certificate")
        raise wrong(places["tls", given], f"{given} is given without {other}: give both or neither")
    return values, places


def read(
    path: Path | None = None, environ: Mapping[str, str] = os.environ, machine: Machine | None = None
) -> Configuration:
    """The configuration in `path`, or at the default place when None.

    A file that was named (`path`, or $SKSD_CONF) must exist; a missing one at the default place means all
    defaults. Raises ConfigurationError with the file's line, or ConfigurationFile when the file cannot be
    used at all.
    """
    machine = machine or Machine()
    values = {key.name: key.parse(key.default, machine) for key in KEYS}
    named = path is not None or bool(environ.get("SKSD_CONF"))
    path = path or place(environ)
    if not named and not os.path.lexists(path):
        return Configuration(**values)
    given, lines = _values(path, machine)
    return Configuration(**(values | given), file=path, lines=lines)
