"""The requirements of a fetch or a policy for responses, and the checks of their values. Pure.

The worker compares responses with them in worker/fetch/rules/accept.py.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from fetchfleet.jobs.contract.checks.field_checks import MAX_BYTES
from fetchfleet.jobs.errors import InvalidFetchError

MAX_LISTED = 100
"""Longest list of media ranges or statuses."""

ANY_TYPE = "*/*"

# A media range (RFC 9110 §12.5.1) without parameters, of restricted names (RFC 6838 §4.2).
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_RANGE = re.compile(rf"\*/\*|{_NAME}/(?:\*|{_NAME})")


class XRobots(StrEnum):
    """The treatment of a response whose X-Robots-Tag forbids its use."""

    IGNORE = "ignore"
    """Store its body."""
    OBEY = "obey"
    """Refuse it; the fetch fails with `x_robots_refused`."""


_X_ROBOTS = tuple(XRobots)


class Accept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The responses whose body is stored.

    Values are checked and put into canonical form. Raises InvalidFetchError, which names the field and the
    error.
    """

    types: tuple[str, ...] = ()
    """Media ranges such as "image/*" and "text/html", one of which Content-Type must match; if empty, any."""
    min_bytes: int = 0
    """Smallest body in bytes; a smaller one fails with `too_small`."""
    max_bytes: int = 0
    """Largest body in bytes, 0 for no limit; a larger one fails with `too_large`."""
    statuses: tuple[int, ...] = ()
    """Statuses whose body is stored, of 2xx, 4xx and 5xx but 429; if empty, every 2xx."""

    def __post_init__(self) -> None:
        """Check every value; put media ranges into lower case."""
        for media_range in listed("accept.types", self.types):
            if not isinstance(media_range, str) or not _MEDIA_RANGE.fullmatch(media_range):
                raise InvalidFetchError(
                    f"accept.types: {media_range!r} is not a media range such as image/* or text/html,"
                    " without parameters"
                )
        msgspec.structs.force_setattr(self, "types", tuple(map(str.lower, self.types)))
        for name, value in (("min_bytes", self.min_bytes), ("max_bytes", self.max_bytes)):
            if type(value) is not int or not 0 <= value <= MAX_BYTES:
                raise InvalidFetchError(f"accept.{name}: must be 0 to {MAX_BYTES}, got {value!r}")
        if 0 < self.max_bytes < self.min_bytes:
            raise InvalidFetchError(
                f"accept.min_bytes: must be at most accept.max_bytes, {self.max_bytes}, got {self.min_bytes}"
            )
        msgspec.structs.force_setattr(self, "statuses", statuses("accept.statuses", self.statuses))
        if 429 in self.statuses:
            raise InvalidFetchError(
                "accept.statuses: 429 asks to back off, so its body is never stored; leave it out"
            )

    def fits(self, size_bytes: int) -> bool:
        """Return whether a body may have this size."""
        return self.min_bytes <= size_bytes and (not self.max_bytes or size_bytes <= self.max_bytes)


def listed(field: str, value: Sequence[object]) -> Sequence[object]:
    """Require a list or tuple of at most MAX_LISTED elements. Raises InvalidFetchError."""
    if not isinstance(value, list | tuple):
        raise InvalidFetchError(f"{field}: must be a list, got {type(value).__name__}")
    if len(value) > MAX_LISTED:
        raise InvalidFetchError(f"{field}: has {len(value)} elements; the limit is {MAX_LISTED}")
    return value


def statuses(field: str, value: Sequence[int]) -> tuple[int, ...]:
    """Return the list of statuses as a tuple; require 2xx, 4xx and 5xx. Raises InvalidFetchError.

    3xx are refused: redirects are followed, and a 304 answers a conditional request.
    """
    for status in listed(field, value):
        if not isinstance(status, int) or not (200 <= status <= 299 or 400 <= status <= 599):
            raise InvalidFetchError(f"{field}: must be of 200 to 299 and 400 to 599, got {status!r}")
    return tuple(value)


def x_robots(value: str) -> None:
    """Require a value of XRobots. Raises InvalidFetchError."""
    if value not in _X_ROBOTS:
        raise InvalidFetchError(f"x_robots: {value!r} is not one of {', '.join(XRobots)}")
