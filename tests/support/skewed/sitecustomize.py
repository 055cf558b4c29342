"""Shift the wall clock of a process with this folder on PYTHONPATH by FETCHFLEET_TEST_SKEW_S seconds.

The monotonic clock is unchanged.
"""

import datetime as dt
import os
import time
from datetime import datetime, tzinfo
from typing import Any

SKEW_S = float(os.environ.get("FETCHFLEET_TEST_SKEW_S", "0"))

_time_s, _time_ns = time.time, time.time_ns


class _AnyDatetime(type):
    """Treats every datetime as an instance of Skewed."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class Skewed(datetime, metaclass=_AnyDatetime):
    """A datetime class whose `now` uses the skewed clock."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        """Return the time of the skewed clock."""
        return datetime.fromtimestamp(time.time(), tz)


if SKEW_S:
    time.time = lambda: _time_s() + SKEW_S
    time.time_ns = lambda: _time_ns() + int(SKEW_S * 1e9)
    dt.datetime = Skewed  # type: ignore[misc]
