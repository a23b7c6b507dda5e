"""Listing, choosing and activating real conda environments, made from the tests' own channel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from jupyter_client import BlockingKernelClient
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from sksd.proxy.activation import Activations
from sksd.proxy.environments import find_environment, list_environments
from sksd.proxy.kernels import choose_kernel
from sksd.proxy.prefixes import PrefixReader
from sksd.proxy.shell import run
from sksd.proxy.sources import Sources
from sksd.wire.messages import Accept, Environment, Unmet
from tests import channel

SPYDER = Accept(package="spyder-kernels", low="3.1", high="3.2")


class RealEnvironmentsTests(TestCase):
    """The channel's environments as a proxy sees them."""

    #: Making the channel the first time takes tens of seconds.
    timeout = 600

    def setUp(self) -> None:
        self.folder = channel.environments()
        self.home = Path(os.path.realpath(self.mktemp()))
        self.home.mkdir(parents=True)
        self.login = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        self.sources = Sources(
            str(self.home), self.login | {"CONDA_ENVS_PATH": str(self.folder)}, root=str(self.home / "root")
        )
        self.reader = PrefixReader()
        self.activations = Activations(partial(run, reactor))

    def listing(self) -> dict[str, Environment]:
        return {item.name: item for item in list_environments(self.sources, self.reader, [SPYDER])}

    async def variables(self, name: str) -> dict[str, str]:
        prefix = find_environment(self.sources, self.reader, name).prefix
        return await self.activations.activate(prefix, name, self.login)

    async def output(self, environ: Mapping[str, str], program: str, *arguments: str) -> str:
        """What `program`, looked up on the PATH of `environ`, prints."""
        path = shutil.which(program, path=environ["PATH"])
        assert path is not None, environ["PATH"]
        out, err, code = await getProcessOutputAndValue(path, arguments, environ, str(self.home))
        self.assertEqual(code, 0, err.decode())
        return out.decode().strip()

    def own_environment(self, specifications: Sequence[str] = ("python",)) -> Path:
        """An environment that the test may change."""
        prefix = self.home / ".conda" / "envs" / "mine"
        channel.install(prefix, specifications)
        return prefix

    def test_listing(self) -> None:
        found = self.listing()
        self.assertEqual({item.kind for item in found.values()}, {"conda"})
        self.assertEqual(
            {name: item.reason for name, item in found.items()},
            {
                "bare": "spyder-kernels>=3.1,<3.2 is not installed",
                "fits": None,
                "nopython": "there is no Python in it",
                "wrong": "spyder-kernels>=3.1,<3.2 is needed, 3.0.5 is there",
            },
        )
        self.assertEqual([name for name, item in found.items() if item.fits], ["fits"])
        self.assertEqual(found["fits"].python, channel.PYTHON_VERSION)
        self.assertIsNone(found["nopython"].python)

    def test_condarc(self) -> None:
        (self.home / ".condarc").write_text(f"envs_dirs:\n  - {self.folder}\n")
        self.sources = Sources(str(self.home), self.login, root=str(self.home / "root"))
        self.assertEqual(set(self.listing()), set(channel.SPECIFICATIONS))

    def test_mend_mends(self) -> None:
        """What the answer says would help is what helps."""
        prefix = self.own_environment()
        unmet = choose_kernel(find_environment(self.sources, self.reader, "mine").prefix, [SPYDER])
        assert isinstance(unmet, list)
        wanted = "spyder-kernels>=3.1,<3.2"
        mend = f"install it: conda install -p {prefix} '{wanted}'"
        self.assertEqual(unmet, [Unmet(requirement=wanted, found=None, mend=mend)])
        channel.install(prefix, ["python", wanted])
        self.assertTrue(self.listing()["mine"].fits)

    def test_changes_by_hand(self) -> None:
        prefix = self.own_environment()
        self.assertFalse(self.listing()["mine"].fits)
        packages = prefix / "lib" / channel.PYTHON / "site-packages"
        (packages / "spyder_kernels-3.1.9.dist-info").mkdir()
        self.assertTrue(self.listing()["mine"].fits)
        (packages / "spyder_kernels-3.1.9.dist-info").rmdir()
        self.assertFalse(self.listing()["mine"].fits)
        shutil.rmtree(prefix)
        self.assertNotIn("mine", self.listing())

    async def test_activated_python(self) -> None:
        environ = await self.variables("fits")
        program = "import sys, os, spyder_kernels; print(sys.prefix, os.environ['CONDA_DEFAULT_ENV'])"
        self.assertEqual(await self.output(environ, "python", "-c", program), f"{self.folder}/fits fits")

    async def test_kernel_starts(self) -> None:
        """The activated environment that fits runs code in a Spyder kernel."""
        environ = await self.variables("fits")
        file = self.home / "connection.json"
        # Short, for it becomes the address of a UNIX socket.
        sockets = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, sockets)
        ports = {
            f"{name}_port": number
            for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)
        }
        file.write_text(
            json.dumps(
                ports
                | {"transport": "ipc", "ip": f"{sockets}/k", "key": "k", "signature_scheme": "hmac-sha256"}
            )
        )
        arguments = [f"{self.folder}/fits/bin/python", "-m", "spyder_kernels.console", "-f", str(file)]
        kernel = subprocess.Popen(
            arguments,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.addCleanup(kernel.wait)
        self.addCleanup(kernel.kill)

        def ask() -> str:
            client = BlockingKernelClient(connection_file=str(file))
            client.load_connection_file()
            client.start_channels(hb=False)
            try:
                reply = client.execute(
                    "", user_expressions={"x": "__import__('sys').prefix"}, reply=True, timeout=60
                )
                return str(reply["content"]["user_expressions"]["x"]["data"]["text/plain"])
            finally:
                client.stop_channels()

        self.assertEqual(await deferToThread(ask), repr(f"{self.folder}/fits"))

    async def test_without_python(self) -> None:
        environ = await self.variables("nopython")
        self.assertEqual(await self.output(environ, "sksd-test-tool"), "a tool without Python")

    async def test_script_and_state(self) -> None:
        """A script of activate.d sees what the files set, runs the environment's Python, and counts."""
        prefix = self.own_environment()
        scripts = prefix / "etc" / "conda" / "activate.d"
        scripts.mkdir(parents=True)
        (scripts / "a.sh").write_text(
            'echo noise\nexport FROM_SCRIPT="$FROM_STATE $(python -c "import sys; print(sys.prefix)")"\n'
        )
        state = {"env_vars": {"FROM_STATE": "state", "UNWANTED": "***unset***"}}
        (prefix / "conda-meta" / "state").write_text(json.dumps(state))
        self.login["UNWANTED"] = "1"
        environ = await self.variables("mine")
        program = "import os; print(os.environ['FROM_SCRIPT'], 'UNWANTED' in os.environ)"
        self.assertEqual(await self.output(environ, "python", "-c", program), f"state {prefix} False")
        (scripts / "a.sh").unlink()
        self.assertNotIn("FROM_SCRIPT", await self.variables("mine"))

    async def test_venv_of_a_conda_python(self) -> None:
        venv = self.home / ".venvs" / "mine"
        await self.output(
            self.login, f"{self.folder}/bare/bin/python", "-m", "venv", "--without-pip", str(venv)
        )
        self.assertEqual(self.listing()["mine"].python, channel.PYTHON_VERSION)
        environ = await self.variables("mine")
        self.assertEqual(
            await self.output(environ, "python", "-c", "import sys; print(sys.prefix)"), str(venv)
        )
