"""What goes out: events, a line each, never a secret, never more than ten a second of one step."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

import msgspec

from sksd.conda.messages import Done, Event, Failed, Progress, Step
from sksd.conda.secrets import mask
from sksd.errors import SksdError

#: Seconds between two events of one step.
INTERVAL = 0.1


class Out:
    """The events' way out; any thread may call it, as rattler's do."""

    def __init__(self, descriptor: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.descriptor = descriptor
        self.latest: Progress | None = None
        self.at = clock()
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def progress(
        self,
        step: Step,
        message: str,
        done: int | None = None,
        total: int | None = None,
        bytes: int | None = None,
        total_bytes: int | None = None,
        speed: int | None = None,
    ) -> None:
        """Tell it, unless this step was told of a moment ago; the first and the last of a step are always told."""
        event = Progress(
            step=step,
            message=mask(message),
            done=done,
            total=total,
            bytes=bytes,
            total_bytes=total_bytes,
            speed=speed,
        )
        with self._lock:
            now = self._clock()
            self.latest, self.at = event, now
            if now - self._last.get(step, -INTERVAL) < INTERVAL and (total is None or done != total):
                return
            self._last[step] = now
            self._write(event)

    def again(self) -> None:
        """Tell the latest progress once more: somebody waits, and it goes on."""
        with self._lock:
            if self.latest is not None:
                self.at = self._clock()
                self._write(self.latest)

    def event(self, event: Event) -> None:
        """Any other event, at once."""
        if isinstance(event, Done):
            event.notes = [mask(note) for note in event.notes]
        with self._lock:
            self._write(event)

    def _write(self, event: Event) -> None:
        data = msgspec.json.encode(event) + b"\n"
        # Whoever listened may be gone: the change goes on all the same.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self.descriptor, data) :]


def failed(error: SksdError) -> Failed:
    """The event of `error`, without secrets."""
    fields = {key: mask(value) if isinstance(value, str) else value for key, value in error.fields.items()}
    return Failed(code=error.code, message=mask(str(error)), fields=fields)
