"""Rate-limits the log lines of lasting conditions, and decides when a trouble is over. Pure."""

from collections.abc import Hashable
from typing import NamedTuple

EVERY_S = 60.0
"""A condition that lasts is logged at once, then at this interval."""

MAX_CONDITIONS = 4096
"""The maximum number of conditions in EVERY_S. Further ones count as one, which bounds memory and lines."""

BEYOND = "beyond"
"""The condition that stands for those beyond MAX_CONDITIONS."""

RECOVERY_S = 3.0
"""The time without a failure after which a trouble is over."""
MAX_RECOVERY_S = 60.0
"""The maximum of that time, for troubles that recur."""


class Repeats:
    """The lasting conditions of one component, such as the errors of its calls."""

    def __init__(self) -> None:
        self._logged: dict[Hashable, tuple[float, int]] = {}
        """The time of the last line and the reports omitted since, by condition. Oldest line first."""

    def admit(self, condition: Hashable, now_s: float) -> int | None:
        """Decide whether to log a report of the condition.

        Return the number of reports left out since its last line, or None to leave out this one.
        """
        if condition not in self._logged and len(self._logged) >= MAX_CONDITIONS:
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
        """End all conditions: the next report of each is logged at once."""
        self._logged.clear()


class EndedTrouble(NamedTuple):
    """A trouble that is over."""

    lasted_s: float
    """The time from the first failure to the first success after the last one."""
    failed: int
    """The number of failures."""


class Trouble:
    """Groups failures into troubles. A trouble is over after recovery_s without a failure.

    recovery_s doubles, up to MAX_RECOVERY_S, with each trouble after the second in a row. Troubles are in a
    row if each begins within MAX_RECOVERY_S after the end of the one before.
    """

    def __init__(self, recovery_s: float = RECOVERY_S) -> None:
        self._began_s: float | None = None
        """The first failure of the trouble; None without a trouble."""
        self._succeeded_s: float | None = None
        """The first success since the last failure."""
        self._ended_s: float | None = None
        """The end of the previous trouble."""
        self._failed = 0
        self._min_recovery_s = self._recovery_s = recovery_s
        self._in_a_row = 0

    def failed(self, now_s: float) -> None:
        """Count a failure. It begins a trouble unless it is part of one."""
        if self._began_s is None:
            recurs = self._ended_s is not None and now_s - self._ended_s < MAX_RECOVERY_S
            self._in_a_row = self._in_a_row + 1 if recurs else 1
            doublings = min(max(0, self._in_a_row - 2), 10)
            self._recovery_s = min(self._min_recovery_s * 2**doublings, MAX_RECOVERY_S)
            self._began_s, self._failed = now_s, 0
        self._failed += 1
        self._succeeded_s = None

    def succeeded(self, now_s: float) -> EndedTrouble | None:
        """Note a success. Return the trouble if it is over now, else None."""
        if self._began_s is None:
            return None
        if self._succeeded_s is None:
            self._succeeded_s = now_s
        if now_s - self._succeeded_s < self._recovery_s:
            return None
        ended = EndedTrouble(self._succeeded_s - self._began_s, self._failed)
        self._began_s, self._ended_s = None, now_s
        return ended
