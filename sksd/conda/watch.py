"""Notices that the network is dead: a request that gets nothing any more, while nothing is computed either."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

from sksd.conda.out import Out
from sksd.errors import ChannelUnreachable

#: Seconds between signs of life to whoever waits.
_SIGN: Final = 5.0
#: Seconds of computing in that time which say that something goes on.
_BUSY: Final = 1.0
#: tcp_info.tcpi_bytes_received, since Linux 4.1: eight bytes at 128.
_RECEIVED: Final = (128, 136)

T = TypeVar("T")


async def watched(work: Awaitable[T], out: Out, url: str, silence: float) -> T:
    """The result of `work`, which uses the network by rattler. Raises ChannelUnreachable, naming `url`, when nothing
    has come for `silence` seconds; what is left of `work` then ends with the process."""
    task = asyncio.ensure_future(work)
    seen, since, busy = received(), time.monotonic(), time.process_time()
    latest = out.latest
    try:
        while not (await asyncio.wait([task], timeout=1.0))[0]:
            now, got, used = time.monotonic(), received(), time.process_time()
            if got != seen or used - busy > _BUSY or out.latest is not latest:
                seen, since, busy, latest = got, now, used, out.latest
            elif now - since > silence:
                raise ChannelUnreachable(url=url, problem=f"nothing has come for {silence:.0f} s")
            if now - out.at > _SIGN:
                out.again()
        return task.result()
    finally:
        task.cancel()


def received() -> int:
    """Bytes that the open TCP connections of this process have received; changes with each that comes or goes."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if len(info) >= _RECEIVED[1]:
                total += int(struct.unpack("=Q", info[slice(*_RECEIVED)])[0]) + 1
    return total
