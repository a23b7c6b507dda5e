"""rattler, set up as the person's settings say: channels, secrets, network, package cache."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import rattler

from sksd.conda import channels, condarc, places
from sksd.conda.condarc import Condarc
from sksd.conda.messages import HostSettings, Job
from sksd.errors import ChannelUnreachable
from sksd.paths import home

#: Seconds that one request may take in all, and how often a failed one is made again. That nothing comes any more is
#: noticed much earlier (`sksd.conda.watch`).
_TIMEOUT: Final = 3600
_RETRIES: Final = 2
#: Seconds to connect to a channel.
_CONNECT: Final = 10.0


class Sources:
    """Where packages come from in one job. Made once a job; the network is not touched before `reach`."""

    def __init__(self, job: Job, environ: Mapping[str, str], file_channels: Sequence[str] = ()) -> None:
        self._home = str(home())
        self._environ = environ
        settings = condarc.load(self._home, environ)
        self.host: HostSettings = job.host
        self.offline = job.offline or job.host.offline or settings.offline
        self.settings: Condarc = replace(settings, pkgs_dirs=(*job.host.pkgs_dirs, *settings.pkgs_dirs))
        self._asked = job.channels
        self.folders = places.folders(self.settings, job.host, self._home)
        self.cache = self._cache()
        self.use(file_channels)

    def use(self, file_channels: Sequence[str]) -> None:
        """Take the channels of an imported file into account. Raises ChannelNotAllowed."""
        self.names = channels.chosen(self._asked, file_channels, self.settings, self.host)
        tokens = channels.tokens(self._home, self._environ)
        self.places = channels.resolve(self.names, self.settings, tokens)
        self._client: rattler.Client | None = None
        self._gateway: rattler.Gateway | None = None

    def place(self, name: str) -> channels.Place:
        """One channel of a spec or a URL, such as that of `conda-forge::numpy`. Raises ChannelNotAllowed."""
        channels.check([name], self.settings, self.host)
        tokens = channels.tokens(self._home, self._environ)
        found = channels.resolve([name], self.settings, tokens)[0]
        if found.url not in (each.url for each in self.places):
            self.places.append(found)
            self._client = self._gateway = None
        return found

    def written(self, url: str) -> str:
        """A channel's URL as conda writes it in a history."""
        return channels.written(url, self.settings)

    @property
    def channels(self) -> list[rattler.Channel]:
        """For a solve, in order."""
        return [rattler.Channel(place.url) for place in self.places]

    @property
    def urls(self) -> str:
        """The remote ones, for a sentence."""
        return ", ".join(place.url for place in self.places if place.remote) or "the channel"

    @property
    def priority(self) -> rattler.ChannelPriority:
        """As .condarc has it."""
        kinds = {"strict": rattler.ChannelPriority.Strict, "disabled": rattler.ChannelPriority.Disabled}
        return kinds.get(self.settings.channel_priority, rattler.ChannelPriority.Flexible)

    @property
    def client(self) -> rattler.Client:
        """For downloads."""
        if self._client is None:
            config = rattler.Config.from_toml(self._configuration())
            self._client = rattler.Client.from_config(
                config, max_retries=_RETRIES, timeout=_TIMEOUT, user_agent="sksd (py-rattler)"
            )
        return self._client

    @property
    def gateway(self) -> rattler.Gateway:
        """For package lists."""
        if self._gateway is None:
            self._gateway = rattler.Gateway(
                cache_dir=self.cache.with_name("repodata"),
                client=self.client,
                default_config=rattler.SourceConfig(
                    cache_action="force-cache-only" if self.offline else "cache-or-fetch"
                ),
            )
        return self._gateway

    async def reach(self) -> None:
        """Connect to every channel once, so that a dead network is told of in seconds. Raises ChannelUnreachable."""
        if self.offline:
            return
        ends = {_end(self._proxy(place.url) or place.url): place for place in self.places if place.remote}
        await asyncio.gather(*(_connect(end, place) for end, place in ends.items() if end[0]))

    def _proxy(self, url: str) -> str:
        parts = urlsplit(url)
        for key in (f"{parts.scheme}://{parts.hostname}", parts.scheme, "all"):
            if found := self.settings.proxy_servers.get(key):
                return found
        if parts.hostname in self._environ.get("no_proxy", self._environ.get("NO_PROXY", "")).split(","):
            return ""
        names = (f"{parts.scheme}_proxy", f"{parts.scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
        return next((value for name in names if (value := self._environ.get(name))), "")

    def _configuration(self) -> str:
        """rattler's own configuration: JSON's strings are TOML's, too."""
        lines = []
        verify = self.settings.ssl_verify
        if verify is False:
            lines.append("tls-no-verify = true")
        elif isinstance(verify, str):
            # What rustls-native-certs reads in place of the system's certificates.
            os.environ["SSL_CERT_FILE"] = verify
            lines.append('tls-root-certs = "system"')
        if credentials := self._credentials():
            lines.append(f"authentication-override-file = {json.dumps(credentials)}")
        for scheme, proxy in self.settings.proxy_servers.items():
            if scheme in ("http", "https"):
                os.environ.setdefault(f"{scheme}_proxy", proxy)
        mirrored = {place.url: place.mirrors for place in self.places if place.mirrors}
        if mirrored:
            lines.append("[mirrors]")
            lines += [f"{json.dumps(url)} = {json.dumps(list(mirrors))}" for url, mirrors in mirrored.items()]
        return "\n".join(lines)

    def _credentials(self) -> str:
        """A file, in memory alone, with the passwords of the channels' URLs beside the person's own credentials."""
        own: dict[str, Any] = {}
        given = {
            urlsplit(place.url).hostname or "": {"BasicHTTP": {"username": place.user, "password": place.password}}
            for place in self.places
            if place.user
        }
        if not given:
            return ""
        try:
            own = json.loads(Path(self._home, ".rattler", "credentials.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            own = {}
        self._memory = os.memfd_create("credentials")
        os.write(self._memory, json.dumps({**own, **given}).encode())
        return f"/proc/self/fd/{self._memory}"

    def _cache(self) -> Path:
        for folder in self.settings.pkgs_dirs:
            if os.access(folder, os.W_OK | os.X_OK):
                return Path(folder)
        own = self._environ.get("RATTLER_CACHE_DIR")
        caches = self._environ.get("XDG_CACHE_HOME") or os.path.join(self._home, ".cache")
        return Path(own) / "pkgs" if own else Path(caches, "rattler", "cache", "pkgs")


def _end(url: str) -> tuple[str, int]:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https"):
        return "", 0
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


async def _connect(end: tuple[str, int], place: channels.Place) -> None:
    try:
        async with asyncio.timeout(_CONNECT):
            _, writer = await asyncio.open_connection(*end)
        writer.close()
    except OSError as error:
        reason = error.strerror or f"no answer within {_CONNECT:.0f} s"
        # asyncio puts the address, as (host, port), into the sentence.
        reason = re.sub(r"^\[Errno -?\d+\] |Connect call failed.*", "", reason) or "connection refused"
        raise ChannelUnreachable(url=place.url, problem=reason) from None
