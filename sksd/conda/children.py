"""Programs that a change runs: pip, and the executables of other backends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

#: Seconds that a program has to put back what it was about to replace, before it is killed.
GRACE = 5.0
#: Of its last lines, for the sentence that says why it failed; of one line, in bytes.
_KEPT = 200
_LONGEST = 1024 * 1024


async def run(
    command: Sequence[str], environ: Mapping[str, str], lock: int, heard: Callable[[str], None]
) -> tuple[int, list[str], str]:
    """Run `command` in a session of its own; (exit code, the last lines of stderr, all of stdout).

    `heard` is told each line of stdout.

    It inherits `lock`, so that the prefix stays locked until it has ended, whatever happens to this process. When
    this is cancelled, its whole process group is interrupted, and killed if that does not help. Raises OSError.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ,
        cwd="/",
        start_new_session=True,
        pass_fds=(lock,),
        limit=_LONGEST,
    )
    assert process.stdout is not None and process.stderr is not None
    errors: list[str] = []
    said: list[str] = []

    async def read(stream: asyncio.StreamReader, lines: list[str], told: Callable[[str], None]) -> None:
        async for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            told(line)

    try:
        await asyncio.gather(read(process.stdout, said, heard), read(process.stderr, errors, lambda line: None))
        code = await process.wait()
    except BaseException:
        await _end(process)
        raise
    return code, errors[-_KEPT:], "\n".join(said)


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            os.killpg(process.pid, number)
            await asyncio.wait_for(process.wait(), GRACE)
