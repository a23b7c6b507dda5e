"""A ZeroMQ socket in a Twisted reactor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

#: Messages handled before the reactor gets its turn.
_TURN: Final = 100
#: Messages that wait to be sent before further ones are refused.
_QUEUE: Final = 1000


@implementer(IReadDescriptor)
class ZmqSocket:
    """`socket`, connected or bound already, read and written by `reactor` (an IReactorFDSet and
    IReactorTime).

    `on_message(frames)` is called for each whole message that arrives; it may call `send` and `close`. The
    socket's descriptor tells only that its state has changed, once: after every look the state is asked
    until it says that there is nothing, also after sending, which swallows such a change.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, socket: zmq.Socket[bytes], on_message: Callable[[list[bytes]], object]
    ) -> None:
        self._reactor = reactor
        self._socket = socket
        self.on_message = on_message
        self._out: deque[Sequence[bytes]] = deque()
        self._again: IDelayedCall | None = None
        self._busy = False
        self._descriptor = int(socket.getsockopt(zmq.FD))
        reactor.addReader(self)
        # What arrived before now will not be announced again.
        self._soon()

    @property
    def closed(self) -> bool:
        """`close` was called, or the reactor has dropped the socket."""
        return self._descriptor < 0

    def send(self, frames: Sequence[bytes]) -> bool:
        """Send one message, now or when the socket can take it; False when too many wait or it is closed."""
        if self.closed or len(self._out) >= _QUEUE:
            return False
        self._out.append(frames)
        self._turn()
        return True

    def close(self, linger: int = 0) -> None:
        """Close the socket; messages not sent yet have `linger` milliseconds. Harmless when closed."""
        if self.closed:
            return
        self._reactor.removeReader(self)
        self._descriptor = -1
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._out.clear()
        self._socket.close(linger)

    # -- IReadDescriptor ---------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor to watch, -1 when closed."""
        return self._descriptor

    def doRead(self) -> None:
        """The socket's state may have changed."""
        self._turn()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, or cannot watch the descriptor."""
        self.close()

    def logPrefix(self) -> str:
        """The name in Twisted's log."""
        return "ZmqSocket"

    # ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            for _ in range(_TURN):
                if self.closed or not self._step():
                    return
            self._soon()
        finally:
            self._busy = False

    def _step(self) -> bool:
        """Send or receive one message; False when there is nothing to do."""
        state = self._socket.getsockopt(zmq.EVENTS)
        assert isinstance(state, int)
        try:
            if self._out and state & zmq.POLLOUT:
                self._socket.send_multipart(self._out[0], zmq.NOBLOCK)
                self._out.popleft()
                return True
            if state & zmq.POLLIN:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            else:
                return False
        except zmq.Again:
            return True
        try:
            self.on_message(frames)
        except Exception:
            # Raised into the reactor it would close the socket.
            self._log.failure("A message of a ZeroMQ socket was not understood")
        return True

    def _soon(self) -> None:
        if self._again is None and not self.closed:
            self._again = self._reactor.callLater(0, self._later)

    def _later(self) -> None:
        self._again = None
        self._turn()
