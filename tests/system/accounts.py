"""A shared host: real accounts, made and removed, and sksd installed where all of them can read it."""

from __future__ import annotations

import atexit
import configparser
import contextlib
import functools
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from twisted.internet import defer, reactor, threads
from twisted.trial import unittest

from sksd.client import session
from sksd.wire import messages
from sksd.wire.local import Note
from sksd.wire.sshkey import PrivateKey
from tests import channel
from tests.system.daemon import LIMIT, ROOT, Local, Process, until

ROOT_ONLY = "needs root, useradd and PAM" if os.geteuid() != 0 or not shutil.which("useradd") else None


def run(*command: str | Path, **more: Any) -> str:
    """A command that has to work."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, **more)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def _link(source: str, target: str) -> None:
    # Ten times as fast as copying ten thousand small files, where it can be had.
    # A file that is gone by now was byte code that another test was writing.
    with contextlib.suppress(FileNotFoundError):
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)


def processes_of(uid: int) -> list[psutil.Process]:
    """What runs as an account."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == uid and process.status() != "zombie":
                found.append(process)
    return found


def as_user(user: str, *command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end as that account."""
    who = pwd.getpwnam(user)
    return subprocess.run(
        command,
        user=who.pw_uid,
        group=who.pw_gid,
        extra_groups=os.getgrouplist(user, who.pw_gid),
        env={"HOME": who.pw_dir, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **environ},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def install(prefix: Path) -> Path:
    """A Python with a Spyder kernel and sksd in `prefix`, readable for everybody; answers the interpreter.

    All is copied from what runs the tests, which lies where other accounts need not be able to go.
    """
    shutil.copytree(channel.environments() / "fits", prefix, symlinks=True, copy_function=_link)
    packages = next(prefix.glob("lib/python3.*/site-packages"))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted, seen = setup["options"]["install_requires"].split("\n"), set()
    while wanted:
        requirement = Requirement(wanted.pop() or "twisted")
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not applies or canonicalize_name(requirement.name) in seen:
            continue
        seen.add(canonicalize_name(requirement.name))
        found = metadata.distribution(requirement.name)
        wanted += found.requires or []
        for file in found.files or []:
            source = Path(str(found.locate_file(file)))
            if ".." not in file.parts and source.exists() and not (packages / file).exists():
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                _link(str(source), str(packages / file))
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sksd", packages / "sksd", ignore=unwanted)
    shutil.copytree(ROOT / "twisted", packages / "twisted", ignore=unwanted, dirs_exist_ok=True)
    run(prefix / "bin" / "python", "-m", "compileall", "-q", packages / "sksd")
    run("chmod", "-R", "go+rX", prefix)
    return prefix / "bin" / "python"


class Host:
    """What all tests of a module share: the installation and the accounts. `close` takes all of it away."""

    password = "Right-" + secrets.token_hex(8)

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="sksd", dir="/tmp"))
        self.top.chmod(0o755)
        self.mark = secrets.token_hex(3)
        self._names: list[str] = []
        self.python = install(self.top / "python")
        self.daemon_account = self.add("d", password=None)
        self.ada = self.add("ada")
        self.bob = self.add("bob")
        # As systemd makes it for whoever logs in; ada has none.
        self.runtime = Path(f"/run/user/{pwd.getpwnam(self.bob).pw_uid}")
        # Of an earlier account with this number, where a test was killed.
        shutil.rmtree(self.runtime, ignore_errors=True)
        self.runtime.mkdir(mode=0o700, parents=True)
        shutil.chown(self.runtime, self.bob, self.bob)
        run("groupadd", f"sksdg{self.mark}")
        run("usermod", "-a", "-G", f"sksdg{self.mark}", self.ada)

    def add(self, name: str, password: str | None = password) -> str:
        """A new account with a home in the test's folder."""
        full = f"sksd{name}{self.mark}"
        run("useradd", "--create-home", "--base-dir", self.top, "--shell", "/bin/bash", full)
        self._names.append(full)
        (self.top / full).chmod(0o700)
        if password is not None:
            run("chpasswd", input=f"{full}:{password}")
        return full

    def forget(self) -> None:
        """What sksd has kept of people's engines is gone."""
        for home in self.top.iterdir():
            shutil.rmtree(home / ".local" / "state" / "sksd", ignore_errors=True)

    def close(self) -> None:
        """Nothing is left."""
        for name in self._names:
            with contextlib.suppress(KeyError):
                uid = pwd.getpwnam(name).pw_uid
                for process in processes_of(uid):
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                for left in Path("/tmp").glob(f"sksd-{uid}-*"):
                    shutil.rmtree(left, ignore_errors=True)
                subprocess.run(["userdel", "--force", name], check=False, capture_output=True)
        subprocess.run(["groupdel", f"sksdg{self.mark}"], check=False)
        shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(self.top, ignore_errors=True)


@functools.cache
def the_host() -> Host:
    """Made when first needed, taken away at the end of the process."""
    made = Host()
    atexit.register(made.close)
    return made


class HostCase(unittest.TestCase):
    """A test on a shared host, with a daemon of its own."""

    timeout = 120
    skip = ROOT_ONLY
    settings = ""

    @property
    def host(self) -> Host:
        """The one of this process: accounts and interpreter are the same for all its tests."""
        return the_host()

    def setUp(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="sksd", dir="/tmp"))
        self.top.chmod(0o755)
        self.addCleanup(shutil.rmtree, self.top, True)
        self.environ = {
            "SKSD_SYSTEM_STATE": str(self.top / "state"),
            "SKSD_SYSTEM_RUNTIME": str(self.top / "run"),
            "SKSD_CONF": str(self.top / "sksd.conf"),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/root",
        }
        self.configure(self.settings)
        self.addCleanup(self._nothing_is_left)
        self._children: list[Process] = []
        self.addCleanup(self._end_children)

    def configure(self, text: str) -> None:
        """The daemon's configuration."""
        start = f"[sksd]\nmode = system\nrun_as = {self.host.daemon_account}\nannounce = no\nlisten = 127.0.0.1\n"
        (self.top / "sksd.conf").write_text(start + text)

    def run_process(self, *arguments: str | Path, user: str = "root", **environ: str) -> Process:
        """Start a program."""
        process = Process()
        words = [str(each) for each in arguments]
        who = pwd.getpwnam(user)
        rights = {"uid": who.pw_uid, "gid": who.pw_gid} if who.pw_uid else {}
        reactor.spawnProcess(  # type: ignore[attr-defined]
            process, words[0], words, env={**self.environ, "HOME": who.pw_dir, **environ}, path="/", **rights
        )
        self._children.append(process)
        return process

    def authorize(self, user: str, key: PrivateKey) -> Path:
        """Let the key open the account; answers the file that says so."""
        who = pwd.getpwnam(user)
        file = Path(who.pw_dir, ".ssh", "authorized_keys")
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
        file.chmod(0o600)
        for each in (file.parent, file):
            os.chown(each, who.pw_uid, who.pw_gid)
        self.addCleanup(shutil.rmtree, file.parent, True)
        return file

    @defer.inlineCallbacks
    def _end_children(self) -> Any:
        for process in self._children:
            if process.transport is not None and process.transport.pid is not None:  # type: ignore[attr-defined]
                process.kill(signal.SIGTERM)
                yield process.over

    async def start(self) -> Process:
        """A daemon that listens."""
        daemon = self.run_process(self.host.python, "-P", "-m", "sksd", "serve")
        await daemon.says(b"fingerprint")
        return daemon

    async def stop(self, daemon: Process) -> None:
        """End a daemon."""
        daemon.kill(signal.SIGTERM)
        await daemon.ended.addTimeout(LIMIT, reactor)

    def note(self) -> Note:
        """Where the daemon is."""
        return Note(**json.loads((self.top / "run" / "daemon.json").read_text()))

    async def connect(self) -> session.Connection:
        """A connection to the daemon."""
        connection = await session.connect(reactor, Local(self.note()))
        self.addCleanup(lambda: defer.ensureDeferred(connection.close()))
        return connection

    async def log_in(self, user: str, password: str | None = None) -> session.Session:
        """A session with the daemon."""
        return await (await self.connect()).login(user, self.host.password if password is None else password)

    async def sksd(self, user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, as that account."""
        environ = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
        environ["SKSD_SYSTEM_RUNTIME"] = str(self.top / "run")
        command = (self.host.python, "-m", "sksd", *arguments)
        return await threads.deferToThread(as_user, user, *command, **environ)

    async def spin_up(self, here: session.Session, **wish: Any) -> messages.Engine:
        """An engine in the environment that sksd itself runs in."""
        outcome = await here.spin_up(messages.SpinUp(environment=str(self.host.python.parent.parent), **wish))
        assert outcome.engine is not None, outcome
        return outcome.engine

    def of(self, user: str) -> list[psutil.Process]:
        """The processes of an account."""
        return processes_of(pwd.getpwnam(user).pw_uid)

    def named(self, pattern: str) -> list[psutil.Process]:
        """The processes of this installation whose command line has the words."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if line.startswith(str(self.host.top)) and re.search(pattern, line):
                    found.append(process)
        return found

    @defer.inlineCallbacks
    def _nothing_is_left(self) -> Any:
        """What a test has left of engines is killed; then everything must end by itself."""
        for process in self.named("spyder_kernels"):
            with contextlib.suppress(psutil.Error):
                process.kill()
        try:
            yield defer.ensureDeferred(until(lambda: not self.named("."), "everything ends"))
        finally:
            self.host.forget()


assert sys.platform == "linux"
