"""What a host says of how much it will still take: RateLimit fields, in their three generations. Pure.

- `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11): Lists of Strings with
  parameters (RFC 9651). Of a quota `r` is what remains and `t` the seconds until it is restored; of a policy
  `q` is what it allows in `w` seconds, of the unit `qu`. A policy that no quota is told of still holds.
- `RateLimit-Remaining` and `RateLimit-Reset` (drafts up to 06): Reset is in seconds from now.
- `X-RateLimit-Remaining` and `X-RateLimit-Reset`: nobody's standard; Reset may be an epoch.

What is malformed is ignored, and no window counts for more than ten minutes.
"""

from collections.abc import Callable, Mapping
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


class _Policy(NamedTuple):
    """So many in a window of so many seconds, where that is said; of requests, or of something else."""

    quantity: int
    window_s: int | None
    of_requests: bool


def quota_of(header: Header, now_ms: int) -> Quota | None:
    """The tightest of what the answer says, None if it says nothing that makes sense."""
    found = _structured(header) or _plain(header, now_ms)
    return min(found, key=lambda quota: quota.remaining / quota.window_s, default=None)


def _structured(header: Header) -> list[Quota]:
    told, stated = header("ratelimit"), header("ratelimit-policy")
    if told is None and stated is None:
        return []
    quotas = dict(_items(told))
    policies = {name: policy for name, of in _items(stated) if (policy := _policy(of)) is not None}
    found = [_quota(of, policies.get(name)) for name, of in quotas.items()]
    found += [
        _checked(policy.quantity, policy.window_s)
        for name, policy in policies.items()
        if name not in quotas and policy.of_requests and policy.window_s is not None
    ]
    return [quota for quota in found if quota is not None]


def _items(value: str | None) -> list[tuple[str, Mapping[str, object]]]:
    """The Strings of a List, each with its parameters; nothing of a field that is malformed."""
    try:
        items = http_sf.parse((value or "").encode("latin-1"), tltype="list")
    except ValueError:
        return []
    found = items if isinstance(items, list) else []
    return [(item[0], item[1]) for item in found if isinstance(item, tuple) and type(item[0]) is str]


def _quota(of: Mapping[str, object], policy: _Policy | None) -> Quota | None:
    """T may be left out: then the window is as long as its policy says."""
    if policy is not None and not policy.of_requests:
        return None
    remaining, window_s = of.get("r"), of.get("t", policy.window_s if policy else None)
    return _checked(remaining, window_s) if type(remaining) is int and type(window_s) is int else None


def _policy(of: Mapping[str, object]) -> _Policy | None:
    quantity, window_s = of.get("q"), of.get("w")
    if type(quantity) is not int or type(window_s) not in {int, type(None)}:
        return None
    return _Policy(quantity, window_s, of.get("qu", "requests") == "requests")  # type: ignore[arg-type]


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
    if value is None:
        return None
    text = value.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _checked(remaining: int, window_s: float) -> Quota | None:
    if remaining < 0 or window_s <= 0:
        return None
    return Quota(remaining, min(float(window_s), MAX_WINDOW_S))
