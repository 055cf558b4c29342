"""Parses Retry-After (RFC 9110 §10.2.3, RFC 6585 §4) in all forms that hosts send. Pure.

RFC 9110 defines whole seconds and HTTP-dates. Hosts also send fractions, ISO 8601 dates, dates in the format
of JavaScript, durations in that of Go (`1m0s`), Unix times, and several values. Waits are rounded up to whole
seconds, so no request is sent before the stated time.
"""

import math
import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

MAX_WAIT_S = 2.0**31
"""Larger numbers of seconds count as this one (RFC 9111 §1.2.2)."""

UNIX_TIME_WITHIN_S = 366 * 86_400.0
"""A number this close to the Unix time of the host is a Unix time. As a wait it would be decades."""

MAX_VALUES = 16
"""Further values of the field are ignored."""

MAX_DATE_CHARS = 100

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
# A comma after the name of a day is part of an HTTP-date.
_SEPARATOR = re.compile("".join(f"(?<!{name})" for name in (*_DAY_NAMES, "day")) + ",", re.IGNORECASE)
_WEEKDAY_FIRST = re.compile("|".join(_DAY_NAMES), re.IGNORECASE)
_SECONDS = re.compile(r"(?=\.?[0-9])([0-9]*)(?:\.([0-9]*))?")
_DURATION = re.compile(r"(?=[0-9])(?:([0-9]+)h)?(?:([0-9]+)m(?!s))?(?:([0-9]+)(?:\.([0-9]+))?(m?)s)?")
_ISO_DATE = re.compile(
    r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})"
    r"(?:[T ]([0-9]{2}):?([0-9]{2})(?::?([0-9]{2})(?:\.([0-9]+))?)?"
    r" ?(?:Z|UTC|GMT|([+-])([0-9]{2}):?([0-9]{2})?)?)?",
    re.IGNORECASE,
)
_SECOND = re.compile(r"(?<=:[0-9]{2}:)([0-9]{2})(?:\.([0-9]+))?")
# GMT+0200 (Central European Summer Time), +02:00
_OFFSET = re.compile(r"(?:GMT|UTC)?([+-][0-9]{2}):?([0-9]{2})(?: *\([^()]*\))?$", re.IGNORECASE)
_NO_ZONE = re.compile(r"([0-9]{4}|[0-9:]{7,8}|-0000)$")


def retry_after_s(value: str | None, date: str | None, now_ms: int) -> float | None:
    """Return the longest wait of the field, in seconds; None if no value is valid and positive.

    value: the lines of the field, joined with commas. date: the Date field of the same response. A date in
    the field is relative to `date`, so the clocks need not agree; without `date` it is relative to now_ms.
    """
    if not value:
        return None
    since = _parse_date(_SEPARATOR.split(date or "")[0].strip()) or _UNIX + timedelta(milliseconds=now_ms)
    waits_s = (_wait_s(part.strip(), since) for part in _SEPARATOR.split(value, MAX_VALUES))
    return min(max(waits_s), MAX_WAIT_S) or None


def _wait_s(text: str, since: datetime) -> float:
    """Return the wait in one value, relative to `since`; 0 if it is in the past or malformed."""
    match = _SECONDS.fullmatch(text)
    if match is not None:
        wait_s = _rounded_up(match[1], match[2])
        unix_s = (since - _UNIX).total_seconds()
        for until_s in (wait_s, wait_s / 1000):
            if abs(until_s - unix_s) <= UNIX_TIME_WITHIN_S < unix_s:
                return max(0.0, math.ceil(until_s - unix_s))
        return wait_s
    match = _DURATION.fullmatch(text)
    if match is not None:
        hours, minutes = _rounded_up(match[1]), _rounded_up(match[2])
        seconds = _rounded_up(match[3], match[4])
        return hours * 3600 + minutes * 60 + (math.ceil(seconds / 1000) if match[5] else seconds)
    until = _parse_date(text)
    return max(0.0, math.ceil((until - since).total_seconds())) if until is not None else 0.0


def _rounded_up(digits: str | None, fraction: str | None = None) -> float:
    """Return a number with any number of digits, rounded up and capped above any Unix time in ms."""
    return min(float(digits or 0), 2000 * MAX_WAIT_S) + bool((fraction or "").strip("0"))


def _parse_date(text: str) -> datetime | None:
    """Parse an HTTP-date or an ISO 8601 date, rounded up to a second; None if it is neither."""
    if len(text) > MAX_DATE_CHARS:
        return None
    match, second = _ISO_DATE.fullmatch(text), _SECOND.search(text)
    leap_second = second is not None and second[1] == "60"
    adds_second = leap_second or (second is not None and bool((second[2] or "").strip("0")))
    try:
        if match is not None:
            year, month, day, hour, minute, seconds = (int(part or 0) for part in match.groups()[:6])
            offset = timedelta(hours=int(match[9] or 0), minutes=int(match[10] or 0))
            zone = timezone(-offset if match[8] == "-" else offset)
            seconds += bool((match[7] or "").strip("0"))
            until = datetime(year, month, day, hour, minute, tzinfo=zone) + timedelta(seconds=seconds)
            return until.astimezone(UTC)
        if second is not None:
            text = text[: second.start()] + ("59" if leap_second else second[1]) + text[second.end() :]
        date = http_date(_OFFSET.sub(r"\1\2", text))
        return date + timedelta(seconds=adds_second) if date is not None else None
    except (ValueError, OverflowError):
        return None


def http_date(text: str | None) -> datetime | None:
    """Parse an HTTP-date in any of its three forms (RFC 9110 §5.6.7), in any time zone; else return None."""
    stripped = (text or "").strip()
    if not _WEEKDAY_FIRST.match(stripped):
        return None
    try:
        date = parsedate_to_datetime(stripped)
        if date.tzinfo is not None:
            return date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # The asctime form has no zone and is in UTC. A date with an unknown zone is rejected.
    return date.replace(tzinfo=UTC) if _NO_ZONE.search(stripped) else None
