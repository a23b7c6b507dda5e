"""A change of an environment while it is under way: bars for a person, a line a step for everybody else."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Any

from sksd.cli.output import Output, at_terminal, safe
from sksd.cli.running import Job, Scope, finished

if TYPE_CHECKING:
    from sksd.client.session import Session
    from sksd.wire.changes import Changed, Plan
    from sksd.wire.messages import Progress


class Steps:
    """Shows `progress` on stderr, in a `with` block; nothing is there yet while nothing has been told."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bars: Any = None
        self._rows: dict[str, Any] = {}
        self._last = ""

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def told(self, event: Progress) -> None:
        """Called with each progress of the host's."""
        if at_terminal(sys.stderr):
            self._draw(event)
        elif event.step != self._last and not self._output.as_json:
            # Numbers within a step are for bars only.
            self._output.note(event.message)
        self._last = event.step

    def _draw(self, event: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.text import Text

        if self._bars is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
                       TextColumn("{task.fields[count]}", markup=False))  # fmt: skip
            console = Console(file=sys.stderr, highlight=False, emoji=False, markup=False)
            self._bars = Progress(*columns, console=console)
            self._bars.start()
        if event.step not in self._rows:
            for row in self._rows.values():
                self._bars.update(row, total=1, completed=1)
            self._rows[event.step] = self._bars.add_task("", total=None, count="")
        by_bytes = bool(event.total_bytes)
        done, total = (event.bytes, event.total_bytes) if by_bytes else (event.done, event.total)
        count = ""
        if total:
            count = f"{in_bytes(done or 0)} of {in_bytes(total)}" if by_bytes else f"{done or 0} of {total}"
        description = Text(safe(event.message)).plain.splitlines()[0][:60]
        self._bars.update(
            self._rows[event.step],
            description=description,
            completed=done or 0,
            total=total or None,
            count=count,
        )


def in_bytes(number: int | None) -> str:
    """A number of bytes for people, as `1.2 MB`."""
    if number is None:
        return ""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def new_task() -> str:
    """A name for a change, so that it can be cancelled."""
    return secrets.token_hex(8)


async def change(scope: Scope, session: Session, wish: Any) -> Changed:
    """Ask the host for a change, and show it. When the person gives up it is cancelled there, and what was undone is
    said."""
    from twisted.internet import defer

    from sksd.errors import SksdError

    wish.task = new_task()
    with Steps(scope.output) as steps:
        job = Job(defer.ensureDeferred(session.change(wish, steps.told)))
        try:
            done = await job.wait()
        except defer.CancelledError:
            scope.output.note("sksd: cancelling; what was done is undone.")
            await finished(session.cancel(wish.task))
            try:
                done = await job.wait()
                scope.output.note(f"sksd: it was done already: {done.prefix}")
            except SksdError as problem:
                scope.output.note(f"sksd: {problem}")
            raise
    for note in done.notes:
        scope.output.note(note)
    return done


def show_plan(output: Output, plan: Plan | None) -> None:
    """A table of what a change does."""
    if plan is None or not plan.actions:
        output.say("There is nothing to do.")
        return
    rows = [
        [
            each.action,
            each.name,
            each.old_version,
            each.version,
            each.build,
            each.channel,
            in_bytes(each.size),
        ]
        for each in plan.actions
    ]
    output.table(("ACTION", "PACKAGE", "BEFORE", "VERSION", "BUILD", "CHANNEL", "SIZE"), rows)
    output.say(f"{len(rows)} packages, {in_bytes(plan.download_bytes)} to download")
