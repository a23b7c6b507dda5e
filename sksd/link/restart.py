"""What passes between the two ends when the client's program was killed and started again (docs/link.md, "A relay
that was killed")."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from sksd.errors import LinkProtocol
from sksd.link.hello import Hello, Welcome


class Past(NamedTuple):
    """One stream of the client's program before this one; `after` as in `Core.open`.

    `taken`: the bytes of it, from its byte `base` on, that were read from the front end. `handed`: how many bytes of
    it the front end was given.
    """

    stream: int
    channel: str
    base: int
    taken: bytes
    handed: int
    after: int = 0

    def rest(self, had: int) -> bytes:
        """What the other end, which has had `had` bytes, has still to get. Raises LinkProtocol."""
        if not self.base <= had <= self.base + len(self.taken):
            raise LinkProtocol(problem=f"it has had {had} bytes of stream {self.stream}")
        return self.taken[had - self.base :]


class Before(NamedTuple):
    """The client's program before this one: its streams that were not over, and the highest number it has used."""

    streams: tuple[Past, ...] = ()
    last: int = 0


def say(hello: Hello, before: Before) -> Hello:
    """HELLO of a client that was started again."""
    handed = {past.stream: past.handed for past in before.streams}
    return msgspec.structs.replace(hello, resume=True, restarted=True, received=0, handed=handed)


class Rest(NamedTuple):
    """What is still to be said on a stream of before. `credit` None: the other end has never heard of it."""

    past: Past
    credit: int | None
    data: bytes


def rests(before: Before, welcome: Welcome) -> list[Rest]:
    """The streams that go on, oldest first; those that are missing are over. Raises LinkProtocol."""
    if welcome.last > before.last:
        raise LinkProtocol(problem=f"it knows stream {welcome.last}, {before.last} was the last")
    found = []
    for past in sorted(before.streams):
        if past.stream > welcome.last:
            found.append(Rest(past, None, past.rest(0)))
        elif past.stream in welcome.streams:
            had, credit = welcome.streams[past.stream]
            found.append(Rest(past, credit, past.rest(had)))
    return found
