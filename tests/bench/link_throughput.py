"""A link against plain TCP: MiB/s, waits, CPU. Run `python -m tests.bench.link_throughput [MiB]`.

    client --TCP--> relay's end --TCP, no TLS--> proxy's end --UNIX--> server

The two ends are a process each; CPU is theirs alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

CHUNK = 1 << 20
PINGS = 2000


def _remote(folder: Path, port_pipe: int) -> None:
    from sksd.link.remote import RemoteEnd
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory

    from sksd.link.hello import Hello
    from sksd.link.link import Link
    from sksd.link.protocol import LinkConnection

    info: dict[str, str | int] = {"transport": "ipc", "ip": str(folder / "e")}
    info |= {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "control"), 1)}

    def greet(link: Link, hello: Hello) -> None:
        RemoteEnd(reactor, link, info, lambda: True)

    link = Link.accepting(reactor, greet)
    port = reactor.listenTCP(0, Factory.forProtocol(lambda: LinkConnection(link)), interface="127.0.0.1")
    os.write(port_pipe, b"%d\n" % port.getHost().port)
    link.when_ended().addCallback(lambda _: reactor.stop())
    reactor.run()


def _local(folder: Path, remote_port: int, port_pipe: int) -> None:
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

    from sksd.link.hello import new_hello
    from sksd.link.link import Link
    from sksd.link.local import Channels, LocalEnd
    from sksd.link.protocol import LinkConnection

    link = Link.opening(reactor, new_hello("t"))
    info = LocalEnd(reactor, link, Channels("k", transport="tcp")).start()
    connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", remote_port), LinkConnection(link))
    link.when_welcomed().addCallback(lambda _: os.write(port_pipe, b"%d\n" % int(info["shell_port"])))
    link.when_ended().addCallback(lambda _: reactor.stop())
    reactor.run()


def _fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work(pipe)` in a child; answers its pid and the number that it writes to the pipe."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return pid, int(pipe.readline())


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(listening: socket.socket) -> None:
    """Each connection begins with one byte: u: read until told the size; d: send; p: echo; s: stay."""

    def one(peer: socket.socket) -> None:
        kind = peer.recv(1)
        if kind == b"p":
            while data := peer.recv(100):
                peer.sendall(data)
            return
        size = int(peer.recv(20))
        if kind == b"u":
            buffer = bytearray(CHUNK)
            while size > 0:
                size -= peer.recv_into(buffer)
            peer.sendall(b"!")
        else:
            blob = os.urandom(CHUNK)
            for _ in range(size // CHUNK):
                peer.sendall(blob)

    while True:
        peer, _ = listening.accept()
        threading.Thread(target=one, args=(peer,), daemon=True).start()


def _up(connect: Callable[[], socket.socket], size: int) -> float:
    peer = connect()
    peer.sendall(b"u%019d" % size + b" ")
    blob = os.urandom(CHUNK)
    began = time.perf_counter()
    for _ in range(size // CHUNK):
        peer.sendall(blob)
    assert peer.recv(1) == b"!"
    return time.perf_counter() - began


def _down(connect: Callable[[], socket.socket], size: int) -> float:
    peer = connect()
    began = time.perf_counter()
    peer.sendall(b"d%020d" % size)
    buffer = bytearray(CHUNK)
    while size > 0:
        size -= peer.recv_into(buffer)
    return time.perf_counter() - began


def _pings(connect: Callable[[], socket.socket], count: int) -> list[float]:
    peer = connect()
    peer.sendall(b"p")
    waits = []
    for _ in range(count):
        began = time.perf_counter()
        peer.sendall(b"x" * 64)
        assert peer.recv(100)
        waits.append((time.perf_counter() - began) * 1e6)
    return waits


def _quantiles(waits: list[float]) -> str:
    cut = statistics.quantiles(waits, n=100)
    return f"p50 {cut[49]:.0f} us, p99 {cut[98]:.0f} us"


def main() -> None:
    """Measure and print."""
    size = (int(sys.argv[1]) if len(sys.argv) > 1 else 1024) * CHUNK
    folder = Path(tempfile.mkdtemp(prefix="sk-"))
    engine = socket.socket(socket.AF_UNIX)
    engine.bind(str(folder / "e-1"))
    engine.listen()
    plain = socket.create_server(("127.0.0.1", 0))
    pids = []
    server = os.fork()
    if server == 0:
        threading.Thread(target=_serve, args=(engine,), daemon=True).start()
        _serve(plain)
    try:
        remote, remote_port = _fork(lambda pipe: _remote(folder, pipe))
        pids.append(remote)
        local, local_port = _fork(lambda pipe: _local(folder, remote_port, pipe))
        pids.append(local)

        def to(port: int) -> Callable[[], socket.socket]:
            def connect() -> socket.socket:
                peer = socket.create_connection(("127.0.0.1", port))
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return peer

            return connect

        for name, connect in (("plain TCP", to(plain.getsockname()[1])), ("link", to(local_port))):
            for way, measure in (("up", _up), ("down", _down)):
                before = [_cpu(pid) for pid in pids]
                took = measure(connect, size)
                used = [(_cpu(pid) - was) * (1 << 30) / size for pid, was in zip(pids, before, strict=True)]
                cpu = "" if name == "plain TCP" else f", CPU s/GiB proxy {used[0]:.2f} relay {used[1]:.2f}"
                print(f"{name:10} {way:5} {size / took / CHUNK:7.0f} MiB/s{cpu}")
            print(f"{name:10} idle  {_quantiles(_pings(connect, PINGS))}")
            bulk = threading.Thread(target=_down, args=(connect, 2 * size))
            bulk.start()
            waits = _pings(connect, 200)
            print(f"{name:10} busy  {_quantiles(waits)} (beside bulk: {bulk.is_alive()})")
            bulk.join()
    finally:
        for pid in (*pids, server):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
