"""The cache of resolved names, and the order in which addresses are dialled. Pure."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import NamedTuple

MAX_TTL_S = 300.0
"""The maximum time for which addresses are cached: connections follow a changed name within minutes."""

NO_SUCH_NAME_S = 5.0
SERVER_FAILED_S = 1.0
MAX_NAMES = 10_000


class DnsFailure(StrEnum):
    """The reason a name was not resolved, with its text for messages."""

    NO_SUCH_NAME = "the name does not exist or has no address"
    NOT_SENT = "the query could not be sent"
    SERVER_FAILED = "the nameserver failed or is not reachable"
    TIMED_OUT = "the nameserver did not reply in time"


Resolution = tuple[str, ...] | DnsFailure
"""The distinct addresses of a name, in the order of the reply, or the failure."""

_FAILURES_S = {
    DnsFailure.NO_SUCH_NAME: NO_SUCH_NAME_S,
    DnsFailure.NOT_SENT: 0.0,
    DnsFailure.SERVER_FAILED: SERVER_FAILED_S,
    DnsFailure.TIMED_OUT: 0.0,  # the next caller queries again
}


def valid_s(resolution: Resolution, ttls_s: Collection[int] = ()) -> float:
    """Return how long a resolution may be cached, in seconds.

    For addresses this is the smallest TTL, at most MAX_TTL_S, or 0 without a TTL: they then did not come from
    a nameserver. A TTL of 0 forbids caching (RFC 1035 §3.2.1), a negative TTL means 0 (RFC 2181 §8).
    """
    if isinstance(resolution, DnsFailure):
        return _FAILURES_S[resolution]
    return max(0.0, min(MAX_TTL_S, *ttls_s)) if ttls_s else 0.0


class _Cached(NamedTuple):
    resolution: Resolution
    until_s: float


class DnsCache:
    """Resolutions by name. The number of names is bounded, the oldest are dropped first."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._cached: dict[str, _Cached] = {}
        """The cached resolutions, in insertion order."""

    def __len__(self) -> int:
        return len(self._cached)

    def get(self, name: str, now_s: float) -> Resolution | None:
        """Return the resolution of a name if it is still valid, else None."""
        cached = self._cached.get(name)
        return cached.resolution if cached is not None and now_s < cached.until_s else None

    def put(self, name: str, resolution: Resolution, for_s: float, now_s: float) -> None:
        """Cache a resolution for `for_s` seconds, in place of an earlier one; not at all for 0."""
        self._cached.pop(name, None)
        if for_s > 0:
            self._cached[name] = _Cached(resolution, now_s + for_s)
        while len(self._cached) > self._max_names:
            del self._cached[next(iter(self._cached))]

    def forget(self, name: str) -> bool:
        """Drop a name; return whether it was cached."""
        return self._cached.pop(name, None) is not None


def dial_order(addresses: Sequence[str], max_addresses: int) -> list[str]:
    """Return at most `max_addresses` of the addresses, alternating between IPv6 and IPv4 (RFC 8305 §4)."""
    first = ip_address(addresses[0]).version
    same = [address for address in addresses if ip_address(address).version == first]
    rest = [address for address in addresses if ip_address(address).version != first]
    alternating = chain.from_iterable(zip_longest(same, rest))
    return [address for address in alternating if address is not None][:max_addresses]
