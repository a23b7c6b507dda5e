"""What a person calls a host, and how to reach it: `HOST` of the command line and of the Spyder plugin."""

from __future__ import annotations

import ipaddress
import os
import re
import unicodedata
from pathlib import Path
from typing import Any, Final

import attrs

from sksd import paths
from sksd.client import discovery, tls
from sksd.client.trust import KnownHosts, host_key
from sksd.errors import BadHost, NoLocalDaemon, NoSuchHost, Unreachable
from sksd.wire.fingerprint import normal
from sksd.wire.local import Note, read_note

LOCAL: Final = "local"
#: Seconds to look for a name on the network.
LOOKUP: Final = 3.0
#: Letters of a name: more cannot be announced, nor be a host name.
_LONGEST: Final = 255
#: What follows the last colon of ADDRESS:PORT; a pretty name may have a colon with a space after it.
_PORT: Final = re.compile(r"[^:\s]*")


@attrs.frozen
class Place:
    """HOST as read, before anybody was asked. `local`; or `address` and `port`; or a `name` to look up, which may
    be an address."""

    text: str
    local: bool = False
    name: str = ""
    address: str = ""
    port: int = 0


def parse(text: str) -> Place:
    """What the person means by `text`. Raises BadHost; asks nobody."""
    shown = "".join("?" if unicodedata.category(letter) == "Cc" else letter for letter in text)
    bad = BadHost(host=shown[:_LONGEST])
    name = text.strip(" ")
    if not name or len(name) > _LONGEST or "/" in name or "\\" in name or shown != text or name.startswith("-"):
        raise bad
    if name.casefold() == LOCAL:
        return Place(LOCAL, local=True)
    if name.startswith("["):
        inner, bracket, rest = name[1:].partition("]")
        if not bracket or _ip(inner) is None or (rest and not rest.startswith(":")):
            raise bad
        return Place(name, address=inner, port=_port(rest[1:], bad)) if rest else Place(name, name=inner)
    before, colon, after = name.rpartition(":")
    if not colon or _ip(name) is not None or not _PORT.fullmatch(after):
        return Place(name, name=name)
    if not before or ":" in before or " " in before:
        raise bad
    return Place(name, address=before, port=_port(after, bad))


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _port(text: str, bad: BadHost) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise bad
    return int(text)


@attrs.frozen
class FromNote(KnownHosts):
    """Knows one host, by what its own note says: whoever may write that note is the user already."""

    fingerprint: str = ""

    def get(self, key: str) -> str | None:
        """The fingerprint of the note."""
        return normal(self.fingerprint)

    def client(self, key: str) -> None:
        """A note names no certificate of the client's."""


@attrs.define
class Target:
    """One host that can be reached: the `Route` of a session and of its links.

    `name` is what the person called it, `key` its name in the known hosts. `own`: the daemon of this very user on
    this machine, which takes the local token. `socket`: that of this machine's shared daemon, which knows who
    connects. With `ca` the certificate must come from there and be for
    `certificate_name`.
    """

    name: str
    address: str
    port: int
    key: str
    known: KnownHosts
    accept_new: bool = False
    ca: Path | None = None
    certificate_name: str = ""
    pretty: str = ""
    own: bool = False
    client: tls.ClientFiles | None = None
    socket: str = ""

    def creator(self, alpn: bytes) -> tls.Creator:
        """TLS for one connection; raises KnownHostsBroken, CertificateRefused or ClientCertificateUnusable."""
        return tls.context(
            self.key,
            alpn,
            known=self.known,
            accept_new=self.accept_new,
            name=self.pretty,
            ca=self.ca,
            hostname=self.certificate_name,
            client=self.client or (self.known.client(self.key) if self.ca is None else None),
        )


def local_target() -> Target:
    """This user's own daemon, else the system's. Raises NoLocalDaemon."""
    note = read_note(paths.daemon_note())
    own = note is not None
    if note is None:
        note = _system_note()
    if note is None:
        raise NoLocalDaemon()
    known = FromNote(fingerprint=note.fingerprint)
    return Target(LOCAL, note.address, note.port, LOCAL, known, pretty=note.name, own=own, socket=note.socket)


def _system_note() -> Note | None:
    """The note of the system's daemon, which belongs to root and which nobody else can write."""
    import msgspec

    path = paths.system_note()
    try:
        about = os.stat(path)
        if about.st_uid != 0 or about.st_mode & 0o022:
            return None
        note = msgspec.json.decode(path.read_bytes(), type=Note)
        # It cannot take the note away: root's folder is none of its business any more.
        return note if os.path.exists(f"/proc/{note.pid}") else None
    except (OSError, msgspec.MsgspecError):
        return None


async def target(
    reactor: Any,
    host: str,
    *,
    accept_new: bool = False,
    ca: Path | None = None,
    seconds: float = LOOKUP,
    known: KnownHosts | None = None,
    client: tls.ClientFiles | None = None,
) -> Target:
    """The host that a person calls `host`; `seconds` are for looking up a name on the network.

    Raises BadHost, NoLocalDaemon, NoSuchHost; Unreachable when a host announces itself but takes no connection.
    """
    place = parse(host)
    if place.local:
        return attrs.evolve(local_target(), client=client)
    known = known or KnownHosts()
    if place.port:
        key = host_key(place.text)
        return Target(
            place.text, place.address, place.port, key, known, accept_new, ca, certificate_name=place.address,
            client=client,
        )
    found = await _look_up(reactor, place.name, seconds)
    address = await discovery.alive(reactor, found)
    if address is None:
        where = f"{found.addresses[0]}:{found.port}"
        raise Unreachable(host=place.name, address=where, problem="no answer")
    return Target(
        place.name,
        address,
        found.port,
        host_key(place.name),
        known,
        accept_new,
        ca,
        certificate_name=place.name,
        pretty=found.name,
        client=client,
    )


async def _look_up(reactor: Any, name: str, seconds: float) -> discovery.Found:
    wanted = _ip(name)
    if wanted is None:
        return await discovery.resolve_name(reactor, name, seconds)
    for found in await discovery.browse(reactor, seconds):
        if str(wanted) in found.addresses:
            return found
    raise NoSuchHost(host=name)
