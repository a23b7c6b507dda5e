"""What a host tells the local network about itself: the TXT record of its `_sksd._tcp` service (RFC 6763).

Pure: the daemon's publisher encodes, the client's discovery decodes. A record comes from anybody on the
network, so `decode` never raises, and what it lets through can be written to a terminal.

    key          value
    txtvers      1
    version      version of sksd
    protocol     version of the protocol (sksd.wire.names.PROTOCOL)
    name         pretty name
    host         the name that the machine gives itself
    fingerprint  of its certificate: for people to compare, never trusted
    running      number of engines that run
    max          number of engines that may run
    methods      login methods, separated by commas
    envs, envs2, envs3, ...
                 names of environments, separated by commas; `%2C` and `%25` stand for a comma and a percent
                 sign
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs

from sksd.wire import fingerprint as fingerprints

#: Bytes of one `key=value` (RFC 6763, section 6.1: one length byte), and of the whole record with length
#: bytes (section 6.2: it then fits into one Ethernet frame).
LONGEST_STRING: Final = 255
LONGEST_RECORD: Final = 1300
#: Bytes of a service's instance name: one DNS label (RFC 6763, section 4.1.1).
LONGEST_INSTANCE: Final = 63

_VERSION: Final = b"1"
_LONGEST_NAME: Final = 120
_LONGEST_SHORT: Final = 32
_MOST_METHODS: Final = 8
_LARGEST_NUMBER: Final = 1_000_000
_NUMBER: Final = re.compile(rb"[0-9]{1,7}")
#: Control, format (which includes right-to-left overrides), surrogate, line and paragraph separator.
_UNPRINTABLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str, size: int) -> str:
    """`text` on one line, without anything that could steer a terminal, in at most `size` bytes of UTF-8."""
    kept = "".join(" " if unicodedata.category(letter) in _UNPRINTABLE else letter for letter in text)
    kept = " ".join(kept.split())
    return kept.encode("utf-8")[:size].decode("utf-8", "ignore").rstrip()


def instance(name: str) -> str:
    """The instance name under which a host with the pretty name `name` is registered.

    A dot would be taken for a border between DNS labels by many resolvers; the pretty name itself is in the
    record.
    """
    return printable(name.replace(".", "-").replace("\\", "-"), LONGEST_INSTANCE).lstrip("_") or "sksd"


@attrs.frozen
class Announcement:
    """One host's record. `running` and `maximum` are None where the record does not tell.

    `environments` may be incomplete: names that did not fit were left out.
    """

    version: str
    protocol: int
    name: str
    hostname: str
    fingerprint: str = ""
    running: int | None = None
    maximum: int | None = None
    methods: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()


def _cost(key: str, value: bytes) -> int:
    return 1 + len(key) + 1 + len(value)


def _listed(names: Iterable[str], size: int, most: int) -> list[bytes]:
    seen: dict[bytes, None] = {}
    for name in names:
        clean = printable(name, size)
        if clean and len(seen) < most:
            seen[clean.replace("%", "%25").replace(",", "%2C").encode("utf-8")] = None
    return list(seen)


def _keys() -> Iterator[str]:
    yield "envs"
    for number in range(2, 100):
        yield f"envs{number}"


def _environments(names: Iterable[str], room: int) -> dict[str, bytes]:
    """Whole names only, in order, until the first that does not fit in `room` bytes."""
    strings: dict[str, bytes] = {}
    keys = _keys()
    key, value = next(keys), b""
    for name in _listed(names, _LONGEST_NAME, 1000):
        longer = value + b"," + name if value else name
        if len(key) + 1 + len(longer) > LONGEST_STRING:
            room -= _cost(key, value)
            key, longer = next(keys), name
        if _cost(key, longer) > room or len(key) + 1 + len(longer) > LONGEST_STRING:
            break
        strings[key] = value = longer
    return strings


def encode(announcement: Announcement) -> dict[str, bytes]:
    """The strings of the TXT record, in their order. Whatever the announcement holds, the record is in
    bounds."""
    said = announcement
    record = {
        "txtvers": _VERSION,
        "version": printable(said.version, _LONGEST_SHORT).encode("utf-8"),
        "protocol": str(min(max(said.protocol, 0), _LARGEST_NUMBER)).encode("ascii"),
        "name": printable(said.name, _LONGEST_NAME).encode("utf-8"),
        "host": printable(said.hostname, _LONGEST_NAME).encode("utf-8"),
    }
    if fingerprint := fingerprints.normal(said.fingerprint):
        record["fingerprint"] = fingerprint.encode("ascii")
    for key, number in (("running", said.running), ("max", said.maximum)):
        if number is not None:
            record[key] = str(min(max(number, 0), _LARGEST_NUMBER)).encode("ascii")
    if methods := _listed(said.methods, _LONGEST_SHORT // 2, _MOST_METHODS):
        record["methods"] = b",".join(methods)
    return record | _environments(said.environments, LONGEST_RECORD - size(record))


def size(record: Mapping[str, bytes]) -> int:
    """Bytes that the record takes on the wire."""
    return sum(_cost(key, value) for key, value in record.items())


def _text(value: bytes | None, length: int) -> str:
    return printable((value or b"").decode("utf-8", "replace"), length)


def _number(value: bytes | None) -> int | None:
    if value is None or _NUMBER.fullmatch(value) is None:
        return None
    number = int(value)
    return number if number <= _LARGEST_NUMBER else None


def _names(value: bytes | None) -> Iterator[str]:
    for name in (value or b"").split(b","):
        clean = _text(name.replace(b"%2C", b",").replace(b"%25", b"%"), _LONGEST_NAME)
        if clean:
            yield clean


def decode(properties: Mapping[bytes, bytes | None]) -> Announcement | None:
    """What a record says, safe to print; None when it is not a record of ours, or out of bounds.

    Unknown keys are of a newer version and ignored; a known key with a value that makes no sense is as if it
    were not there. Keys do not mind case, and the first of several counts (RFC 6763, section 6.4).
    """
    record: dict[str, bytes | None] = {}
    total = 0
    for raw, value in properties.items():
        length = len(raw) + 1 + len(value or b"")
        total += length + 1
        if length > LONGEST_STRING or total > LONGEST_RECORD:
            return None
        record.setdefault(raw.decode("ascii", "replace").lower(), value)
    protocol = _number(record.get("protocol"))
    if record.get("txtvers") != _VERSION or protocol is None:
        return None
    environments: dict[str, None] = {}
    for key in _keys():
        if key not in record:
            break
        environments.update(dict.fromkeys(_names(record[key])))
    return Announcement(
        version=_text(record.get("version"), _LONGEST_SHORT),
        protocol=protocol,
        name=_text(record.get("name"), _LONGEST_NAME),
        hostname=_text(record.get("host"), _LONGEST_NAME),
        fingerprint=fingerprints.normal(_text(record.get("fingerprint"), LONGEST_STRING)) or "",
        running=_number(record.get("running")),
        maximum=_number(record.get("max")),
        methods=tuple(dict.fromkeys(_names(record.get("methods"))))[:_MOST_METHODS],
        environments=tuple(environments),
    )
