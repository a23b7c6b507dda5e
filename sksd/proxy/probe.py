"""The proxy's own words with a kernel: "are you there?" and "please end" (Jupyter messaging 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq
from jupyter_client.session import Session

from sksd.link.zmqsocket import ZmqSocket

#: Milliseconds between attempts to connect to a socket that the kernel has not made yet.
_RETRY: Final = 5

_context: zmq.Context[Any] | None = None


def _dealer() -> zmq.Socket[bytes]:
    global _context
    if _context is None:
        _context = zmq.Context()
    socket: zmq.Socket[bytes] = _context.socket(zmq.DEALER)
    socket.linger = 0
    socket.reconnect_ivl = _RETRY
    return socket


class Question:
    """One request to a kernel, and its answer. `channel` is `shell` or `control`.

    `answered` is called once with the content of the reply; `close` gives up. The request waits in the socket until
    the kernel has made its end.
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
        self._session = Session(
            key=str(connection["key"]).encode(), signature_scheme=str(connection["signature_scheme"])
        )
        self._answered = answered
        socket = _dealer()
        socket.connect(address(connection, channel))
        self._socket: ZmqSocket | None = ZmqSocket(reactor, socket, self._received)
        self._socket.send(self._session.serialize(self._session.msg(kind, content)))

    def _received(self, frames: list[bytes]) -> None:
        if self._socket is None:
            return
        try:
            _, parts = self._session.feed_identities(frames)
            content = self._session.deserialize(parts)["content"]
        except (ValueError, TypeError, KeyError):
            return
        self.close()
        self._answered(content)

    def close(self) -> None:
        """Give up; what was not sent is dropped."""
        if self._socket is not None:
            socket, self._socket = self._socket, None
            socket.close()


def address(connection: Mapping[str, str | int], channel: str) -> str:
    """Where a channel of a connection file is, as ZeroMQ wants it."""
    port = connection[f"{channel}_port"]
    separator = "-" if connection["transport"] == "ipc" else ":"
    return f"{connection['transport']}://{connection['ip']}{separator}{port}"
