"""Conditions that last: how often a log line repeats them, and when one of them is over. Pure."""

from collections.abc import Hashable
from typing import NamedTuple

EVERY_S = 60.0
"""A condition that lasts is logged at once, then once in this time."""

MOST_CONDITIONS = 4096
"""The conditions distinguished in EVERY_S; those beyond count as one, which bounds memory and lines."""

BEYOND = "beyond"

RECOVERY_S = 3.0
MAX_RECOVERY_S = 60.0


class Repeats:
    """The conditions that one component logs, such as the error of a call or the host of a lane."""

    def __init__(self) -> None:
        self._logged: dict[Hashable, tuple[float, int]] = {}
        """When the last line of each condition was written, oldest first, and the reports left out since."""

    def admit(self, condition: Hashable, now_s: float) -> int | None:
        """Return how many were left out since the condition's last line; None to leave out this one."""
        if condition not in self._logged and len(self._logged) >= MOST_CONDITIONS:
            oldest = next(iter(self._logged))
            if now_s - self._logged[oldest][0] < EVERY_S:
                condition = BEYOND
            else:
                del self._logged[oldest]
        if condition in self._logged:
            logged_s, left_out = self._logged[condition]
            if now_s - logged_s < EVERY_S:
                self._logged[condition] = (logged_s, left_out + 1)
                return None
            del self._logged[condition]
        else:
            left_out = 0
        self._logged[condition] = (now_s, 0)
        return left_out

    def forget(self) -> None:
        """Log every condition at once when it is reported again: all of them are over."""
        self._logged.clear()


class Ended(NamedTuple):
    """A trouble that is over: from its first failure to the first success after the last one."""

    lasted_s: float
    failed: int
    """The calls that failed."""


class Trouble:
    """Failures of one thing, which count as one trouble until none has come for a while.

    That while is recovery_s. It doubles, up to MAX_RECOVERY_S, with each trouble from the third on that
    begins within MAX_RECOVERY_S of the one before.
    """

    def __init__(self, recovery_s: float = RECOVERY_S) -> None:
        self._began_s: float | None = None
        self._well_s: float | None = None
        """The first success since the last failure."""
        self._ended_s: float | None = None
        self._failed = 0
        self._least_recovery_s = self._recovery_s = recovery_s
        self._in_a_row = 0

    def failed(self, now_s: float) -> None:
        """Count a failure."""
        if self._began_s is None:
            again = self._ended_s is not None and now_s - self._ended_s < MAX_RECOVERY_S
            self._in_a_row = self._in_a_row + 1 if again else 1
            doublings = min(max(0, self._in_a_row - 2), 10)
            self._recovery_s = min(self._least_recovery_s * 2**doublings, MAX_RECOVERY_S)
            self._began_s, self._failed = now_s, 0
        self._failed += 1
        self._well_s = None

    def succeeded(self, now_s: float) -> Ended | None:
        """Note a success; return the trouble if that ends it."""
        if self._began_s is None:
            return None
        if self._well_s is None:
            self._well_s = now_s
        if now_s - self._well_s < self._recovery_s:
            return None
        ended = Ended(self._well_s - self._began_s, self._failed)
        self._began_s, self._ended_s = None, now_s
        return ended
