"""ZeroMQ sockets in the reactor, two of them in one process."""

from __future__ import annotations

from typing import Any

import zmq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from sksd.link.zmqsocket import ZmqSocket

COUNT = 5000


class ZmqSocketTests(TestCase):
    timeout = 30.0

    def setUp(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        self.addCleanup(context.term)
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.connect(f"tcp://127.0.0.1:{port}")
        self.router = ZmqSocket(reactor, router, lambda frames: self.router.send(frames))
        self.addCleanup(self.router.close)
        self.got: list[list[bytes]] = []
        self.all: Deferred[None] = Deferred()
        self.dealer = ZmqSocket(reactor, dealer, self.heard)
        self.addCleanup(self.dealer.close)

    def heard(self, frames: list[bytes]) -> None:
        self.got.append(frames)
        if len(self.got) == COUNT:
            self.all.callback(None)
        else:
            self.dealer.send([b"", b"%d" % len(self.got)])

    def test_ping_pong(self) -> Any:
        """Each answer asks again: no change of state is missed, though each `send` swallows some."""
        self.dealer.send([b"", b"0"])

        def check(_: None) -> None:
            self.assertEqual(self.got, [[b"", b"%d" % n] for n in range(COUNT)])

        return self.all.addCallback(check)

    def test_burst(self) -> Any:
        """Many messages at once, more than are handled in a turn, all arrive in order."""
        self.dealer.on_message = self.got.append
        for number in range(900):
            self.assertTrue(self.dealer.send([b"%d" % number]))

        def heard(frames: list[bytes]) -> None:
            self.got.append(frames)
            if len(self.got) == 900:
                self.all.callback(None)

        self.dealer.on_message = heard

        def check(_: None) -> None:
            self.assertEqual(self.got, [[b"%d" % n] for n in range(900)])

        return self.all.addCallback(check)

    def test_failing_callback(self) -> Any:
        """A callback that raises is logged, and the next message comes."""

        def heard(frames: list[bytes]) -> None:
            self.got.append(frames)
            if len(self.got) == 1:
                raise ZeroDivisionError
            self.all.callback(None)

        self.dealer.on_message = heard
        self.dealer.send([b"1"])
        self.dealer.send([b"2"])

        def check(_: None) -> None:
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

        return self.all.addCallback(check)

    def test_closed_in_the_callback(self) -> Any:
        """`close` may be called for a message; then nothing is sent any more."""

        def heard(frames: list[bytes]) -> None:
            self.dealer.close()
            self.assertFalse(self.dealer.send([b"x"]))
            reactor.callLater(0, self.all.callback, None)

        self.dealer.on_message = heard
        self.dealer.send([b"1"])
        self.dealer.send([b"2"])
        return self.all
