"""Choosing the reactor: asyncio's, once a process, before anything else imports the reactor."""

from __future__ import annotations

import sys


def install() -> None:
    """Install asyncio's reactor unless this process has one already.

    Called at the top of every entry point of ours. Asking first matters: a second installation replaces the event
    loop before it raises, and the process hangs.
    """
    if "twisted.internet.reactor" not in sys.modules:
        from twisted.internet import asyncioreactor

        asyncioreactor.install()
