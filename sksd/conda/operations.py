"""The operations by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from sksd.conda import backends, changing, making
from sksd.conda.messages import Done, Operation
from sksd.conda.work import Work

OPERATIONS: Final[dict[Operation, Callable[[Work], Awaitable[Done]]]] = {
    "create": making.create,
    "import": making.create,
    "clone": making.clone,
    "rename": making.clone,
    "remove": making.remove,
    "add": changing.add,
    "update": changing.update,
    "remove_packages": changing.remove_packages,
    "export": changing.export,
    "packages": changing.packages,
    "repair": changing.repair,
}


async def run(work: Work) -> Done:
    """Do the job. Raises what went wrong; what was begun by then stands in `work.note`."""
    job = work.job
    return await backends.OPERATIONS.get((job.backend, job.operation), OPERATIONS[job.operation])(work)
