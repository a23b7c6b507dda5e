"""The walls: who may import whom."""

import ast
from pathlib import Path

from twisted.trial import unittest

ROOT = Path(__file__).parents[2] / "sksd"
SHARED = {"amounts", "errors", "interfaces", "paths", "reactor", ""}
#: What each room may import of sksd's, besides itself and SHARED.
ALLOWED = {
    "wire": set(),
    "gate": {"wire"},
    "link": {"wire"},
    "server": {"wire", "link"},
    "proxy": {"wire", "link"},
    "keeper": {"wire", "link"},
    "conda": {"wire"},
    "client": {"wire", "link"},
    "jupyter": {"wire", "client"},
    "cli": {"wire", "link", "client", "jupyter"},
}
#: What a room may have of another beside that.
MODULES = {("proxy", "sksd.conda.messages")}
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
    "keeper/idle.py",
    "wire/messages.py",
    "wire/announcement.py",
    "client/backoff.py",
    "wire/sshkey.py",
    "wire/authorized_keys.py",
    "wire/tickets.py",
    "wire/who.py",
    "gate/grants.py",
    "server/arithmetic.py",
    "server/throttle.py",
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
                if any(room == mine and module.startswith(theirs) for mine, theirs in MODULES):
                    continue
                if (file, other) not in EXCEPTIONS:
                    wrong.append(f"{file} imports {module}")
        self.assertEqual(wrong, [])

    def test_pure_modules_import_no_reactor(self) -> None:
        for file in PURE:
            for module in imports(ROOT / file):
                self.assertFalse(module.startswith(("twisted.internet", "socket", "asyncio")), f"{file}: {module}")

    def test_gate_is_small(self) -> None:
        code = 0
        for path in (ROOT / "gate").glob("*.py"):
            tree = ast.parse(path.read_text())
            kinds = ast.Module | ast.ClassDef | ast.FunctionDef
            texts = [
                node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node)
            ]
            # Nor is what it imports counted: that is held by name, below.
            texts += [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            skipped = {line for text in texts for line in range(text.lineno, (text.end_lineno or 0) + 1)}
            lines = enumerate(path.read_text().splitlines(), 1)
            code += sum(bool(line.strip()) and line.strip()[0] != "#" and n not in skipped for n, line in lines)
            for module in imports(path):
                self.assertFalse(module.startswith(("twisted", "zope", "msgspec", "attr", "cryptography")), module)
        self.assertLess(code, 400)

    def test_only_jupyter_imports_jupyter_on_the_users_side(self) -> None:
        for room in ("client", "cli", "link", "wire"):
            for path in (ROOT / room).glob("*.py"):
                found = {module for module in imports(path) if module.startswith(("jupyter", "ipykernel", "IPython"))}
                self.assertEqual(found, set(), str(path))

    def test_nothing_imports_rattler_but_a_worker(self) -> None:
        for path in ROOT.glob("*/*.py"):
            if path.parent.name == "conda" and path.name != "messages.py":
                continue
            self.assertFalse({module for module in imports(path) if module.startswith("rattler")}, str(path))
