"""The numbers of a link (docs/link.md): sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERSION: Final = 1

#: Longest body of any frame, and of the first frame, which is read before anybody has shown a ticket.
MAX_BODY: Final = 64 * 1024
MAX_HELLO: Final = 8 * 1024

#: Bytes of a stream in one DATA frame: what a small message waits for at most, once for each busy stream.
PAYLOAD: Final = 32 * 1024
#: Bytes in flight on one stream before the reader has drained any: fills 160 Mbit/s at 100 ms.
WINDOW: Final = 2 * 1024 * 1024
MAX_CREDIT: Final = 2**31 - 1
#: The most that Twisted reads from a local socket at once.
READ: Final = 64 * 1024
#: Bytes read from a local socket that wait for the link; then the socket is not read.
LOCAL_QUEUE: Final = 256 * 1024
MAX_STREAMS: Final = 128
MAX_STREAM_ID: Final = 2**32 - 1

#: Bytes given to the transport at once, and that the system may hold unsent: a small message waits for these.
WRITE: Final = 128 * 1024

ACK_EVERY: Final = 256 * 1024
TICK: Final = 1.0
PING_INTERVAL: Final = 5.0
DEAD_AFTER: Final = 14.0
#: How long the other end has to answer when the network may have changed.
PROBE_LIMIT: Final = 3.0

#: How long an end waits for queued bytes to leave before it says GOODBYE, and for GOODBYE itself to leave.
FINISH_LIMIT: Final = 5.0
GOODBYE_LIMIT: Final = 5.0

#: How often and how long connecting to an engine that is alive is tried.
CONNECT_RETRY: Final = 0.1
CONNECT_LIMIT: Final = 60.0

#: How long the front ends of a relay that was started again have to come back when the link is to end.
REJOIN_LIMIT: Final = 5.0


@dataclass(frozen=True)
class Limits:
    """The sizes that a `Core` works with; both ends of a link must have the same `window` and `streams`."""

    payload: int = PAYLOAD
    window: int = WINDOW
    queue: int = LOCAL_QUEUE
    streams: int = MAX_STREAMS

    @property
    def beyond(self) -> int:
        """What an end may have read of a local socket for which it has no credit: the queue, and one read."""
        return self.queue + READ
