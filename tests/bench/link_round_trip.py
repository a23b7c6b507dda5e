"""One engine, three ways: its own sockets, sksd's link, `ssh -L`. Round trips, one stream's MB/s, CPU per GiB.

`python -m tests.bench.link_round_trip [ROUNDS MB]` (default 500 and 256), all on this machine, interleaved. "comm"
is what a kernel emits with comm messages of 1 MB, "text" what it prints, 1 MB at a time; "fast" are messages that it
has made before, so that the way is measured and not the kernel. "local" is a kernel of the same kind that sksd knows
nothing of. ssh is left out where there is no sshd (Debian: openssh-server). Goals: a round trip at most 1 ms over
the direct one (p50), and a link that carries at least twice what a local kernel emits to its client.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.blocking.client import BlockingKernelClient

ROOT = Path(__file__).parents[2]
LIMIT = 60
KINDS = ("buffers", "text", "fast")
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
#: On the engine. `fast` sends frames that are signed already, from the thread that owns the socket.
ENGINE = """
import os
from comm import create_comm
blob = os.urandom(1_000_000)
comm = create_comm(target_name="bench")
def buffers(count):
    for number in range(count):
        comm.send({"number": number}, buffers=[blob])
def text(count):
    for _ in range(count):
        print("x" * 1_000_000, flush=True)
def fast(count):
    kernel = get_ipython().kernel
    session, thread = kernel.session, kernel.iopub_thread
    message = session.msg("comm_msg", {"comm_id": comm.comm_id, "data": {}})
    frames = [b"comm", *session.serialize(message), blob]
    def send():
        for _ in range(count):
            thread.socket.send_multipart(frames, copy=False)
    thread.schedule(send)
"""


class Way:
    """A front end on a connection file; `processes` are those that carry."""

    def __init__(self, name: str, file: Path, processes: Callable[[], list[psutil.Process]]) -> None:
        self.name = name
        self.client = BlockingKernelClient()
        self.client.load_connection_file(str(file))
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LIMIT)
        self.waits: list[float] = []
        self._processes = processes

    def round_trip(self) -> float:
        """Milliseconds from the request to its reply."""
        began = time.perf_counter()
        request = self.client.execute("1", silent=True)
        while self.client.shell_channel.get_msg(timeout=LIMIT)["parent_header"]["msg_id"] != request:
            pass
        return (time.perf_counter() - began) * 1000

    def subscribe(self) -> None:
        """Hear iopub again; returns when the engine knows, and nothing of before is left."""
        iopub = self.client.iopub_channel.socket
        iopub.subscribe(b"")
        while not iopub.poll(50):
            self.client.kernel_info()
            self.client.get_shell_msg(timeout=LIMIT)
        while iopub.poll(200):
            iopub.recv_multipart(copy=False)

    def stream(self, what: str, count: int) -> tuple[float, float]:
        """(MB/s from the request to the last message at this client, CPU s per GiB of what carries)."""
        self.subscribe()
        before = self._cpu()
        seen, began = 0, time.perf_counter()
        self.client.execute(f"{what}({count})", silent=True)
        while seen < count * 1_000_000:
            if not self.client.iopub_channel.socket.poll(LIMIT * 1000):
                raise SystemExit(f"{self.name}, {what}: {seen} bytes of {count} MB have arrived")
            frames = self.client.iopub_channel.socket.recv_multipart(copy=False)
            # Of text the sixth frame is the content, of a comm message the last is the buffer.
            seen += max(map(len, frames)) // 1_000_000 * 1_000_000
        took = time.perf_counter() - began
        used = sum(seconds - before.get(pid, 0.0) for pid, seconds in self._cpu().items())
        return count / took, used * 2**30 / (count * 1e6)

    def _cpu(self) -> dict[int, float]:
        return {process.pid: sum(process.cpu_times()[:2]) for process in self._processes()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def child(log: Path, *command: str) -> Iterator[psutil.Process]:
    """A program that runs meanwhile."""
    with open(log, "wb") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def wait_for(path: Path, log: Path) -> None:
    """Until a file is there."""
    end = time.monotonic() + LIMIT
    while not path.exists():
        if time.monotonic() > end:
            raise SystemExit(log.read_text())
        time.sleep(0.02)


def sksd(*arguments: str) -> Any:
    """A command's JSON."""
    command = (sys.executable, "-m", "sksd", *arguments, "--json")
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def carriers(top: Path) -> list[psutil.Process]:
    """Of sksd's processes in these folders all but the engine."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            ours = str(top) in process.environ().get("XDG_STATE_HOME", "")
            if ours and any(part.startswith("sksd") for part in line):
                found.append(process)
    return found


def engines_file(top: Path, pid: int) -> Path:
    """A connection file to the engine's own sockets."""
    line = psutil.Process(pid).cmdline()
    given = Path(line[line.index("-f") + 1])
    if given.exists():
        return given
    records = [json.loads(path.read_bytes()) for path in top.rglob("engines/*.json")]
    copied = top / "direct.json"
    copied.write_text(json.dumps(next(r["connection"] for r in records if r["identity"]["pid"] == pid)))
    return copied


@contextlib.contextmanager
def ssh(top: Path, direct: Path) -> Iterator[Way | None]:
    """`ssh -L` to the engine's sockets, through an sshd of our own; None where that cannot be had."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or not shutil.which("ssh"):
        yield None
        return
    if not os.getuid():
        # Else made at boot; sshd insists.
        os.makedirs("/run/sshd", 0o755, exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(top / name)], check=True)
    port = free_port()
    (top / "sshd").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {top}/host\nAuthorizedKeysFile {top}/user.pub\nStrictModes no\n"
        "UsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nAllowStreamLocalForwarding yes\n"
    )
    info = json.loads(direct.read_bytes())
    forwards = []
    for name in CHANNELS:
        number = info[f"{name}_port"]
        forwards += ["-L", f"{top}/f-{number}:{info['ip']}-{number}"]
    (top / "ssh.json").write_text(json.dumps({**info, "ip": f"{top}/f"}))
    options = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={top}/known", "ExitOnForwardFailure=yes")
    client = ["ssh", "-N", "-F", "none", "-i", str(top / "user"), "-c", "aes128-gcm@openssh.com", "-p", str(port)]
    for option in options:
        client += ["-o", option]
    with child(top / "sshd.log", sshd, "-D", "-e", "-f", str(top / "sshd")) as server:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        with child(top / "ssh.log", *client, *forwards, f"{getpass.getuser()}@127.0.0.1") as near:
            wait_for(top / f"f-{info['hb_port']}", top / "ssh.log")
            yield Way("ssh -L aes128-gcm", top / "ssh.json", lambda: [near, server, *server.children(True)])


def measure(ways: list[Way], rounds: int, count: int) -> int:
    """Print the table; the exit code says whether the goals are met."""
    for way in ways:
        for _ in range(20):
            way.round_trip()
    for _ in range(rounds):
        for way in ways:
            way.waits.append(way.round_trip())
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(3):
        for way in ways:
            # The others' subscriptions would make the engine and the machine work for them, too.
            for other in ways:
                other.client.iopub_channel.socket.unsubscribe(b"")
            for what in KINDS:
                rates.setdefault((way.name, what), []).append(way.stream(what, count))
    print(f"{'':18} {'execute p50':>12} {'p99':>9} {'comm':>10} {'text':>10} {'fast':>10} {'CPU s/GiB (fast)':>17}")
    found = {}
    for way in ways:
        cut = statistics.quantiles(way.waits, n=100)
        comm, text, fast = (statistics.median(rate for rate, _ in rates[way.name, what]) for what in KINDS)
        cpu = statistics.median(used for _, used in rates[way.name, "fast"])
        found[way.name] = (cut[49], comm, fast, cpu, text)
        speeds = " ".join(f"{rate:5.0f} MB/s" for rate in (comm, text, fast))
        print(f"{way.name:18} {cut[49]:9.2f} ms {cut[98]:6.2f} ms {speeds} {cpu:17.2f}")
    direct, local, link = found["direct"], found["local"], found["link"]
    over, ratio = link[0] - direct[0], link[2] / local[1]
    print(f"a round trip through the link: {over:+.2f} ms over direct (goal: at most 1)")
    print(f"the link's fast stream: {ratio:.2f} times what a local kernel emits to its client (goal: at least 2),")
    print(f"{link[2] / local[4]:.2f} times what it prints as text")
    for name in found.keys() - {"direct", "local", "link"}:
        other = found[name]
        print(f"link to {name}: round trip {link[0] / other[0]:.2f}, stream {link[2] / other[2]:.2f}, "
              f"CPU {link[3] / other[3]:.2f}")  # fmt: skip
    return over > 1 or ratio < 2


def main() -> int:
    """See the module."""
    rounds, count = map(int, sys.argv[1:]) if len(sys.argv) > 1 else (500, 256)
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sksdb", dir="/tmp")))
        for name, folder in (("CONFIG_HOME", "c"), ("STATE_HOME", "s"), ("RUNTIME_DIR", "r"), ("CACHE_HOME", "k")):
            (top / folder / "sksd").mkdir(0o700, parents=True)
            os.chmod(top / folder, 0o700)
            os.environ[f"XDG_{name}"] = str(top / folder)
        (top / "c/sksd/sksd.conf").write_text("[sksd]\nannounce = no\nlisten = 127.0.0.1\n")
        command = (sys.executable, "-m", "sksd")
        stack.enter_context(child(top / "daemon.log", *command, "serve"))
        wait_for(top / "r/sksd/daemon.json", top / "daemon.log")
        engine = sksd("start", "local", sys.prefix)["engine"]
        try:
            relaying = (*command, "relay", "local", "--engine", engine["id"], "-f", str(top / "link.json"))
            stack.enter_context(child(top / "relay.log", *relaying))
            wait_for(top / "link.json", top / "relay.log")
            direct = engines_file(top, engine["pid"])
            local = top / "local.json"
            alone = {**json.loads(direct.read_bytes()), "ip": str(top / "l"), "key": "local"}
            local.write_text(json.dumps(alone))
            kernel = (sys.executable, "-m", "spyder_kernels.console", "-f", str(local))
            stack.enter_context(child(top / "local.log", *kernel))
            ways = [Way("direct", direct, list), Way("local", local, list)]
            ways.append(Way("link", top / "link.json", lambda: carriers(top)))
            through = stack.enter_context(ssh(top, direct))
            if through is not None:
                ways.append(through)
            for way in ways[:2]:
                way.client.execute_interactive(ENGINE, timeout=LIMIT)
            result = measure(ways, rounds, count)
            for way in ways:
                way.client.stop_channels()
            return result
        finally:
            sksd("stop", "local", engine["id"])


if __name__ == "__main__":
    sys.exit(main())
