"""Durations, counts with their nouns, and lists of names, as commands and pages show them. Pure."""

from collections.abc import Sequence

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
