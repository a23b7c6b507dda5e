"""The walls: who may import whom."""

import ast
from pathlib import Path

from twisted.trial import unittest

ROOT = Path(__file__).parents[2] / "sksd"
SHARED = {"amounts", "errors", "interfaces", "paths", "reactor", ""}
#: What each room may import of sksd's, besides itself and SHARED.
ALLOWED = {
    "wire": set(),
    "link": {"wire"},
    "server": {"wire", "link"},
    "proxy": {"wire", "link"},
    "keeper": {"wire", "link"},
    "client": {"wire", "link"},
    "jupyter": {"wire", "client"},
    "cli": {"wire", "link", "client", "jupyter"},
}
#: The command line starts the daemon, and only there.
EXCEPTIONS = {("cli/serve.py", "server")}
#: Modules that decide and do nothing: no reactor, no sockets.
PURE = [
    "link/frames.py",
    "link/core.py",
    "link/hello.py",
    "link/chunks.py",
    "link/zmtp.py",
    "keeper/lifecycle.py",
    "wire/messages.py",
    "wire/announcement.py",
    "client/backoff.py",
    "server/arithmetic.py",
]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


class Directions(unittest.TestCase):
    """Imports run one way."""

    def test_rooms(self) -> None:
        wrong = []
        for path in ROOT.glob("*/*.py"):
            room, file = path.parent.name, str(path.relative_to(ROOT))
            for module in imports(path):
                parts = module.split(".")
                if parts[0] != "sksd" or len(parts) < 2:
                    continue
                other = parts[1]
                if other in SHARED or other == room or other.startswith("__") or other in ALLOWED[room]:
                    continue
                if (file, other) not in EXCEPTIONS:
                    wrong.append(f"{file} imports {module}")
        self.assertEqual(wrong, [])

    def test_pure_modules_import_no_reactor(self) -> None:
        for file in PURE:
            for module in imports(ROOT / file):
                self.assertFalse(module.startswith(("twisted.internet", "socket", "asyncio")), f"{file}: {module}")

    def test_only_jupyter_imports_jupyter_on_the_users_side(self) -> None:
        for room in ("client", "cli", "link", "wire"):
            for path in (ROOT / room).glob("*.py"):
                found = {module for module in imports(path) if module.startswith(("jupyter", "ipykernel", "IPython"))}
                self.assertEqual(found, set(), str(path))

    def test_nothing_imports_rattler_but_a_worker(self) -> None:
        for path in ROOT.glob("*/*.py"):
            self.assertFalse({module for module in imports(path) if module.startswith("rattler")}, str(path))
