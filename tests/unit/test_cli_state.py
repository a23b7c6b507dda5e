"""The state of a link on stderr."""

from __future__ import annotations

import io
import sys
from typing import Any

from twisted.internet import task
from twisted.trial import unittest

from sksd.cli.output import Output
from sksd.cli.running import Scope
from sksd.cli.state import LinkState
from sksd.client.relay import Status


class Screen(io.StringIO):
    """A terminal, or none."""

    terminal = False

    def isatty(self) -> bool:
        """Called by at_terminal."""
        return self.terminal


class States(unittest.TestCase):
    """Cut and back."""

    def setUp(self) -> None:
        self.screen = Screen()
        self.patch(sys, "stderr", self.screen)
        self.patch(sys.modules["os"], "environ", {"TERM": "xterm"})
        self.clock: Any = task.Clock()

    def lasts(self, state: LinkState, seconds: int) -> None:
        """A cut of that length, told of as a Carrier does."""
        state.told(Status(cut=0.0, why="the connection broke off"))
        for second in range(seconds):
            self.clock.advance(1)
            state.told(Status(cut=second + 1.0, why="the connection broke off"))
        state.told(Status(settling=True))
        state.told(Status(caught_up=3_100_000))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lines(self) -> None:
        with LinkState(Scope(self.clock, Output())) as state:
            self.lasts(state, 130)
        self.assertEqual(self.screen.getvalue().splitlines(), [
            "sksd: reconnecting (the connection broke off)",
            "sksd: reconnecting for 1 min (the connection broke off)",
            "sksd: reconnecting for 2 min (the connection broke off)",
            "sksd: back, 3.1 MB caught up",
        ])  # fmt: skip

    def test_terminal(self) -> None:
        self.screen.terminal = True
        with LinkState(Scope(self.clock, Output())) as state:
            self.lasts(state, 2)
        clear, why = "\r\x1b[2K", "(the connection broke off)"
        self.assertEqual(
            self.screen.getvalue(),
            f"{clear}sksd: reconnecting {why}{clear}sksd: reconnecting for 1 s {why}"
            f"{clear}sksd: reconnecting for 2 s {why}{clear}sksd: back, 3.1 MB caught up\n",
        )

    def test_terminal_of_somebody_else(self) -> None:
        self.screen.terminal = True
        with LinkState(Scope(self.clock, Output()), live=False) as state:
            self.lasts(state, 2)
        self.assertNotIn("\x1b", self.screen.getvalue())
        self.assertEqual(self.screen.getvalue().count("\r\n"), 4)

    def test_ends_while_it_is_cut(self) -> None:
        with LinkState(Scope(self.clock, Output())) as state:
            state.told(Status(cut=0.0, why="x"))
        self.assertEqual(self.clock.getDelayedCalls(), [])
