"""Engines for commands: started for them, or found by the beginning of an id."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import attrs
import click
from twisted.internet import defer

from sksd.cli import names
from sksd.cli.options import Needs
from sksd.cli.progress import Steps, new_task
from sksd.cli.running import Job, Scope, finished
from sksd.client.hosts import Target
from sksd.client.session import EngineSession, Session
from sksd.errors import (
    Cancelled,
    EngineAmbiguous,
    NoSuchEngine,
    NothingFits,
    NotStarted,
    SksdError,
    from_code,
)
from sksd.wire.messages import Accept, Engine, Outcome, Progress, SpinUp, Ticket

#: Seconds after which the host ends an engine of ours when we were killed and could not.
ORPHAN: Final = 60.0
#: Seconds a host has to show that it is still there, before it is asked to stop an engine.
_REACHABLE: Final = 3.0


@attrs.frozen
class Start:
    """What a person said about the engine to start; `environment` None: the first that fits."""

    environment: str | None
    accepts: Sequence[Accept] = ()
    cwd: str | None = None
    variables: dict[str, str | None] = attrs.field(factory=dict)
    timeout: float = 60.0
    linger: float | None = None
    label: str = ""
    needs: Needs = attrs.field(factory=Needs)


@attrs.frozen
class Held:
    """An engine to work with: `ours` when it was started for this command and ends with it."""

    session: EngineSession
    ticket: Ticket
    ours: bool


async def spin_up(scope: Scope, session: Session, start: Start) -> Outcome:
    """Start an engine; the outcome, whatever it is. When the person gives up meanwhile, no engine is left."""
    environment = start.environment or await _first_fit(session, start.accepts)
    wish = SpinUp(
        environment=environment,
        accepts=list(start.accepts),
        cwd=start.cwd,
        variables=start.variables,
        linger=start.linger,
        timeout=start.timeout,
        label=start.label,
        requirements=list(start.needs.requirements),
        file=start.needs.file,
        create=start.needs.create,
        mend=start.needs.mend,
        task=new_task(),
    )
    with Steps(scope.output) as steps, contextlib.ExitStack() as stack:
        told: Callable[[Progress], None] = steps.told
        if not (wish.create or wish.mend):
            waiting = scope.output.waiting(scope.reactor, f"Starting a kernel in {environment}")
            change = stack.enter_context(waiting)
            told = lambda event: change(event.message)  # noqa: E731
        starting = Job(defer.ensureDeferred(session.spin_up(wish, told)))
        try:
            return await starting.wait()
        except defer.CancelledError:
            if wish.create or wish.mend:
                await finished(session.cancel(wish.task))
            outcome = await finished(starting.wait())
            if outcome is not None and outcome.code == Cancelled.code:
                scope.output.note(f"sksd: {outcome.message}")
            if outcome is not None and outcome.engine is not None:
                engine = await finished(session.engine(outcome.engine.id))
                if engine is not None:
                    await finished(engine.shutdown(1.0))
            raise


async def _first_fit(session: Session, accepts: Sequence[Accept]) -> str:
    for environment in await session.environments(list(accepts)):
        if environment.fits:
            return environment.name
    raise NothingFits(host=session.route.name)


def failure(host: str, start: Start, outcome: Outcome) -> SksdError | None:
    """The error that an outcome is, None when an engine was started."""
    if outcome.engine is not None and outcome.ticket is not None:
        return None
    if outcome.code is not None:
        return from_code(outcome.code, outcome.message or "", {**outcome.fields, "host": host})
    rows = [(each.requirement, each.found or "not there", each.mend) for each in outcome.unmet]
    wide = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"  {need:<{wide[0]}}  {there:<{wide[1]}}  {mend}" for need, there, mend in rows]
    return NotStarted(host=host, problem="\n".join([outcome.message or outcome.outcome, *lines]))


async def find(session: Session, engine: str) -> Engine:
    """The engine whose id begins with `engine`. Raises NoSuchEngine, EngineAmbiguous."""
    found = await session.engines()
    names.keep(names.ENGINES, key(session), [each.id for each in found])
    matching = [each for each in found if engine and each.id.startswith(engine)]
    exact = [each for each in matching if each.id == engine]
    if not matching:
        raise NoSuchEngine(host=session.route.name, engine=engine)
    if len(matching) > 1 and not exact:
        raise EngineAmbiguous(host=session.route.name, engine=engine)
    return (exact or matching)[0]


def key(session: Session) -> str:
    """The key under which names of this host are kept for tab completion."""
    route = session.route
    return route.key if isinstance(route, Target) else route.name.casefold()


async def _stop(session: Session, engine: EngineSession) -> None:
    """Stop an engine of ours; when the host is out of reach, it does so itself after ORPHAN seconds."""
    try:
        await session.ping(_REACHABLE)
        await engine.shutdown(2.0)
    except SksdError:
        session.abort()


@asynccontextmanager
async def engine_for(
    scope: Scope, session: Session, engine: str | None, start: Start, keep: bool = False
) -> AsyncIterator[Held]:
    """The engine that was named, or a new one, which is stopped after the block unless `keep`."""
    if engine is not None:
        if start.needs != Needs():
            raise click.UsageError("--require, --file, --create and --mend are for a new engine, not for --engine.")
        found = await find(session, engine)
        held = await session.engine(found.id)
        yield Held(held, await held.ticket(), ours=False)
        return
    outcome = await spin_up(scope, session, start)
    problem = failure(session.route.name, start, outcome)
    if problem is not None:
        raise problem
    assert outcome.engine is not None and outcome.ticket is not None
    held = await session.engine(outcome.engine.id)
    try:
        yield Held(held, outcome.ticket, ours=True)
    finally:
        if not keep:
            with scope.output.waiting(scope.reactor, "Stopping the kernel"):
                await finished(_stop(session, held))
