"""The keeper's own words with a kernel: "are you there?" and "please end" (Jupyter messaging 5.3)."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from sksd.keeper.sockets import KernelSocket
from sksd.link import zmtp
from sksd.wire import jupyter


class Question:
    """One request to a kernel, and its answer. `channel` is `shell` or `control`.

    `answered` is called once with the content of the reply; `close` gives up. The request waits until the kernel has
    made its end.
    """

    def __init__(
        self,
        reactor: Any,
        connection: Mapping[str, str | int],
        channel: str,
        kind: str,
        content: dict[str, Any],
        answered: Callable[[dict[str, Any]], None],
    ) -> None:
        self._key = str(connection["key"]).encode()
        self._message = zmtp.join(jupyter.new(self._key, kind, content))
        self._answered = answered
        self._held = b""
        self._closed = False
        self._socket = KernelSocket(
            reactor, connection, channel, "DEALER", lambda: True, self._received,
            identity=secrets.token_hex(8).encode(), ready=self.ask, lost=self._lost,
        )  # fmt: skip

    def ask(self) -> None:
        """Send it; called anew by who wonders whether the first one was heard."""
        if self._socket.has_room:
            self._socket.write(self._message)

    def _lost(self) -> None:
        """Half an answer is none."""
        self._held = b""

    def _received(self, piece: zmtp.Piece) -> None:
        self._held += bytes(piece.data)
        ends = [0, *zmtp.boundaries(self._held)]
        for start, end in itertools.pairwise(ends):
            content = jupyter.content_of(self._key, zmtp.split(self._held[start:end]))
            if content is not None and not self._closed:
                self.close()
                self._answered(content)
        self._held = self._held[ends[-1] :]

    def close(self) -> None:
        """Give up."""
        self._closed = True
        self._socket.close()
