"""What a host says of how much it will still take: RateLimit fields, in their three generations. Pure.

- `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11): Lists of Strings with
  parameters (RFC 9651); `r` what remains, `t` seconds until it is restored.
- `RateLimit-Remaining` and `RateLimit-Reset` (drafts up to 06): Reset is in seconds from now.
- `X-RateLimit-Remaining` and `X-RateLimit-Reset`: nobody's standard; Reset may be an epoch.

What is malformed is ignored, and no window counts for more than ten minutes.
"""

from collections.abc import Callable
from typing import NamedTuple

import http_sf

MAX_WINDOW_S = 600.0
EPOCH_AFTER = 1_000_000_000
MILLISECONDS_AFTER = 100_000_000_000


class Quota(NamedTuple):
    """So many requests more, for so long."""

    remaining: int
    window_s: float


Header = Callable[[str], str | None]


def quota_of(header: Header, now_ms: int) -> Quota | None:
    """The tightest of what the answer says, None if it says nothing that makes sense."""
    found = _structured(header("ratelimit")) or _plain(header, now_ms)
    return min(found, key=lambda quota: quota.remaining / quota.window_s, default=None)


def _structured(value: str | None) -> list[Quota]:
    if not value:
        return []
    try:
        items = http_sf.parse(value.encode("latin-1"), tltype="list")
    except ValueError:
        return []
    found = (_item(item) for item in items) if isinstance(items, list) else ()
    return [quota for quota in found if quota is not None]


def _item(item: object) -> Quota | None:
    match item:
        case (str(), {"r": int(remaining), "t": int(window_s)}):
            return None if bool in {type(remaining), type(window_s)} else _checked(remaining, window_s)
    return None


def _plain(header: Header, now_ms: int) -> list[Quota]:
    for prefix in ("ratelimit", "x-ratelimit"):
        remaining = _number(header(f"{prefix}-remaining"))
        reset = _number(header(f"{prefix}-reset")) if remaining is not None else None
        if remaining is not None and reset is not None:
            quota = _checked(remaining, _from_now(reset, now_ms))
            return [quota] if quota else []
    return []


def _from_now(reset: int, now_ms: int) -> float:
    """Seconds from now, whichever way it was meant."""
    if reset > MILLISECONDS_AFTER:
        return (reset - now_ms) / 1000
    if reset > EPOCH_AFTER:
        return reset - now_ms / 1000
    return reset


def _number(value: str | None) -> int | None:
    text = (value or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _checked(remaining: int, window_s: float) -> Quota | None:
    if remaining < 0 or window_s <= 0:
        return None
    return Quota(remaining, min(float(window_s), MAX_WINDOW_S))
