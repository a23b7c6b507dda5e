"""What of .condarc becomes which channel, and which secrets go where."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from sksd.conda import channels, condarc, places
from sksd.conda.condarc import Condarc
from sksd.conda.messages import HostSettings
from sksd.conda.secrets import mask
from sksd.errors import BadCondarc, BadName, ChannelNotAllowed, EnvironmentFrozen, NotAnEnvironment

HOME = "/home/ada"


def settings(*layers: dict[str, object], **environ: str) -> Condarc:
    """Layers, the least important first, as settings."""
    return condarc.read(condarc.merge([(f"file{n}", layer) for n, layer in enumerate(layers)]), HOME, environ)


class Merging(unittest.SynchronousTestCase):
    """conda's rules."""

    def test_lists_maps_and_the_rest(self) -> None:
        found = settings(
            {"channels": ["defaults"], "custom_channels": {"a": "x", "b": "y"}, "ssl_verify": True, "offline": "yes"},
            {"channels": ["conda-forge", "defaults"], "custom_channels": {"a": "z"}, "ssl_verify": "~/ca.pem"},
        )
        self.assertEqual(found.channels, ("conda-forge", "defaults"))
        self.assertEqual(found.custom_channels, {"a": "z", "b": "y"})
        self.assertEqual(found.ssl_verify, f"{HOME}/ca.pem")
        self.assertTrue(found.offline)

    def test_words_for_truth_and_priority(self) -> None:
        for value, expected in ((True, "flexible"), (False, "disabled"), ("strict", "strict"), ("FALSE", "disabled")):
            self.assertEqual(settings({"channel_priority": value}).channel_priority, expected)
        self.assertIs(settings({"ssl_verify": "false"}).ssl_verify, False)
        self.assertIs(settings({"ssl_verify": "truststore"}).ssl_verify, True)

    def test_variables_and_homes(self) -> None:
        found = settings({"envs_dirs": ["~/envs", "$BIG/envs", "${BIG}/e", "relative"]}, BIG="/big")
        self.assertEqual(found.envs_dirs, (f"{HOME}/envs", "/big/envs", "/big/e"))

    def test_wrong_shapes_name_the_file(self) -> None:
        for layer in ({"channels": {"a": "b"}}, {"custom_channels": ["a"]}, {"channels": [1]}):
            error = self.assertRaises(BadCondarc, settings, {}, layer)
            self.assertIn("file1", str(error))

    def test_the_files_and_their_order(self) -> None:
        with tempfile.TemporaryDirectory() as home:
            for path, channel in (
                (".condarc", "user"),
                (".conda/condarc.d/b.yml", "folder"),
                (".config/conda/.condarc", "xdg"),
                ("given", "variable"),
            ):
                file = Path(home, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"channels: [{channel}]\n")
            environ = {"CONDARC": f"{home}/given", "CONDA_CHANNELS": "environ,user"}
            found = condarc.load(home, environ)
            expected = ["environ", "user", "variable", "folder", "xdg"]
            self.assertEqual([channel for channel in found.channels if channel in expected], expected)
            Path(home, ".condarc").write_text("channels:\n  - [\n")
            self.assertIn("line", str(self.assertRaises(BadCondarc, condarc.load, home, {})))


class Channels(unittest.SynchronousTestCase):
    """Names become URLs."""

    def urls(self, *names: str, **given: object) -> list[str]:
        """Of `names` with these settings."""
        return [place.url for place in channels.resolve(names, settings(given))]

    def test_names(self) -> None:
        self.assertEqual(self.urls("conda-forge"), ["https://conda.anaconda.org/conda-forge"])
        self.assertEqual(self.urls("cf/label/dev", channel_alias="https://m/c/"), ["https://m/c/cf/label/dev"])
        self.assertEqual(self.urls("/srv/channel"), ["file:///srv/channel"])
        self.assertEqual(self.urls("https://x.org/y/linux-64/"), ["https://x.org/y"])
        self.assertEqual(len(self.urls("defaults")), 2)
        self.assertEqual(self.urls("defaults", default_channels=["http://d/main"]), ["http://d/main"])
        self.assertEqual(self.urls("mine/sub", custom_channels={"mine": "https://h"}), ["https://h/mine/sub"])
        self.assertEqual(self.urls("all", custom_multichannels={"all": ["a", "http://b"]})[1], "http://b")

    def test_mirrors(self) -> None:
        given = settings({"mirrored_channels": {"conda-forge": ["https://one/cf", "https://two/t/SECRET/cf"]}})
        (place,) = channels.resolve(["conda-forge"], given)
        self.assertEqual(place.url, "https://one/cf")
        self.assertEqual(place.mirrors, ("https://one/cf", "https://two/t/SECRET/cf"))

    def test_secrets_are_not_in_the_url(self) -> None:
        urls = ["https://h/t/TOKEN/c", "https://me:p%40ss@h/c2", "https://conda.anaconda.org/mine"]
        with_token, with_password, by_client = channels.resolve(urls, Condarc(), {"api.anaconda.org": "CLIENT"})
        self.assertEqual((with_token.url, with_token.mirrors), ("https://h/c", ("https://h/t/TOKEN/c",)))
        self.assertEqual(with_password.url, "https://h/c2")
        self.assertEqual((with_password.user, with_password.password), ("me", "p@ss"))
        self.assertEqual(by_client.mirrors, ("https://conda.anaconda.org/t/CLIENT/mine",))
        self.assertEqual(by_client.name, "mine")

    def test_who_decides(self) -> None:
        own = Condarc(channels=["mine"])
        self.assertEqual(channels.chosen([], [], own, HostSettings()), ["mine"])
        self.assertEqual(channels.chosen([], ["file"], own, HostSettings()), ["file", "mine"])
        self.assertEqual(channels.chosen(["job"], ["file"], own, HostSettings()), ["job"])
        self.assertEqual(channels.chosen(["job"], [], own, HostSettings(channels=["host"])), ["host"])
        self.assertEqual(channels.chosen([], [], Condarc(), HostSettings()), ["conda-forge"])
        self.assertRaises(ChannelNotAllowed, channels.chosen, ["a"], [], own, HostSettings(allow_channels=["b"]))
        self.assertEqual(
            channels.chosen(["https://conda.anaconda.org/b/"], [], own, HostSettings(allow_channels=["b"])),
            ["https://conda.anaconda.org/b/"],
        )

    @given(st.from_regex(r"[A-Za-z0-9~!$&'()*+,;=._-]{6,30}", fullmatch=True))
    def test_no_secret_is_told(self, secret: str) -> None:
        # A & ends a value, so that in one it is always written otherwise.
        query = secret.replace("&", "%26")
        for text in (f"x https://h/t/{secret}/c y", f"https://me:{secret}@h/c", f"http://h/c?token={query}&a=b"):
            self.assertNotIn(secret, mask(text))
            self.assertNotIn(query, mask(text))


class Places(unittest.SynchronousTestCase):
    """Where environments go."""

    def test_names(self) -> None:
        for name in ("", " ", "a b", "a/b", "base", "-p", ".x", "a:b", "a#b", "x" * 300, "a\nb"):
            self.assertRaises(BadName, places.new, "", name, ["/tmp"])
        for prefix in ("/", "/tmp/../etc", "/tmp/" + "x" * 250):
            self.assertRaises(BadName, places.new, prefix, "", [])
        self.assertEqual(places.new("", "größe", ["/dev/null/x", "/tmp"]), os.path.realpath("/tmp") + "/größe")

    def test_frozen_and_foreign(self) -> None:
        with tempfile.TemporaryDirectory() as prefix:
            self.assertRaises(NotAnEnvironment, places.existing, prefix, "", [])
            meta = Path(prefix, "conda-meta")
            meta.mkdir()
            (meta / "history").touch()
            self.assertEqual(places.existing(prefix, "", []), os.path.realpath(prefix))
            for text in ("", "{}", '{"message": "no"}', "not json"):
                (meta / "frozen").write_text(text)
                self.assertRaises(EnvironmentFrozen, places.refuse_changing, prefix, "x")
