"""On PYTHONPATH, sets a process's wall clock off by FETCHFLEET_TEST_SKEW_S; its monotonic one stays."""

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
    """A datetime with a skewed present."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        """Return the time of the skewed clock."""
        return datetime.fromtimestamp(time.time(), tz)


if SKEW_S:
    time.time = lambda: _time_s() + SKEW_S
    time.time_ns = lambda: _time_ns() + int(SKEW_S * 1e9)
    dt.datetime = Skewed  # type: ignore[misc]
