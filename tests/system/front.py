"""A front end under load: a program of its own on jupyter_client, which reports what it has seen.

`python front.py CONNECTION_FILE LOAD`, LOAD as JSON: a `Load`'s fields and how to behave. It says "ready" once its
subscription has reached the engine, begins at a line on stdin, and ends with one line of JSON, the report.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

ENGINE = """
import hashlib, os, time
from comm import create_comm
def load(lines, blobs, size, seconds, bursts):
    comm = create_comm(target_name="load")
    began = time.monotonic()
    for burst in range(bursts):
        for number in range(lines * burst // bursts, lines * (burst + 1) // bursts):
            print(number, flush=True)
        for number in range(blobs * burst // bursts, blobs * (burst + 1) // bursts):
            blob = os.urandom(size)
            comm.send({"number": number, "sha256": hashlib.sha256(blob).hexdigest()}, buffers=[blob])
        time.sleep(max(0.0, began + seconds * (burst + 1) / bursts - time.monotonic()))
"""
KEPT = "a variable from before"
#: Seconds between two requests on control, and between two looks at the heartbeat.
ASK, LOOK = 0.25, 0.1
#: Seconds after everything that was expected, in which nothing more may come.
AFTER = 0.5


class Heard:
    """Everything on iopub, checked as it comes: numbers in order, each once; buffers as they were sent."""

    def __init__(self) -> None:
        self.lines = self.blobs = self.bytes = 0
        self.problems: list[str] = []
        self.states: Counter[tuple[str, str]] = Counter()
        self._text = ""

    def problem(self, words: str) -> None:
        """Keep the first ones: one lost line would make thousands."""
        if len(self.problems) < 20:
            self.problems.append(words)

    def message(self, message: dict[str, Any]) -> None:
        """One of iopub."""
        content, kind = message["content"], message["msg_type"]
        if kind == "status":
            self.states[message["parent_header"].get("msg_id", ""), content["execution_state"]] += 1
        elif kind == "stream" and content["name"] == "stdout":
            *lines, self._text = (self._text + content["text"]).split("\n")
            for line in lines:
                if line != str(self.lines):
                    self.problem(f"line {line!r} instead of {self.lines}")
                self.lines = int(line) + 1 if line.isdigit() else self.lines
        elif kind == "comm_msg":
            data, [buffer] = content["data"], message["buffers"]
            if data["number"] != self.blobs:
                self.problem(f"buffer {data['number']} instead of {self.blobs}")
            if hashlib.sha256(buffer).hexdigest() != data["sha256"]:
                self.problem(f"buffer {data['number']} is not what was sent")
            self.blobs = data["number"] + 1
            self.bytes += len(buffer)
        elif kind in ("error", "stream"):
            self.problem(f"{kind}: {content}")


class Front:
    """One run. `load` is what the engine is to say; a watching front end lets another one ask for it."""

    def __init__(self, file: str, *, load: dict[str, Any], watch: bool, ask: bool, limit: float) -> None:
        self.load, self.watch, self.ask, self.limit = load, watch, ask, limit
        self.client = BlockingKernelClient()
        self.client.load_connection_file(file)
        self.client.start_channels()
        self.heard = Heard()
        self.replies: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.looks = self.missed = 0
        self._asked_at = self._looked_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        while not self._over.is_set():
            if self.client.iopub_channel.socket.poll(100):
                self.heard.message(self.client.iopub_channel.get_msg())

    def until(self, done: Any, what: str) -> None:
        """Do what a front end does until `done()`, or the limit is over."""
        end = time.monotonic() + self.limit
        while not done():
            if time.monotonic() > end:
                self.heard.problem(f"not within {self.limit:g} s: {what}")
                return
            self.turn()

    def turn(self) -> None:
        """20 ms of a front end's life."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            self.looks += 1
            self.missed += not (self.client.hb_channel.is_beating() and self.client.is_alive())
        if self.ask and now - self._asked_at >= ASK:
            self._asked_at = now
            request = self.client.session.msg("kernel_info_request")
            self.client.control_channel.send(request)
            self.asked.append(request["header"]["msg_id"])
        for channel in (self.client.shell_channel, self.client.control_channel):
            while channel.socket.poll(0):
                reply = channel.get_msg()
                request_id = reply["parent_header"]["msg_id"]
                if channel is self.client.control_channel:
                    self.answered.append(request_id)
                else:
                    self.replies.setdefault(request_id, []).append(reply["content"])
        time.sleep(0.02)

    def subscribe(self) -> None:
        """Ask until something is heard on iopub that was said after the subscription."""
        self._thread.start()
        last = [0.0]

        def subscribed() -> bool:
            if time.monotonic() - last[0] > 0.5:
                self.client.kernel_info()
                last[0] = time.monotonic()
            return bool(self.heard.states)

        self.until(subscribed, "the subscription reaches the engine")

    def execute(self, code: str, **more: Any) -> str:
        """Ask for it; answers the request's id."""
        return str(self.client.execute(code, allow_stdin=False, store_history=False, **more))

    def finished(self, request: str) -> bool:
        """Reply and idle are there."""
        return request in self.replies and bool(self.heard.states[request, "idle"])

    def run(self) -> None:
        """From the word go to the end."""
        ids = [] if self.watch else [self.execute(f"{ENGINE}\nkept = {KEPT!r}")]
        if not self.watch:
            arguments = ", ".join(f"{name}={value!r}" for name, value in self.load.items())
            ids.append(self.execute(f"load({arguments})"))
            ids.append(self.execute("", user_expressions={"kept": "kept"}))
        wanted = (self.load["lines"], self.load["blobs"])
        self.until(lambda: (self.heard.lines, self.heard.blobs) >= wanted and all(map(self.finished, ids)), "the end")
        self.ask = False
        self.until(lambda: len(self.answered) >= len(self.asked), "the replies on control")
        end = time.monotonic() + AFTER
        self.until(lambda: time.monotonic() > end, "nothing more")
        self.check(ids, wanted)

    def check(self, ids: list[str], wanted: tuple[int, int]) -> None:
        """What can be said only in the end."""
        if (self.heard.lines, self.heard.blobs) != wanted:
            self.heard.problem(f"heard {self.heard.lines} lines, {self.heard.blobs} buffers of {wanted}")
        for name in ids:
            statuses = [reply["status"] for reply in self.replies.get(name, [])]
            states = [self.heard.states[name, state] for state in ("busy", "idle")]
            if statuses != ["ok"] or states != [1, 1]:
                self.heard.problem(f"replies {statuses}, busy and idle {states} to request {ids.index(name)}")
        kept = str(self.replies.get(ids[-1])) if ids else KEPT
        if KEPT not in kept:
            self.heard.problem(f"the engine's variable: {kept}")
        if self.answered != self.asked:
            twice = [name for name, count in Counter(self.answered).items() if count > 1]
            self.heard.problem(f"{len(self.asked)} asked, {len(self.answered)} answered, {len(twice)} twice")

    def report(self) -> dict[str, Any]:
        """For the test."""
        self._over.set()
        self._thread.join()
        self.client.stop_channels()
        heard = self.heard
        return {
            "problems": heard.problems, "lines": heard.lines, "blobs": heard.blobs, "bytes": heard.bytes,
            "asked": len(self.asked), "looks": self.looks, "missed": self.missed,
        }  # fmt: skip


def main() -> None:
    """See the module."""
    front = Front(sys.argv[1], **json.loads(sys.argv[2]))
    front.subscribe()
    print("ready", flush=True)
    sys.stdin.readline()
    front.looks = front.missed = 0
    front.run()
    print(json.dumps(front.report()), flush=True)


if __name__ == "__main__":
    main()
