"""The hosts whose certificates this user has accepted, as ssh's known_hosts.

A host is known under THE NAME THAT THE PERSON USED, in lower case: the discovered name (`lab`), or the
address as given (`192.0.2.7:8443`). A discovered name comes without the port, because the daemon's port may
change; an address is what it is. So one host may be known under several names, and whoever takes over a name
is noticed.

    {"version": 1,
     "hosts": {"lab": {"fingerprint": "SHA256:...", "name": "Lab", "added": "2026-11-20T10:00:00Z"}}}
"""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import msgspec

from sksd import paths
from sksd.errors import CertificateChanged, CertificateUnknown, KnownHostsBroken
from sksd.wire.fingerprint import normal, same

_VERSION: Final = 1
#: Bytes of the file.
_LARGEST: Final = 4 * 1024 * 1024


class _Host(msgspec.Struct, forbid_unknown_fields=True):
    fingerprint: str
    name: str = ""
    added: str = ""
    #: Files of the certificate that this user shows there, and of its key.
    client_certificate: str = ""
    client_key: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    hosts: dict[str, _Host]


@attrs.frozen
class Known:
    """One known host, for listings. `added`: ISO 8601 in UTC."""

    key: str
    fingerprint: str
    name: str
    added: str


def host_key(used: str) -> str:
    """The key of the host that a person called `used`."""
    return used.strip().rstrip(".").casefold()


@attrs.frozen
class KnownHosts:
    """The file of known hosts. Read anew at every question; every method raises KnownHostsBroken when the
    file cannot be used, and then leaves it as it is."""

    path: Path = attrs.field(factory=lambda: paths.state() / "known_hosts.json")

    def _broken(self, problem: str) -> KnownHostsBroken:
        return KnownHostsBroken(file=str(self.path), problem=problem)

    def _read(self) -> _File:
        try:
            with open(self.path, "rb") as file:
                about = os.fstat(file.fileno())
                data = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return _File(_VERSION, {})
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from None
        if about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise self._broken("others may write it")
        if len(data) > _LARGEST:
            raise self._broken("it is too large")
        try:
            found = msgspec.json.decode(data, type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._broken(str(error)) from None
        if found.version != _VERSION:
            raise self._broken(f"it is of version {found.version}, this sksd knows {_VERSION}")
        for key, host in found.hosts.items():
            if normal(host.fingerprint) is None:
                raise self._broken(f"the fingerprint of {key} is none")
        return found

    @contextmanager
    def _change(self) -> Iterator[_File]:
        """What is there, to be changed in place; written back whole unless the block raises."""
        try:
            paths.private(self.path.parent)
            # Not the file itself, which each writing replaces.
            lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                content = self._read()
                yield content
                data = msgspec.json.format(msgspec.json.encode(content), indent=2)
                paths.write_private(self.path, data + b"\n")
            finally:
                os.close(lock)
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from None

    def get(self, key: str) -> str | None:
        """The fingerprint that is known for the host, or None."""
        host = self._read().hosts.get(key)
        return None if host is None else normal(host.fingerprint)

    def client(self, key: str) -> tuple[Path, Path] | None:
        """The files of the certificate and key that the user shows to the host; None where there are none."""
        host = self._read().hosts.get(key)
        if host is None or not host.client_certificate:
            return None
        return Path(host.client_certificate), Path(host.client_key)

    def show(self, key: str, certificate: Path, private: Path) -> None:
        """Show these files to a known host from now on."""
        with self._change() as content:
            host = content.hosts[key]
            host.client_certificate, host.client_key = str(certificate.absolute()), str(private.absolute())

    def all(self) -> list[Known]:
        """Every known host, by key."""
        hosts = sorted(self._read().hosts.items())
        return [Known(key, host.fingerprint, host.name, host.added) for key, host in hosts]

    def remember(self, key: str, fingerprint: str, name: str = "") -> None:
        """Know the host by `fingerprint` from now on, whatever was known before: a person has said so.

        `name`: pretty name, for people who read the file. Raises ValueError when `fingerprint` is none.
        """
        self._remember(key, fingerprint, name, replace=True)

    def _remember(self, key: str, fingerprint: str, name: str, replace: bool) -> str:
        clean = normal(fingerprint)
        if clean is None:
            raise ValueError("not a fingerprint")
        now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
        with self._change() as content:
            if not replace and key in content.hosts:
                return content.hosts[key].fingerprint
            content.hosts[key] = _Host(clean, name, now)
        return clean

    def forget(self, key: str) -> bool:
        """No longer know the host; False when it was not known."""
        with self._change() as content:
            return content.hosts.pop(key, None) is not None

    def check(self, key: str, fingerprint: str, accept_new: bool = False, name: str = "") -> None:
        """Pass when the host is known by `fingerprint`; remember it when it is not known and `accept_new`.

        Raises CertificateUnknown, or CertificateChanged, which `accept_new` never prevents.
        """
        known = self.get(key)
        if known is None and accept_new:
            # Another process may know the host by now.
            known = self._remember(key, fingerprint, name, replace=False)
        if known is None:
            raise CertificateUnknown(host=key, fingerprint=fingerprint)
        if not same(known, fingerprint):
            raise CertificateChanged(host=key, expected=known, fingerprint=fingerprint)
