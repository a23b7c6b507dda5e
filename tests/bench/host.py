"""A real daemon in private folders for a measurement, without a test around it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

from sksd import paths
from sksd.client import session
from sksd.wire.local import read_note
from tests.system.daemon import ROOT, Local, until


@contextlib.asynccontextmanager
async def daemon(**environ: str) -> AsyncIterator[tuple[session.Session, subprocess.Popen[bytes]]]:
    """(a session with a daemon of its own, the daemon's process). `environ` is added to the daemon's variables."""
    from twisted.internet import reactor

    top = Path(tempfile.mkdtemp(prefix="sksdb", dir="/tmp"))
    folders = {"XDG_CONFIG_HOME": "c", "XDG_STATE_HOME": "s", "XDG_RUNTIME_DIR": "r", "HOME": "h"}
    for name, folder in folders.items():
        (top / folder).mkdir(mode=0o700)
        os.environ[name] = str(top / folder)
    os.environ |= environ
    paths.private(paths.configuration_file().parent)
    configuration = "[sksd]\nannounce = no\nlisten = 127.0.0.1\n[kernels]\nmax_kernels = 1000\n"
    paths.configuration_file().write_text(configuration)
    with open(top / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "sksd", "serve"], cwd=ROOT, stdout=log, stderr=log)
    try:
        note = await until(lambda: read_note(paths.daemon_note()), "the daemon listens")
        connection = await session.connect(reactor, Local(note))
        here = await connection.login("", paths.token().read_text().strip())
        yield here, process
        for engine in await here.engines():
            await (await here.engine(engine.id)).shutdown()
        await here.close()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        process.terminate()
        await until(lambda: process.poll() is not None, "the daemon ends")
        await until(lambda: not _proxy(top), "the proxy ends")
        shutil.rmtree(top)


def _proxy(top: Path) -> bool:
    return any(top.rglob("proxy.sock"))
