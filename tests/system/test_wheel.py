"""What an installed sksd brings: built as a wheel, installed into a folder of its own, run from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from twisted.trial import unittest

ROOT = Path(__file__).parents[2]


class Wheel(unittest.TestCase):
    """Built once for all tests."""

    def setUp(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="sksdw"))
        self.addCleanup(shutil.rmtree, self.top)
        # From a copy: a build leaves folders behind.
        source = self.top / "source"
        skipped = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "_trial_temp*")
        shutil.copytree(ROOT, source, ignore=skipped)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(self.top), str(source))
        self.run_command(*pip, *build)
        [self.wheel] = self.top.glob("sksd-*.whl")
        prefix = self.top / "prefix"
        self.run_command(*pip, "install", "--quiet", "--no-deps", "--prefix", str(prefix), str(self.wheel))
        self.prefix = prefix
        [self.packages] = prefix.glob("lib/python*/site-packages")

    def run_command(self, *arguments: str) -> str:
        """Its output; fails with it when the command fails."""
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if hasattr(self, "packages"):
            environ["PYTHONPATH"] = str(self.packages)
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=self.top, env=environ)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_wheel(self) -> None:
        names = zipfile.ZipFile(self.wheel).namelist()
        self.assertIn("twisted/plugins/sksd_plugin.py", names)
        self.assertFalse([name for name in names if name.startswith("twisted/") and "__init__" in name])
        self.assertFalse([name for name in names if name.startswith(("tests", "client_plugin"))])
        rooms = {path.parent.name for path in (ROOT / "sksd").glob("*/__init__.py")}
        packed = {name.split("/")[1] for name in names if name.startswith("sksd/") and name.count("/") > 1}
        self.assertEqual(packed, rooms)
        default = self.prefix / "etc" / "sksd" / "sksd.conf"
        self.assertEqual(default.read_bytes(), (ROOT / "etc" / "sksd.conf").read_bytes())
        twistd = str(Path(sys.executable).parent / "twistd")
        self.assertIn("--config", self.run_command(sys.executable, twistd, "sksd", "--help"))
        said = self.run_command(sys.executable, "-c", "import sksd; print(sksd.__file__)")
        self.assertIn(str(self.packages), said)
        script = self.prefix / "bin" / "sksd"
        self.assertIn("envs", self.run_command(sys.executable, str(script), "--help"))
