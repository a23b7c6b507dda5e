"""Two brokers joined in memory."""

from typing import Any

from twisted.internet.testing import StringTransport
from twisted.test import iosim

from sksd.wire.broker import BrokerFactory, LimitedBroker, Remote


class Pair:
    """A server's broker with `root` and a client's, over a fake transport. `flush()` carries all bytes there are."""

    def __init__(self, root: Remote, *, trusted: bool = True) -> None:
        self.server = BrokerFactory(lambda _: root).build(False, trusted=trusted)
        self.client = BrokerFactory().build(True, trusted=True)
        server_end, client_end = (iosim.FakeTransport(each, True) for each in (self.server, self.client))
        self.pump = iosim.connect(self.server, server_end, self.client, client_end)
        self.flush()
        self.root = self.client.remoteForName("root")

    def flush(self) -> None:
        """Until nothing moves."""
        self.pump.flush()


class Stranger:
    """A server's broker with a peer that sends what it likes."""

    def __init__(self, root: Remote, *, trusted: bool = False) -> None:
        self.broker: LimitedBroker = BrokerFactory(lambda _: root).build(False, trusted=trusted)
        self.transport: Any = StringTransport()
        self.broker.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """As if it had come from the network."""
        self.broker.dataReceived(data)

    @property
    def dropped(self) -> bool:
        """Whether the broker has hung up."""
        return bool(self.transport.disconnecting or self.transport.disconnected)
