"""Several machines on one switch, each a network namespace, with cables to cut. Needs root and iproute2.

The machine's own network is never touched: the switch lives in a namespace of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
IP = shutil.which("ip", path=_PATH) or ""
BRIDGE = shutil.which("bridge", path=_PATH) or ""
SS = shutil.which("ss", path=_PATH) or ""
#: Why it cannot be had here, else empty.
MISSING = "" if not os.getuid() and IP and BRIDGE and SS else "network namespaces need root and iproute2"

#: States of a switch's port (linux/if_bridge.h); packets for a disabled one vanish, while its carrier stays.
_DISABLED, _FORWARDING = "0", "3"


class Network:
    """`hosts` machines, counted from 1, at 10.78.0.N. `close` undoes all; what a killed test left is swept first."""

    def __init__(self, hosts: int = 3) -> None:
        _sweep()
        self._name = f"sksd{os.getpid()}n"
        self._switch = f"{self._name}s"
        self._hosts = range(1, hosts + 1)
        self._made: list[str] = []
        try:
            self._make(self._switch)
            ip("-n", self._switch, "link", "add", "name", "switch", "type", "bridge", "stp_state", "0")
            ip("-n", self._switch, "link", "set", "switch", "up")
            for host in self._hosts:
                self._connect(host)
        except BaseException:
            self.close()
            raise

    def _make(self, name: str) -> None:
        ip("netns", "add", name)
        self._made.append(name)
        ip("-n", name, "link", "set", "lo", "up")

    def _connect(self, host: int) -> None:
        name = self.namespace(host)
        self._make(name)
        cable = ("link", "add", "name", "lan", "netns", name, "address", _mac(host), "type", "veth")
        ip(*cable, "peer", "name", f"port{host}", "netns", self._switch)
        ip("-n", self._switch, "link", "set", f"port{host}", "master", "switch", "up")
        self._up(host)

    def _up(self, host: int) -> None:
        """Link, address, route, and the others' addresses: what a cut by link down has taken away."""
        name = self.namespace(host)
        ip("-n", name, "link", "set", "lan", "up")
        ip("-n", name, "addr", "replace", f"{self.address(host)}/24", "dev", "lan")
        ip("-n", name, "route", "replace", "default", "dev", "lan")
        for other in self._hosts:
            # Known for good: else dropped packets would after a while be told as "no route to host".
            if other != host:
                neighbour = ("neigh", "replace", self.address(other), "lladdr", _mac(other))
                ip("-n", name, *neighbour, "dev", "lan", "nud", "permanent")

    def namespace(self, host: int) -> str:
        """The name of a machine's namespace."""
        return f"{self._name}{host}"

    def address(self, host: int) -> str:
        """A machine's address."""
        return f"10.78.0.{host}"

    def on(self, host: int, *command: str) -> tuple[str, ...]:
        """`command`, to be run on a machine; the program keeps its pid. Without `command`: sksd."""
        return (IP, "netns", "exec", self.namespace(host), *(command or (sys.executable, "-m", "sksd")))

    def cut_by_drop(self, host: int) -> None:
        """From now on packets from and to a machine vanish without a word, as behind a NAT that forgot."""
        self._port(host, _DISABLED)

    def cut_by_link_down(self, host: int) -> None:
        """Take a machine's interface down; it knows at once, and loses its routes."""
        ip("-n", self.namespace(host), "link", "set", "lan", "down")

    def reset_connections(self, host: int, port: int) -> None:
        """Reset every TCP connection that a machine has from or to `port`: both ends are told."""
        chosen = f"( sport = :{port} or dport = :{port} )"
        done = (IP, "netns", "exec", self.namespace(host), SS, "-K", "-n", "-t", chosen)
        _run(*done)

    def heal(self, host: int) -> None:
        """End every cut of a machine; harmless when there is none."""
        self._up(host)
        self._port(host, _FORWARDING)

    def _port(self, host: int, state: str) -> None:
        _run(BRIDGE, "-n", self._switch, "link", "set", "dev", f"port{host}", "state", state)

    def close(self) -> None:
        """Remove everything; programs that still run there lose their network. Harmless when done before."""
        while self._made:
            ip("netns", "del", self._made.pop())


def _mac(host: int) -> str:
    return f"02:73:6b:73:64:{host:02x}"


def ip(*arguments: str) -> str:
    """Run ip(8); answers what it said. A failure says why."""
    return _run(IP, *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _sweep() -> None:
    """Remove the namespaces of tests that were killed."""
    for line in ip("netns", "list").splitlines():
        found = re.match(r"(sksd(\d+)n[s\d])\b", line)
        if found and not os.path.exists(f"/proc/{found[2]}"):
            ip("netns", "del", found[1])
