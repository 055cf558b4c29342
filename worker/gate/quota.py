"""Parses the quota that a host declares: the three generations of RateLimit fields. Pure.

- `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11): Lists of Strings with
  parameters (RFC 9651). In a quota, `r` is the remaining number and `t` the seconds until it is restored. In
  a policy, `q` is the number allowed in `w` seconds, of the unit `qu`. A policy without a quota applies too.
- `RateLimit-Remaining` and `RateLimit-Reset` (drafts up to 06): Reset is in seconds from now.
- `X-RateLimit-Remaining` and `X-RateLimit-Reset`: no standard. Reset may be a Unix time in s or ms.

Malformed fields are ignored. Windows are cut to ten minutes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

FIELDS = frozenset({b"ratelimit", b"ratelimit-policy", b"ratelimit-remaining", b"x-ratelimit-remaining"})
"""A response without any of these names no quota."""

MAX_WINDOW_S = 600.0
EPOCH_AFTER = 1_000_000_000
"""A larger Reset is a Unix time in seconds."""
MILLISECONDS_AFTER = 100_000_000_000
"""A larger Reset is a Unix time in milliseconds."""


class Quota(NamedTuple):
    """A quota of the host for the rest of its window."""

    remaining: int
    """The number of requests that the host still accepts."""
    window_s: float
    """The time until the quota is restored."""


Header = Callable[[str], str | None]


class _Policy(NamedTuple):
    """An item of RateLimit-Policy."""

    quantity: int
    """The number of units that the host accepts in each window."""
    window_s: int | None
    """The length of a window; None if not stated."""
    of_requests: bool
    """True if the unit is requests; False for another unit, such as bytes."""


def quota_of(header: Header, now_ms: int) -> Quota | None:
    """Return the tightest quota of a response; None if it has no valid one.

    header: returns the value of a field, by its name in lower case.
    """
    quotas = _structured_quotas(header) or _numeric_quotas(header, now_ms)
    return min(quotas, key=lambda quota: quota.remaining / quota.window_s, default=None)


def _structured_quotas(header: Header) -> list[Quota]:
    """Return the quotas in RateLimit and RateLimit-Policy."""
    sent, stated = header("ratelimit"), header("ratelimit-policy")
    if sent is None and stated is None:
        return []
    policies = dict[str, _Policy]()
    for name, parameters in _items(stated):
        quantity, window_s = parameters.get("q"), parameters.get("w")
        if type(quantity) is int and (window_s is None or type(window_s) is int):
            of_requests = parameters.get("qu", "requests") == "requests"
            policies[name] = _Policy(quantity, window_s, of_requests)
    quotas = dict(_items(sent))
    checked: list[Quota | None] = []
    for name, parameters in quotas.items():
        policy = policies.get(name)
        # A quota without `t` has the window of its policy.
        remaining, window_s = parameters.get("r"), parameters.get("t", policy.window_s if policy else None)
        if type(remaining) is int and type(window_s) is int and (policy is None or policy.of_requests):
            checked.append(_checked(remaining, window_s))
    for name, policy in policies.items():
        if name not in quotas and policy.of_requests and policy.window_s is not None:
            checked.append(_checked(policy.quantity, policy.window_s))
    return [quota for quota in checked if quota is not None]


def _items(value: str | None) -> list[tuple[str, Mapping[str, object]]]:
    """Return the Strings of a List with their parameters; an empty list if the field is malformed."""
    import http_sf  # noqa: PLC0415 loads many modules, and few hosts send the field

    try:
        items = http_sf.parse((value or "").encode("latin-1"), tltype="list")
    except ValueError:
        return []
    members = items if isinstance(items, list) else []
    return [(item[0], item[1]) for item in members if isinstance(item, tuple) and type(item[0]) is str]


def _numeric_quotas(header: Header, now_ms: int) -> list[Quota]:
    """Return the quota in the Remaining and Reset fields: one or none."""
    for prefix in ("ratelimit", "x-ratelimit"):
        remaining = _number(header(f"{prefix}-remaining"))
        reset = _number(header(f"{prefix}-reset")) if remaining is not None else None
        if remaining is not None and reset is not None:
            window_s: float = reset
            if reset > MILLISECONDS_AFTER:
                window_s = (reset - now_ms) / 1000
            elif reset > EPOCH_AFTER:
                window_s = reset - now_ms / 1000
            quota = _checked(remaining, window_s)
            return [quota] if quota else []
    return []


def _number(value: str | None) -> int | None:
    if value is None:
        return None
    text = value.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _checked(remaining: int, window_s: float) -> Quota | None:
    if remaining < 0 or window_s <= 0:
        return None
    return Quota(remaining, min(float(window_s), MAX_WINDOW_S))
