"""The settings of conda as a person has them: .condarc in all its places, merged as conda merges them.

`search_path`, `merge` and `read` are pure; `load` reads the files. What this knows of conda: "Using the .condarc
configuration file" of its documentation, and SEARCH_PATH and the parameters of conda/base/context.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from sksd.conda.secrets import mask
from sksd.errors import BadCondarc

_PLACES: Final = ("/etc/conda", "/var/lib/conda")
_FILES: Final = (".condarc", "condarc", "condarc.d/")
_LISTS: Final = (
    "channels",
    "default_channels",
    "envs_dirs",
    "pkgs_dirs",
    "pinned_packages",
    "create_default_packages",
)
_MAPS: Final = ("custom_channels", "custom_multichannels", "proxy_servers", "mirrored_channels")
#: So long may a channel be silent before it counts as dead.
_SECONDS: Final = ("remote_read_timeout_secs",)
_SCALARS: Final = (
    *_SECONDS,
    "channel_alias",
    "ssl_verify",
    "offline",
    "channel_priority",
    "add_pip_as_python_dependency",
)
_ALIASES: Final = {"channel": "channels", "envs_path": "envs_dirs", "verify_ssl": "ssl_verify"}
_VARIABLES: Final = {"CONDA_ENVS_PATH": "envs_dirs", "CONDA_DEFAULT_CHANNELS": "default_channels"}
#: conda's own.
_DEFAULT_CHANNELS: Final = ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")
#: A larger file is no .condarc.
_LARGEST: Final = 1024 * 1024


@dataclass(frozen=True)
class Condarc:
    """The merged settings. `channels` is empty where no file names one; the folders are absolute.

    `ssl_verify`: True, False, or the path of a file with certificates. `channel_priority`: strict, flexible or
    disabled.
    """

    channels: Sequence[str] = ()
    default_channels: Sequence[str] = _DEFAULT_CHANNELS
    channel_alias: str = "https://conda.anaconda.org"
    custom_channels: Mapping[str, str] = field(default_factory=dict)
    custom_multichannels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mirrored_channels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    proxy_servers: Mapping[str, str] = field(default_factory=dict)
    ssl_verify: bool | str = True
    offline: bool = False
    channel_priority: str = "flexible"
    add_pip_as_python_dependency: bool = True
    remote_read_timeout_secs: float = 45.0
    envs_dirs: Sequence[str] = ()
    pkgs_dirs: Sequence[str] = ()
    pinned_packages: Sequence[str] = ()
    create_default_packages: Sequence[str] = ()


def load(home: str, environ: Mapping[str, str]) -> Condarc:
    """The settings of whoever's `home` and `environ` these are. Raises BadCondarc, which names the file."""
    layers = []
    for place in search_path(home, environ):
        for file in sorted(Path(place).glob("*.y*ml")) if place.endswith("/") else [Path(place)]:
            layer = _file(file)
            if layer is not None:
                layers.append((str(file), layer))
    layers.append(("the environment variables", _environment(environ)))
    return read(merge(layers), home, environ)


def search_path(home: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Where conda looks, the least important first; what ends in / is a folder of files."""
    configuration = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    folders = [*_PLACES]
    if os.path.isabs(environ.get("CONDA_EXE", "")):
        folders.append(os.path.dirname(os.path.dirname(environ["CONDA_EXE"])))
    folders += [root for name in ("CONDA_ROOT", "MAMBA_ROOT_PREFIX") if os.path.isabs(root := environ.get(name, ""))]
    folders += [os.path.join(configuration, "conda"), os.path.join(home, ".conda")]
    for folder in dict.fromkeys(folders):
        yield from (os.path.join(folder, name) for name in _FILES)
    yield os.path.join(home, ".condarc")
    yield os.path.join(home, ".mambarc")
    for name in ("CONDARC", "MAMBARC"):
        if environ.get(name):
            yield _expanded(environ[name], home, environ)


def merge(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """`layers` (name of the file, its document), the least important first, as one document.

    Lists: the more important one's entries first, each once. Maps: key by key. Everything else: the most important.
    Raises BadCondarc where a value has the wrong shape.
    """
    merged: dict[str, Any] = {}
    for file, layer in layers:
        for key, value in layer.items():
            key = _ALIASES.get(key, key)
            if value is None or key not in (*_LISTS, *_MAPS, *_SCALARS):
                continue
            if key in _LISTS:
                entries = [value] if isinstance(value, str) else value
                if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
                    raise BadCondarc(file=file, problem=f"{key} is not a list of words")
                merged[key] = list(dict.fromkeys([*entries, *merged.get(key, [])]))
            elif key in _MAPS:
                if not isinstance(value, dict):
                    raise BadCondarc(file=file, problem=f"{key} is not a table")
                merged[key] = {**merged.get(key, {}), **value}
            else:
                merged[key] = value
    return merged


def read(document: Mapping[str, Any], home: str, environ: Mapping[str, str]) -> Condarc:
    """A merged document as settings: variables and ~ filled in, words for truth understood."""

    def text(value: Any) -> str:
        return _expanded(str(value), home, environ)

    given: dict[str, Any] = {}
    for key in _LISTS:
        if key in document:
            given[key] = tuple(text(value) for value in document[key])
    for key in ("envs_dirs", "pkgs_dirs"):
        given[key] = tuple(filter(os.path.isabs, given.get(key, ())))
    for key in ("custom_channels", "proxy_servers"):
        given[key] = {str(name): text(value) for name, value in document.get(key, {}).items() if value is not None}
    for key in ("custom_multichannels", "mirrored_channels"):
        given[key] = {
            str(name): tuple(map(text, [value] if isinstance(value, str) else value or ()))
            for name, value in document.get(key, {}).items()
        }
    if "channel_alias" in document:
        given["channel_alias"] = text(document["channel_alias"]).rstrip("/")
    given["offline"] = _truth(document.get("offline", False)) is True
    verify = _truth(document.get("ssl_verify", True))
    given["ssl_verify"] = True if verify == "truststore" else text(verify) if isinstance(verify, str) else verify
    given["add_pip_as_python_dependency"] = _truth(document.get("add_pip_as_python_dependency", True)) is not False
    for key in _SECONDS:
        if isinstance(document.get(key), (int, float)):
            given[key] = float(document[key])
    priority = _truth(document.get("channel_priority", "flexible"))
    if isinstance(priority, bool):
        priority = "flexible" if priority else "disabled"
    given["channel_priority"] = priority.lower()
    return Condarc(**given)


def _truth(value: Any) -> bool | str:
    if isinstance(value, str):
        return {"true": True, "yes": True, "on": True, "1": True}.get(
            value.lower(), False if value.lower() in ("false", "no", "off", "0") else value
        )
    return bool(value)


def _expanded(text: str, home: str, environ: Mapping[str, str]) -> str:
    text = re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda found: environ.get(found[1] or found[2], found[0]), text)
    return home + text[1:] if text == "~" or text.startswith("~/") else text


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in (*_LISTS, *_SCALARS):
        value = environ.get(f"CONDA_{key.upper()}")
        if value:
            separator = os.pathsep if key.endswith("_dirs") else "&" if "packages" in key else ","
            found[key] = value.split(separator) if key in _LISTS else value
    for variable, key in _VARIABLES.items():
        if environ.get(variable):
            found.setdefault(key, environ[variable].split(os.pathsep if key == "envs_dirs" else ","))
    return found


def _file(path: Path) -> dict[str, Any] | None:
    try:
        with path.open(encoding="utf-8") as file:
            document = yaml.safe_load(file.read(_LARGEST))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        # conda skips a file that it may not read, too.
        return None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        line = f"line {where.line + 1}: " if where is not None else ""
        raise BadCondarc(file=str(path), problem=mask(f"{line}{reason}".replace("\n", " "))) from None
    if document is None:
        return None
    if not isinstance(document, dict):
        raise BadCondarc(file=str(path), problem="it is not a table of settings")
    return {str(key): value for key, value in document.items()}
