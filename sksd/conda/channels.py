"""Which URLs a channel's name stands for, as conda resolves it, and how the secrets in them travel.

Pure. A channel's `url` carries no secret: it is what ends up in an environment's files. A token or a mirror goes to
rattler as a mirror of that URL, a user's password as an entry of its credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from sksd.conda.condarc import Condarc
from sksd.conda.messages import HostSettings
from sksd.errors import ChannelNotAllowed

#: Where nothing names a channel. Not conda's own: the terms of those are not everybody's.
FALLBACK: Final = ("conda-forge",)


@dataclass(frozen=True)
class Place:
    """One channel. `name`: as conda writes it in a history. `mirrors`: where to fetch from instead of `url`, secrets
    included. `user`, `password`: for HTTP's Basic."""

    url: str
    name: str
    mirrors: tuple[str, ...] = ()
    user: str = ""
    password: str = ""

    @property
    def remote(self) -> bool:
        """Whether it needs the network."""
        return not self.url.startswith("file:")


def chosen(asked: Sequence[str], file: Sequence[str], settings: Condarc, host: HostSettings) -> list[str]:
    """The names of the channels to use: the administrator's, else those of the job, else those of the imported file
    and then the person's own. Raises ChannelNotAllowed."""
    own = [name for name in settings.channels if not (file and "nodefaults" in file and name == "defaults")]
    names = list(host.channels) or list(asked) or [*file, *own]
    names = [name for name in dict.fromkeys(names) if name != "nodefaults"] or list(FALLBACK)
    check(names, settings, host)
    return names


def check(names: Iterable[str], settings: Condarc, host: HostSettings) -> None:
    """Raises ChannelNotAllowed for a channel (a name or a URL) that the administrator does not allow."""
    if not host.allow_channels:
        return
    allowed = {place.url for place in resolve(host.allow_channels, settings)}
    for name in names:
        for place in resolve([name], settings):
            if place.url not in allowed:
                raise ChannelNotAllowed(channel=place.name, allowed=", ".join(host.allow_channels))


def resolve(names: Iterable[str], settings: Condarc, tokens: Mapping[str, str] | None = None) -> list[Place]:
    """The channels that `names` stand for, in order, each once. `tokens`: by host, as anaconda-client keeps them."""
    found: dict[str, Place] = {}
    for name in names:
        for location in _locations(name, settings):
            place = _place(location, settings, tokens or {})
            found.setdefault(place.url, place)
    return list(found.values())


def tokens(home: str, environ: Mapping[str, str]) -> dict[str, str]:
    """anaconda-client's tokens by the host of the API that they are for, as `api.anaconda.org`."""
    data = environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    found = {}
    for path in sorted(Path(data, "binstar").glob("*.token")):
        try:
            host = urlsplit(unquote(path.name.removesuffix(".token"))).hostname
            token = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if host and token:
            found[host] = token
    return found


def written(url: str, settings: Condarc) -> str:
    """A channel's URL as conda writes it in a history: `conda-forge` where it is under the alias."""
    url = url.rstrip("/")
    if url in (each.rstrip("/") for each in settings.default_channels):
        return "defaults"
    for name, base in settings.custom_channels.items():
        if url == f"{_base(base)}/{name}":
            return name
    return url.removeprefix(f"{_base(settings.channel_alias)}/")


def _locations(name: str, settings: Condarc) -> list[str]:
    name = name.rstrip("/") or name
    if settings.mirrored_channels.get(name):
        return [name]
    if name in settings.custom_multichannels:
        return [where for each in settings.custom_multichannels[name] for where in _locations(each, settings)]
    if name == "defaults":
        return [where for each in settings.default_channels for where in _locations(each, settings)]
    return [name]


def _place(location: str, settings: Condarc, tokens: Mapping[str, str]) -> Place:
    mirrors = settings.mirrored_channels.get(location, ())
    if mirrors:
        location = mirrors[0]
    elif "://" not in location:
        location = _url(location, settings)
    place = _open(location, settings, tokens)
    if len(mirrors) > 1:
        place = replace(place, mirrors=(*(place.mirrors or (place.url,)), *mirrors[1:]))
    return place


def _url(name: str, settings: Condarc) -> str:
    if name.startswith(("/", "./", "../")) or name in (".", ".."):
        return f"file://{quote(os.path.abspath(name))}"
    # The longest name first: `a/b` may have a place of its own beside `a`.
    parts = name.split("/")
    for count in range(len(parts), 0, -1):
        base = settings.custom_channels.get("/".join(parts[:count]))
        if base:
            return f"{base.rstrip('/')}/{name}" if "://" in base else f"file://{quote(base.rstrip('/'))}/{name}"
    return f"{settings.channel_alias.rstrip('/')}/{name}"


def _open(location: str, settings: Condarc, tokens: Mapping[str, str]) -> Place:
    """`location` taken apart into the URL and its secrets."""
    parts = urlsplit(location.rstrip("/"))
    path = re.sub(r"/(?:noarch|(?:linux|osx|win|emscripten|wasi|freebsd)-\w+)$", "", parts.path)
    token = re.match(r"/t/([^/]+)(/.*)?$", path)
    bare = parts._replace(
        netloc=parts.netloc.rpartition("@")[2], path=(token.group(2) or "") if token else path, query="", fragment=""
    )
    url = urlunsplit(bare)
    mirrors: tuple[str, ...] = ()
    if token:
        mirrors = (urlunsplit(bare._replace(path=f"/t/{token.group(1)}{bare.path}")),)
    elif parts.hostname and (known := _token(parts.hostname, tokens)):
        mirrors = (urlunsplit(bare._replace(path=f"/t/{known}{bare.path}")),)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Place(url, written(url, settings), mirrors, user, password)


def _token(host: str, tokens: Mapping[str, str]) -> str | None:
    return tokens.get(host) or tokens.get(re.sub(r"^conda\.", "api.", host))


def _base(location: str) -> str:
    parts = urlsplit(location.rstrip("/"))
    path = re.sub(r"^/t/[^/]+", "", parts.path)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path))
