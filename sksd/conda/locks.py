"""Lock files, by rattler: its own format (that of pixi), and conda-lock's, which it reads too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import rattler
from rattler.lock import LockChannel, LockFile, LockPlatform, PypiLockedPackage
from rattler.platform import Subdir

from sksd.conda.secrets import mask
from sksd.errors import BadFile

_ENVIRONMENT = "default"


def write(records: Iterable[rattler.RepoDataRecord], channels: Iterable[str], pip: Mapping[str, str]) -> str:
    """A lock file of one environment on this platform. Of pip's packages name and version are in it; where they come
    from is not known, so PyPI's page of the project stands there."""
    platform = LockPlatform(str(Subdir.current()))
    lock = LockFile([platform])
    lock.set_channels(_ENVIRONMENT, [LockChannel(mask(url)) for url in channels])
    for record in records:
        lock.add_conda_package(_ENVIRONMENT, platform, record)
    for name, version in sorted(pip.items()):
        lock.add_pypi_package(_ENVIRONMENT, platform, name, version, f"https://pypi.org/project/{name}/{version}/")
    with tempfile.TemporaryDirectory(prefix="sksd-") as folder:
        path = Path(folder, "lock")
        lock.to_path(path)
        return mask(path.read_text(encoding="utf-8"))


def read(text: str, name: str) -> tuple[list[rattler.RepoDataRecord], list[str], list[str]]:
    """The records, pip's lines and the channels' URLs of the environment called `name`, else of the default one, else
    of the only one. Raises BadFile."""
    with tempfile.TemporaryDirectory(prefix="sksd-") as folder:
        path = Path(folder, "lock")
        path.write_text(text, encoding="utf-8")
        try:
            lock = LockFile.from_path(path)
        except Exception as error:
            raise BadFile(format="lock file", problem=mask(str(error)).strip().replace("\n", " ")) from None
    every = dict(lock.environments())
    found = every.get(name) or every.get(_ENVIRONMENT) or (next(iter(every.values())) if len(every) == 1 else None)
    if found is None:
        raise BadFile(format="lock file", problem=f"give one of its environments as the name: {', '.join(every)}")
    here = str(Subdir.current())
    platform = next((each for each in found.platforms() if str(each.subdir) == here or each.name == here), None)
    if platform is None:
        has = ", ".join(each.name for each in found.platforms())
        raise BadFile(format="lock file", problem=f"it is for {has}, and this host is {here}")
    records = found.conda_repodata_records_for_platform(platform) or []
    pypi: list[PypiLockedPackage] = found.pypi_packages_for_platform(platform) or []
    return records, [f"{each.name}=={each.version}" for each in pypi], [str(each) for each in found.channels()]
