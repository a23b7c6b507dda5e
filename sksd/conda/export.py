"""Descriptions of environments, written. Pure; a lock file is written by rattler (`sksd.conda.locks`).

Each can be read back by `sksd.conda.files`, and by conda. No secrets are in them, and no path of the prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml

from sksd.conda.records import Record
from sksd.conda.secrets import mask


def environment_yml(
    name: str,
    channels: Sequence[str],
    installed: Iterable[Record],
    pip: Mapping[str, str],
    variables: Mapping[str, str],
) -> str:
    """An environment.yml with version and build of everything, as `conda env export` makes it."""
    dependencies: list[object] = [f"{each.name}={each.version}={each.build}" for each in installed]
    if pip:
        dependencies.append({"pip": [f"{each}=={version}" for each, version in sorted(pip.items())]})
    document: dict[str, object] = {
        "name": name,
        "channels": list(dict.fromkeys(map(mask, channels))),
        "dependencies": dependencies,
    }
    if variables:
        document["variables"] = dict(variables)
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, allow_unicode=True, width=4096)


def explicit(platform: str, installed: Iterable[Record]) -> str:
    """An explicit list as `conda list --explicit --md5` makes it; SHA256 where there is no MD5."""
    lines = ["# This file may be used to create an environment using:"]
    lines += ["# $ conda create --name <env> --file <this file>", f"# platform: {platform}", "@EXPLICIT"]
    for each in installed:
        suffix = f"#{each.md5}" if each.md5 else f"#sha256:{each.sha256}" if each.sha256 else ""
        lines.append(f"{mask(each.url)}{suffix}")
    return "\n".join(lines) + "\n"
