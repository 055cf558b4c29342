"""Expands ranges and alternatives in a URL: `{000..999}`, `{0..100..10}`, `{a..z}`, `{jpg,png}`. Pure."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence

from fetchfleet.worker.local.lists.rows import BadRow

MAX_EXPANDED = 10_000_000
"""The most URLs that one line may stand for."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(-?[0-9]{1,15})\.\.(-?[0-9]{1,15})(?:\.\.([0-9]{1,15}))?")
_LETTERS = re.compile(r"([a-z])\.\.([a-z])(?:\.\.([0-9]{1,15}))?|([A-Z])\.\.([A-Z])(?:\.\.([0-9]{1,15}))?")


def expanded(text: str) -> Iterator[str]:
    """Yield the URLs that a line stands for, in order; a BadRow if a pattern is invalid.

    The last pattern changes first, as in shells. JSON, and a URL without braces, stay as they are.
    """
    if text.startswith("{") or ("{" not in text and "}" not in text):
        yield text
        return
    literals = _BRACES.split(text)
    try:
        values = alternatives(literals)
    except ValueError as error:
        yield BadRow(text, f"url: {error}")
        return
    for chosen in itertools.product(*values):
        parts = list(literals)
        parts[1::2] = chosen
        yield "".join(parts)


def alternatives(literals: Sequence[str]) -> list[Sequence[str]]:
    """Return the texts of each pattern, which is every second one of the literals. Raises ValueError."""
    if any("{" in literal or "}" in literal for literal in literals[::2]):
        raise ValueError("a brace has no counterpart, or braces are nested; percent-encode a literal one")
    values = [values_of(pattern) for pattern in literals[1::2]]
    number = math.prod(map(len, values))
    if number > MAX_EXPANDED:
        raise ValueError(f"stands for {number:,} URLs; the limit is {MAX_EXPANDED:,} a line")
    return values


def values_of(pattern: str) -> Sequence[str]:
    """Return the texts that the inner part of a pair of braces stands for. Raises ValueError."""
    if found := _NUMBERS.fullmatch(pattern):
        first, last = found[1], found[2]
        digits = [text.removeprefix("-") for text in (first, last)]
        padded = any(len(text) > 1 and text.startswith("0") for text in digits)
        width = max(map(len, digits)) if padded else 0
        return [_padded(number, width) for number in steps(int(first), int(last), found[3])]
    if found := _LETTERS.fullmatch(pattern):
        first, last, step = found.groups()[:3] if found[1] else found.groups()[3:]
        return [chr(number) for number in steps(ord(first), ord(last), step)]
    if "," not in pattern:
        raise ValueError(
            f"{{{pattern[:40]}}} is not a pattern; write {{0..9}}, {{000..100..10}}, {{a..z}} or {{a,b}},"
            " or leave out --expand"
        )
    return pattern.split(",")


def steps(first: int, last: int, step: str | None) -> range:
    """Return the numbers from the first to the last one, up or down. Raises ValueError."""
    size = int(step or 1)
    if not size:
        raise ValueError("the step of a range is 0")
    if abs(last - first) // size >= MAX_EXPANDED:
        raise ValueError(f"a range has more than {MAX_EXPANDED:,} numbers")
    return range(first, last + 1, size) if first <= last else range(first, last - 1, -size)


def _padded(number: int, width: int) -> str:
    return f"{'-' if number < 0 else ''}{abs(number):0{width}d}"
