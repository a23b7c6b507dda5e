"""Tells when the network may have come back or changed, so that a cut link is tried at once and not after a wait.

Two signs: the system's own messages about interfaces, addresses and routes (Linux: rtnetlink(7)), and a clock that
has run on while this process has not, because the machine slept.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import abstract, task
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

log = Logger()

#: Seconds without another message until `changed` is called, and after the first one at most: an interface that
#: comes up says ten things, the last of which is the route.
QUIET: Final = 0.2
LONGEST: Final = 1.0
#: How often the clock is looked at, and how many seconds more than these mean sleep.
LOOK: Final = 2.0
ASLEEP: Final = 5.0

# Of linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE.
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_READ: Final = 65536


def running_time() -> float:
    """Seconds of a clock that also runs while the machine sleeps."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if boottime is None else time.clock_gettime(boottime)


class NetworkWatch:
    """Calls `changed()` from the reactor until `stop` is called. A hint: it may come without need.

    Where the system tells nothing, the clock alone is watched. `clock`: seconds that count sleep, too. Used by the
    relay, one for all its links.
    """

    def __init__(
        self, reactor: Any, changed: Callable[[], None], clock: Callable[[], float] = running_time
    ) -> None:
        self._reactor = reactor
        self._changed = changed
        self._clock = clock
        self._last = clock()
        self._first = 0.0
        self._call: IDelayedCall | None = None
        self._messages: _Messages | None = None
        with contextlib.suppress(OSError):
            self._messages = _Messages.listening(reactor, self.heard)
        self._looking = task.LoopingCall(self._look)
        self._looking.clock = reactor
        self._looking.start(LOOK, now=False)

    def heard(self) -> None:
        """There was a sign; called by the sources of such."""
        now = self._reactor.seconds()
        if self._call is None:
            self._first = now
        else:
            self._call.cancel()
        self._call = self._reactor.callLater(max(0.0, min(QUIET, self._first + LONGEST - now)), self._tell)

    def _tell(self) -> None:
        self._call = None
        self._changed()

    def _look(self) -> None:
        before, self._last = self._last, self._clock()
        if self._last - before > LOOK + ASLEEP:
            self.heard()

    def stop(self) -> None:
        """Call nothing any more. Harmless when done before."""
        if self._looking.running:
            self._looking.stop()
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._messages is not None:
            self._messages.stop()
            self._messages = None


class _Messages(abstract.FileDescriptor):
    """An rtnetlink socket, whose messages' content is of no interest."""

    def __init__(self, reactor: Any, heard: Callable[[], None], opened: socket.socket) -> None:
        super().__init__(reactor)
        self._heard = heard
        self._socket = opened
        self.startReading()

    @classmethod
    def listening(cls, reactor: Any, heard: Callable[[], None]) -> _Messages | None:
        """One that calls `heard` for every batch of messages; None where there is no rtnetlink. Raises OSError."""
        if not hasattr(socket, "AF_NETLINK"):
            return None
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            opened.bind((0, _GROUPS))
        except BaseException:
            opened.close()
            raise
        return cls(reactor, heard, opened)

    def fileno(self) -> int:
        """For the reactor."""
        return self._socket.fileno()

    def doRead(self) -> None:
        """Called by the reactor; drains the socket."""
        try:
            while self._socket.recv(_READ):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            # ENOBUFS: there were more messages than the socket holds, which is a change, too.
            if error.errno != errno.ENOBUFS:
                log.warn("the system's messages about the network are no longer heard: {error}", error=error)
                self.stop()
                return
        self._heard()

    def writeSomeData(self, data: bytes) -> int:
        """Nothing is ever written."""
        return 0

    def stop(self) -> None:
        """Harmless when done before."""
        if self._socket.fileno() >= 0:
            self.stopReading()
            self._socket.close()
