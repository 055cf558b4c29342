"""Durations, times left, counts with nouns, and lists of names, as commands and pages show them. Pure."""

import math
from collections.abc import Iterable, Sequence

NAMES_SHOWN = 3


def age(seconds: float) -> str:
    """Format a duration in the largest unit of which it has two or more."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def count(number: int, one: str, many: str | None = None) -> str:
    """Format a count with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def some(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return separator.join(names[:NAMES_SHOWN]) + more


def time_left_s(
    left: int, rates_per_s: Iterable[float | None], waits_s: Iterable[float | None] = ()
) -> float | None:
    """Return the time until `left` fetches have ended; None if unknown, or above any number.

    The lowest known rate decides, but no fetch ends before its host opens. waits_s: of the closed hosts.
    """
    known = [rate for rate in rates_per_s if rate is not None]
    seconds = left / rate if known and (rate := min(known)) > 0 else math.inf
    if not math.isfinite(seconds):
        return None
    return max([seconds, *(wait_s for wait_s in waits_s if wait_s is not None)]) if left else 0.0
