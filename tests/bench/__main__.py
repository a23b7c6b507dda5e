"""`make bench`: every measurement that the documentation speaks of, one after the other."""

import subprocess
import sys

SCRIPTS = (
    "list_at_client",
    "compare_requirements",
    "create_environment",
    "spin_up",
    "link_throughput",
    "engines_in_a_row",
    "hazards",
    "sessions",
)

failed = []
for script in SCRIPTS:
    print(f"== python -m tests.bench.{script}", flush=True)
    if subprocess.run([sys.executable, "-m", f"tests.bench.{script}"]).returncode:
        failed.append(script)
sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
