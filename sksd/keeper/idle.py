"""For how long an engine has been of use to nobody, decided from looks at it, now and then."""

from __future__ import annotations

from typing import Final

from attrs import define, frozen

#: Seconds of processor time that a kernel which does nothing takes for each second, at the most; and how far off two
#: measurements may be.
AT_REST: Final = 0.02
OFF: Final = 0.03
#: Seconds between two looks, and how many there are in the time allowed.
LONGEST: Final = 60.0
SHORTEST: Final = 0.2
LOOKS: Final = 8


@frozen
class Look:
    """An engine at one moment. `attached`: a front end is connected. `busy`: it has said so last. `said`: how much it
    has published, ever. `cpu`: seconds of processor time that all in its session has taken."""

    attached: bool
    busy: bool
    said: int
    cpu: float


@define
class Unused:
    """One engine, since it was first looked at. It counts as used between two looks in which it was attached or busy,
    has said something, or has computed, be it in a thread or a process of its own."""

    _since: float | None = None
    _at: float = 0.0
    _last: Look | None = None

    def look(self, now: float, look: Look) -> float:
        """Seconds for which it has not been used. Called every `pause` seconds."""
        last, allowed = self._last, AT_REST * (now - self._at) + OFF
        worked = last is not None and (look.said != last.said or look.cpu - last.cpu > allowed)
        if self._since is None or worked or look.attached or look.busy:
            self._since = now
        self._at, self._last = now, look
        return now - self._since


def pause(timeout: float) -> float:
    """Seconds from one look to the next, where `timeout` seconds are allowed."""
    return min(LONGEST, max(SHORTEST, timeout / LOOKS))


def words(seconds: float) -> str:
    """As "2 h", "90 s"."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s"
