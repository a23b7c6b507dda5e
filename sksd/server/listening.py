"""The daemon's socket, bound before the process goes into the background, so that a busy port is told to whoever
started it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from sksd import paths
from sksd.errors import CannotListen, PortBusy
from sksd.server.configuration import Configuration


def bind(
    configuration: Configuration, state: Path, owner: AbstractContextManager[None] | None = None
) -> socket.socket:
    """A listening socket as the configuration asks for; raises PortBusy or CannotListen.

    Without a configured port it is the one of the last time, if that is free, else another: clients that remember
    the port find the daemon again. The last one is kept in `state`, which is looked at as `owner`.
    """
    if configuration.port:
        try:
            return _bind(configuration.listen, configuration.port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                line = configuration.line("sksd", "port")
                raise PortBusy(file=str(configuration.file), line=line, port=configuration.port) from None
            raise _cannot(configuration, error) from None
    with owner or contextlib.nullcontext():
        try:
            return _chosen(configuration, state / "port")
        except OSError as error:
            raise _cannot(configuration, error) from None


def _chosen(configuration: Configuration, kept: Path) -> socket.socket:
    with contextlib.suppress(OSError, ValueError, OverflowError):
        return _bind(configuration.listen, int(kept.read_text()))
    bound = _bind(configuration.listen, 0)
    # Only a convenience: a full disk must not keep the daemon from starting.
    with contextlib.suppress(OSError):
        paths.write_private(kept, str(bound.getsockname()[1]).encode())
    return bound


def _cannot(configuration: Configuration, error: OSError) -> CannotListen:
    place = f"{configuration.listen or 'any address'}, port {configuration.port or 'any'}"
    return CannotListen(address=place, problem=error.strerror or str(error))


def _bind(address: str, port: int) -> socket.socket:
    if address:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        return _listening(family, address, port)
    try:
        return _listening(socket.AF_INET6, "::", port)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _listening(socket.AF_INET, "0.0.0.0", port)


def _listening(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        bound.bind((address, port))
        bound.listen(128)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def reachable_address(configuration: Configuration) -> str:
    """The address at which clients on this machine reach the daemon."""
    return configuration.listen if configuration.listen not in ("", "0.0.0.0", "::") else "127.0.0.1"
