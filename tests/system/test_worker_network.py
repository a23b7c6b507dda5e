"""Channels over HTTP: secrets that travel and are never seen, and servers that refuse or fall silent."""

from __future__ import annotations

import base64
import http.server
import os
import threading
import time
from pathlib import Path
from typing import Any

from sksd.conda.messages import Done
from tests import channel
from tests.system.worker import WorkerCase

BASE = "sksd-test-base"
TOKEN, PASSWORD = "tk-5ecret", "pa:ss/w0rd"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that was killed."""


class _Channel(http.server.SimpleHTTPRequestHandler):
    """The channel under /open/x, with a token under /t/TOKEN/x, with a password under /auth/x; /silent never ends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(channel.channel()))

    def do_GET(self) -> None:
        """Look at the path and the rights."""
        basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        for start, allowed in (
            ("/open/x", True),
            (f"/t/{TOKEN}/x", True),
            ("/auth/x", self.headers.get("Authorization") == f"Basic {basic}"),
        ):
            if self.path.startswith(start) and allowed:
                self.path = self.path[len(start) :]
                return super().do_GET()
        if self.path.startswith("/silent"):
            self.server.silent.wait(60)  # type: ignore[attr-defined]
        self.send_error(401 if self.path.startswith("/auth") else 403)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Not into the test's output."""


class Network(WorkerCase):
    """A server of our own."""

    def setUp(self) -> None:
        super().setUp()
        channel.channel()
        server = _Server(("127.0.0.1", 0), _Channel)
        server.silent = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.addCleanup(server.silent.set)  # type: ignore[attr-defined]
        self.at = f"127.0.0.1:{server.server_address[1]}"
        self.environ["RATTLER_CACHE_DIR"] = str(self.top / "cache")

    def seen(self) -> bytes:
        """Everything that was written anywhere in the home, and in the cache."""
        files = (path for path in (*self.home.rglob("*"), *self.top.glob("cache/**/*")) if path.is_file())
        return b"".join(path.read_bytes() for path in files).replace((self.home / ".condarc").read_bytes(), b"")

    def test_a_token_and_a_password(self) -> None:
        quoted = PASSWORD.replace(":", "%3A").replace("/", "%2F")
        urls = {"one": f"http://{self.at}/t/{TOKEN}/x", "two": f"http://me:{quoted}@{self.at}/auth/x"}
        for name, url in urls.items():
            self.condarc(channels=[url])
            worker = self.done("create", name, specs=[BASE])
            self.done("add", name, specs=["sksd-test-app"])
            events = repr(worker.events)
            for secret in (TOKEN, PASSWORD, quoted):
                self.assertNotIn(secret, events)
                self.assertNotIn(secret.encode(), self.seen())
            for format in ("explicit", "lock", "environment.yml"):
                done = self.done("export", name, format=format).events[-1]
                assert isinstance(done, Done)
                self.assertNotIn(TOKEN, done.text or "")
                self.assertNotIn(quoted, done.text or "")

    def test_refused(self) -> None:
        for path in ("/t/wrong/x", "/closed", "/auth/x"):
            error = self.fails("create", "one", specs=[BASE], channels=[f"http://{self.at}{path}"])
            self.assertEqual(error.code, "channel-refused", error.message)
            self.assertNotIn("wrong", error.message)

    def test_silent(self) -> None:
        self.condarc(channels=[f"http://{self.at}/silent"], remote_read_timeout_secs=3)
        before = time.monotonic()
        worker = self.run_job("create", "one", specs=[BASE])
        self.assertEqual(getattr(worker.events[-1], "code", ""), "channel-unreachable", worker.events[-1])
        self.assertLess(time.monotonic() - before, 20)

    def test_downloads_are_told_of(self) -> None:
        self.condarc(channels=[f"http://{self.at}/open/x"])
        worker = self.done("create", "one", specs=["sksd-test-many"])
        self.assertGreater(worker.plan.download_bytes, 10000)
        self.assertIn("downloading", worker.steps)
        again = self.done("create", "two", specs=["sksd-test-many"])
        self.assertEqual(again.plan.download_bytes, 0)
        # From the cache alone.
        self.done("create", "three", specs=["sksd-test-many"], offline=True)
        error = self.fails("create", "four", specs=[BASE], offline=True)
        self.assertEqual(error.code, "not-cached", error.message)

    def test_the_package_cache_of_the_person(self) -> None:
        folder = self.top / "pkgs"
        folder.mkdir()
        self.condarc(channels=[f"http://{self.at}/open/x"], pkgs_dirs=["/dev/null/pkgs", str(folder)])
        self.done("create", "one", specs=[BASE])
        self.assertTrue(list(folder.glob(f"{BASE}-*")), os.listdir(folder))
        self.assertFalse(Path(self.top / "cache" / "pkgs").exists())
