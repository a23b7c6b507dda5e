"""A program with conda's command line and JSON, for hosts without conda: what it does, a worker of ours does.

`conda_stand_in.py COMMAND --yes --json --prefix P [--override-channels] [--channel C] [--offline] [--dry-run] ...`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Translate there and back."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--prefix")
    parser.add_argument("--channel", action="append", default=[])
    parser.add_argument("--file")
    for flag in ("--yes", "--json", "--override-channels", "--offline", "--dry-run", "--all", "--update-all"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("specs", nargs="*")
    given = parser.parse_intermixed_args()
    words = {"create": "create", "install": "add", "update": "update", "remove": "remove_packages"}
    there = [path.name.rsplit("-", 2)[0] for path in Path(given.prefix).glob("conda-meta/*.json")]
    if given.command == "install" and all(spec.split()[0] in there for spec in given.specs):
        # conda takes the newest of what a spec allows, whatever is there.
        words["install"] = "update"
    job = {"operation": words[given.command], "prefix": given.prefix, "specs": given.specs, "dry_run": given.dry_run}
    job |= {"channels": given.channel, "offline": given.offline}
    if given.file:
        job |= {"operation": "import", "file": {"format": "explicit", "text": Path(given.file).read_text()}}
    # Locks of its own: the prefix is locked by whoever started this.
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environ["XDG_STATE_HOME"] = str(Path(environ["HOME"]) / "of-the-stand-in")
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "sksd.conda"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    )
    # It is interrupted with the whole group, and undoes what it did.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = worker.communicate(json.dumps(job).encode())[0]
    actions: dict[str, list[dict[str, object]]] = {"FETCH": [], "LINK": [], "UNLINK": []}
    for event in map(json.loads, output.splitlines()):
        for each in event.get("actions", ()):
            kind = "UNLINK" if each["action"] == "remove" else "LINK"
            actions[kind].append({"name": each["name"], "version": each["version"], "build_string": each["build"]})
        if event["event"] == "error":
            names = {"no-such-package": "PackagesNotFoundError", "unsolvable": "UnsatisfiableError"}
            name = names.get(event["code"], "CondaError")
            packages = [event["fields"].get("spec")]
            print(json.dumps({"exception_name": name, "message": event["message"], "packages": packages}))
            return 1
    print(json.dumps({"success": True, "actions": actions}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
