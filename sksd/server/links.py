"""Links through the daemon: the ticket is read, then bytes are passed on (docs/link.md, "Through the daemon")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from twisted.internet import defer, protocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from sksd.errors import InternalError, SksdError
from sksd.link.hello import FirstFrame, Hello, goodbye_frame, hello_to_proxy
from sksd.link.protocol import tune
from sksd.server.audit import Audit
from sksd.server.door import Visit
from sksd.wire.names import PREAMBLE_LINK
from sksd.wire.who import account_of

log = Logger()

Reach = Callable[[], Awaitable[IStreamClientEndpoint]]


class LinkDoor(protocol.Protocol):
    """The client's end of a link in the daemon.

    `admit(ticket)` answers the user, the engine, and what to call for the endpoint of its proxy, or raises
    TicketRefused; `visit` is told once the ticket was good.
    """

    transport: Any

    def __init__(
        self,
        admit: Callable[[str], Awaitable[tuple[str, str, Reach]]],
        visit: Visit,
        audit: Audit,
    ) -> None:
        self._admit = admit
        self._visit = visit
        self._record = partial(audit.record, address=visit.address, port=visit.port)
        self._opened: dict[str, str] | None = None
        self._first: FirstFrame | None = FirstFrame()
        self._waiting = b""
        self._proxy: _ProxyEnd | None = None
        self._refused = False
        self._gone = False

    def dataReceived(self, data: bytes) -> None:
        """Reads the first frame, then passes on."""
        if self._refused:
            return
        if self._proxy is not None:
            self._proxy.transport.write(data)
            return
        if self._first is None:
            self._waiting += data
            return
        try:
            found = self._first.feed(data)
            if found is None:
                return
            hello, self._waiting = found
            self._first = None
        except SksdError as error:
            self._denied(error)
            return
        # Until the proxy is reached nothing more is taken from the client, so what waits stays small.
        self.transport.pauseProducing()
        joined = defer.ensureDeferred(self._join(hello))
        joined.addErrback(self._failed)

    async def _join(self, hello: Hello) -> None:
        try:
            user, engine, reach = await self._admit(hello.ticket)
            self._visit.welcome(account_of(user))
        except SksdError as error:
            self._denied(error)
            return
        if self._gone:
            return
        self._opened = {"user": user, "engine": engine}
        self._record("link-opened", **self._opened)
        endpoint = await reach()
        factory = protocol.Factory.forProtocol(lambda: _ProxyEnd(self))
        factory.noisy = False
        end: Any = await endpoint.connect(factory)
        if self._gone:
            end.transport.abortConnection()
            return
        end.transport.write(PREAMBLE_LINK + hello_to_proxy(hello, engine) + self._waiting)
        self._waiting = b""
        self._proxy = end
        tune(self.transport)
        # Each side is read only as fast as the other takes it.
        end.transport.registerProducer(self.transport, True)
        self.transport.registerProducer(end.transport, True)
        self.transport.resumeProducing()

    def _denied(self, error: SksdError) -> None:
        self._record("link-refused", reason=error.code)
        self._refuse(error)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, SksdError):
            log.failure("a link could not be joined", failure=failure)
            error = InternalError(log_id="link")
        self._refuse(error)

    def _refuse(self, error: SksdError) -> None:
        if not self._gone:
            # What still comes is read, so that GOODBYE is, and dropped.
            self._refused, self._waiting = True, b""
            self.transport.resumeProducing()
            self.transport.write(goodbye_frame(error))
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """The client is gone: so is its connection to the proxy."""
        self._gone = True
        if self._opened is not None:
            self._record("link-closed", **self._opened)
        if self._proxy is not None:
            end, self._proxy = self._proxy, None
            end.transport.unregisterProducer()
            end.transport.loseConnection()

    def proxy_lost(self) -> None:
        """The proxy has closed its end, after all it had to say."""
        self._proxy = None
        if not self._gone:
            self.transport.unregisterProducer()
            self.transport.loseConnection()


class _ProxyEnd(protocol.Protocol):
    transport: Any

    def __init__(self, client: LinkDoor) -> None:
        self._client = client

    def dataReceived(self, data: bytes) -> None:
        self._client.transport.write(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self._client.proxy_lost()
