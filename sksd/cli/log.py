"""`sksd log`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sksd.cli import names, options
from sksd.cli.output import Output, at_terminal, plain, safe
from sksd.cli.running import Job, Scope, finished, first_of, in_asyncio, run

if TYPE_CHECKING:
    from sksd.client.session import EngineSession, Session
    from sksd.link.hello import Replay

#: Bytes from the end that are asked for at once, and seconds between two looks with --follow.
_PAGE = 64 * 1024
_LOOK = 0.5


@click.command("log", epilog="Example: sksd log lab k3f9 --follow")
@options.host
@click.option("--process", "only", flag_value="process", help="Only what its process wrote to its own log.")
@click.option("--outputs", "only", flag_value="outputs", help="Only what programs printed, drew and returned.")
@click.option(
    "--lines", "-n", metavar="N", type=click.IntRange(0), default=100, show_default=True,
    help="The last N lines of the process's log.",
)  # fmt: skip
@click.option(
    "--since", type=click.Choice(["start", "missed"]), default="start", show_default=True,
    help="Outputs: all that is kept, or what no front end has had.",
)  # fmt: skip
@options.figures
@click.option("--follow", "-f", is_flag=True, help="Go on until the engine ends, or Ctrl-C.")
@click.argument("engine", metavar="ID", shell_complete=names.complete_engines)
@options.on_host
@click.pass_context
def command(
    context: click.Context,
    access: options.Access,
    engine: str,
    lines: int,
    follow: bool,
    since: Replay,
    figures: Path | None,
    only: str | None,
) -> None:
    """Show what an engine said: its process's log, then what programs printed, drew and returned there.

    It counts as missed still, and whoever uses the engine is not disturbed. Of an engine that has ended by itself
    the outputs are kept while some of them were missed.
    """
    output: Output = context.obj

    async def body(scope: Scope) -> None:
        from sksd.cli.access import session_on
        from sksd.cli.spinning import find

        async with session_on(scope, access) as session:
            found = await find(session, engine)
            log = _Log(scope, session, await session.engine(found.id), figures, follow)
            log.how = found.reason or "" if found.state == "dead" else None
            try:
                if only != "outputs":
                    await log.process(lines, goes_on=only == "process")
                if only != "process":
                    await log.outputs(since, access.timeout)
                log.end()
            finally:
                await log.close()

    run(output, body)


class _Listing:
    """A `sksd.jupyter.output.Page` for one JSON document: outputs in their order."""

    def __init__(self, figures: Path | None) -> None:
        from sksd.cli.terminal import Figures

        self.outputs: list[dict[str, Any]] = []
        self._figures = Figures(figures) if figures is not None else None

    async def stream(self, name: str, text: str) -> None:
        """Called by Rendering."""
        if self.outputs and self.outputs[-1]["kind"] == name:
            self.outputs[-1]["text"] += text
        else:
            self.outputs.append({"kind": name, "text": text})

    async def result(self, text: str) -> None:
        """Called by Rendering."""
        self.outputs.append({"kind": "result", "text": text})

    async def traceback(self, text: str) -> None:
        """Called by Rendering."""
        self.outputs.append({"kind": "traceback", "text": plain(text)})

    async def picture(self, kind: str, data: bytes, text: str, display: str | None) -> None:
        """Called by Rendering."""
        file = str(self._figures.save(kind, data, display)) if self._figures is not None else None
        self.outputs.append({"kind": "figure", "text": text, "format": kind, "size": len(data), "file": file})

    async def clear(self) -> None:
        """Called by Rendering; all that was said is kept."""


class _Log:
    """One run. `how`: how the engine has ended, None while it has not."""

    def __init__(
        self, scope: Scope, session: Session, held: EngineSession, figures: Path | None, follow: bool
    ) -> None:
        from twisted.internet import defer

        from sksd.cli.terminal import Screen

        self.how: str | None = None
        self._scope = scope
        self._session = session
        self._held = held
        self._follow = follow
        self._page = _Listing(figures) if scope.output.as_json else Screen(figures, stdin=False)
        self._text: list[str] = []
        self._tailing: Job[None] | None = None
        self._died: defer.Deferred[None] = defer.Deferred()
        self._dead = Job(self._died)
        session.on_event = self._event

    def _event(self, event: Any) -> None:
        if event.engine is not None and event.engine.id == self._held.id and event.engine.state == "dead":
            self._over(event.engine.reason or "")

    def _over(self, how: str) -> None:
        self.how = how
        if not self._dead.done:
            self._died.callback(None)

    async def process(self, lines: int, goes_on: bool) -> None:
        """The process's own log; with --follow what it writes later, too, alone (`goes_on`) or while something else
        is done."""
        text, offset = "", -_PAGE * max(1, lines // 500)
        while True:
            page = await self._held.log(offset)
            text, offset = text + page.text, page.next
            if page.end:
                break
        await self._write("".join(text.splitlines(keepends=True)[-lines:]) if lines else "")
        if self._follow and self.how is None:
            from twisted.internet import defer

            self._tailing = Job(defer.ensureDeferred(self._tail(offset)))
            if goes_on:
                await self._tailing.wait()

    async def _tail(self, offset: int) -> None:
        from twisted.internet.task import deferLater

        while True:
            dead = self._dead.done
            # One that was stopped is not known any more.
            page = await finished(self._held.log(offset)) if dead else await self._held.log(offset)
            if page is not None:
                offset = page.next
                await self._write(page.text)
            if page is None or page.end:
                if dead:
                    return
                await first_of(self._dead, Job(deferLater(self._scope.reactor, _LOOK, lambda: None)))

    async def _write(self, text: str) -> None:
        if isinstance(self._page, _Listing):
            self._text.append(text)
        elif text:
            await in_asyncio(self._page.stream("stdout", safe(text) if at_terminal(sys.stdout) else text))

    async def outputs(self, since: Replay, timeout: float) -> None:
        """What the engine said to front ends."""
        from sksd.cli.state import LinkState
        from sksd.client.follow import follow
        from sksd.errors import EngineEnded, SksdError
        from sksd.jupyter.output import Rendering

        rendering = Rendering(self._page)
        with LinkState(self._scope) as state:
            try:
                ticket = await self._held.ticket()
                reactor, route = self._scope.reactor, self._session.route
                follower = await follow(reactor, route, ticket, replay=since, timeout=timeout, told=state.told)
            except EngineEnded as error:
                self._over(str(error.fields.get("how", "")))
                self._scope.output.note("sksd: all that it said has been had by front ends, and is no longer kept.")
                return
            try:
                while follower.left or self._follow or self.how is not None:
                    message = await follower.next()
                    if message is None:
                        why = await follower.when_ended()
                        if not isinstance(why, EngineEnded):
                            raise why or EngineEnded(engine=self._held.id)
                        self._over(str(why.fields.get("how", "")))
                        break
                    await in_asyncio(rendering.show(message.kind, message.content))
            finally:
                await follower.stop()
        if self._tailing is not None:
            try:
                await self._tailing.wait()
            except SksdError as error:
                self._scope.output.note(f"sksd: its process's log was not followed to the end. {error}")

    def end(self) -> None:
        """All was shown."""
        page = self._page
        if isinstance(page, _Listing):
            told = {"text": "".join(self._text), "outputs": page.outputs, "ended": self.how}
            self._scope.output.document({"engine": self._held.id, **told})
        elif self.how is not None:
            self._scope.output.note(f"sksd: engine {self._held.id} has ended ({self.how}).")

    async def close(self) -> None:
        """Whatever is under way ends."""
        if self._tailing is not None:
            self._tailing.cancel()
        if not isinstance(self._page, _Listing):
            await in_asyncio(self._page.flush())
