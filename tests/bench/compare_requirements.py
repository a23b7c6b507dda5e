"""How long it takes to compare what is required with an environment, by its files.

Run with `python -m tests.bench.compare_requirements`. The environments are those of `list_environments`, with 100
packages each; what is required are 30 conda specs and 10 of pip's, as a large environment.yml has them.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from sksd.proxy.environments import gather
from sksd.proxy.prefixes import PrefixReader
from sksd.proxy.requirements import read, unmet
from sksd.proxy.sources import Sources
from sksd.wire.messages import EnvironmentFile
from tests.bench.list_environments import make_environments, milliseconds

SPECS = [f"package-{number} >=1.{number},<2" for number in range(30)]
FILE = EnvironmentFile(
    format="requirements.txt", text="\n".join(f"package_{number}>=1.0" for number in range(10))
)
#: Milliseconds an environment.
LIMIT = 1.0


def main() -> None:
    with tempfile.TemporaryDirectory() as top:
        made = make_environments(Path(top, "envs"))
        sources = Sources(top, {"CONDA_ENVS_PATH": str(Path(top, "envs"))}, root=top)
        first = milliseconds(lambda: read(SPECS, FILE))
        required = read(SPECS, FILE)
        cold, warm = [], []
        for _ in range(10):
            reader = PrefixReader()
            cold.append(
                milliseconds(lambda reader=reader: [reader.read(str(path)) for path in made]) / len(made)
            )
            found = [listed.prefix for listed in gather(sources, reader)]
            warm.append(
                milliseconds(lambda found=found: [unmet(prefix, required) for prefix in found]) / len(found)
            )
        print(f"reading 40 requirements, the first time  {first:9.3f} ms")
        print(f"reading an environment's files           {statistics.median(cold):9.3f} ms an environment")
        print(f"comparing 40 requirements with it        {statistics.median(warm):9.3f} ms an environment")
        assert statistics.median(cold) + statistics.median(warm) < LIMIT


if __name__ == "__main__":
    main()
