"""A front end whose user is asked for input again and again (`python front_asked.py CONNECTION_FILE LINES SECONDS`).

Line N of the engine's output is N; every hundredth is what the user has typed. Says "ready", begins at a line on
stdin, and ends with a report as front.py's.
"""

from __future__ import annotations

import json
import sys
import time

from tests.system.front import Front

ENGINE = """
import time
def talk(lines, seconds):
    began = time.monotonic()
    for number in range(lines):
        print(input(f"{number}?") if number % 100 == 0 else number, flush=True)
        if number % 25 == 0:
            time.sleep(max(0.0, began + seconds * number / lines - time.monotonic()))
"""
#: Seconds without an echo after which the user types again what a relay had not read when it was killed.
AGAIN = 10.0


class Asked(Front):
    """One run."""

    def __init__(self, file: str, lines: int, seconds: float) -> None:
        super().__init__(file, load={"lines": lines, "blobs": 0}, watch=False, ask=False, limit=seconds + 60)
        self.seconds = seconds
        self.typed: list[tuple[str, float]] = []
        self.again = 0
        #: Messages that came twice. Jupyter's own check of signatures drops them.
        self.doubled = 0

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                super()._listen()
            except ValueError as error:
                if "Duplicate Signature" not in str(error):
                    raise
                self.doubled += 1

    def turn(self) -> None:
        """Answer, too."""
        super().turn()
        stdin = self.client.stdin_channel
        while stdin.socket.poll(0):
            number = stdin.get_msg()["content"]["prompt"].rstrip("?")
            if number in (typed for typed, _ in self.typed):
                self.heard.problem(f"asked twice for {number}")
            self.client.input(number)
            self.typed.append((number, time.monotonic()))
        if self.typed:
            number, when = self.typed[-1]
            if self.heard.lines <= int(number) and time.monotonic() - when > AGAIN:
                self.client.input(number)
                self.typed[-1] = (number, time.monotonic())
                self.again += 1

    def run(self) -> None:
        """From the word go to the end."""
        lines = self.load["lines"]
        ids = [self.execute(ENGINE)]
        ids.append(self.client.execute(f"talk({lines}, {self.seconds})", allow_stdin=True, store_history=False))
        ids.append(self.execute("", user_expressions={"kept": "'a variable from before'"}))
        self.until(lambda: self.heard.lines >= lines and all(map(self.finished, ids)), "the end")
        end = time.monotonic() + 1.0
        self.until(lambda: time.monotonic() > end, "nothing more")
        self.check(ids, (lines, 0))


def main() -> None:
    """See the module."""
    front = Asked(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    front.subscribe()
    print("ready", flush=True)
    sys.stdin.readline()
    front.run()
    report = {**front.report(), "typed": len(front.typed), "again": front.again, "doubled": front.doubled}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
