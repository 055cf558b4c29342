"""The Retry-After field (RFC 9110 §10.2.3, RFC 6585 §4). Pure."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

MAX_WAIT_S = 2.0**31
"""What a larger number of seconds means (RFC 9111 §1.2.2)."""

_DELAY_SECONDS = re.compile(r"[0-9]+")
_WEEKDAY_FIRST = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun)", re.IGNORECASE)


def retry_after_s(value: str | None, date: str | None, now_ms: int) -> float | None:
    """Return the wait in seconds, None if the field is absent, zero, in the past or malformed.

    date: the Date field of the same response. An HTTP-date counts from there, so that the clocks need not
    agree; without it from now_ms.
    """
    if not value:
        return None
    text = value.strip()
    if _DELAY_SECONDS.fullmatch(text):
        return min(float(text), MAX_WAIT_S) or None
    until = http_date(text)
    if until is None:
        return None
    since = http_date(date) or datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms)
    wait_s = (until - since).total_seconds()
    return wait_s if wait_s > 0 else None


def http_date(text: str | None) -> datetime | None:
    """Parse an HTTP-date in any of its three forms (RFC 9110 §5.6.7); None for anything else."""
    if not text or not _WEEKDAY_FIRST.match(text.strip()):
        return None
    try:
        found = parsedate_to_datetime(text.strip())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
