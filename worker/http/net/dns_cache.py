"""The cache of resolved names, and the order in which addresses are tried. Pure."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import NamedTuple

MAX_TTL_S = 300.0
"""Caps the TTL, so that a name that has moved is found within minutes."""

NO_SUCH_NAME_S = 5.0
SERVER_FAILED_S = 1.0
MAX_NAMES = 10_000


class DnsFailure(StrEnum):
    """The reason for which a name could not be resolved; a closed list."""

    NO_SUCH_NAME = "no such name, or it has no address"
    NOT_ASKED = "it could not be asked for"
    SERVER_FAILED = "the nameserver failed, or is not there"
    TIMED_OUT = "no answer in time"


Resolution = tuple[str, ...] | DnsFailure
"""The addresses of a name, each once, in the order of the answer; or why there is none."""

_FAILURES_S = {
    DnsFailure.NO_SUCH_NAME: NO_SUCH_NAME_S,
    DnsFailure.NOT_ASKED: 0.0,
    DnsFailure.SERVER_FAILED: SERVER_FAILED_S,
    DnsFailure.TIMED_OUT: 0.0,  # the next caller queries again
}


def keep_s(resolution: Resolution, ttls_s: Collection[int] = ()) -> float:
    """Return how long a resolution is valid: the smallest of its TTLs, or a fixed time for its failure.

    A TTL of 0 forbids caching (RFC 1035 §3.2.1), a negative one means 0 (RFC 2181 §8). A resolution without
    TTLs did not come from a nameserver and is not cached.
    """
    if isinstance(resolution, DnsFailure):
        return _FAILURES_S[resolution]
    return max(0.0, min(MAX_TTL_S, *ttls_s)) if ttls_s else 0.0


class _Cached(NamedTuple):
    resolution: Resolution
    until_s: float


class DnsCache:
    """Resolutions by name. Bounded, so that an endless list of hosts needs no more memory."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._cached: dict[str, _Cached] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._cached)

    def get(self, name: str, now_s: float) -> Resolution | None:
        """Return the resolution of a name while it is valid, else None."""
        cached = self._cached.get(name)
        return cached.resolution if cached is not None and now_s < cached.until_s else None

    def put(self, name: str, resolution: Resolution, seconds: float, now_s: float) -> None:
        """Keep a resolution for so many seconds."""
        self._cached.pop(name, None)
        if seconds > 0:
            self._cached[name] = _Cached(resolution, now_s + seconds)
        while len(self._cached) > self._max_names:
            del self._cached[next(iter(self._cached))]

    def forget(self, name: str) -> bool:
        """Drop a name; returns whether it was cached."""
        return self._cached.pop(name, None) is not None


def to_try(addresses: Sequence[str], most: int) -> list[str]:
    """Return at most `most` of the addresses, alternating between IPv6 and IPv4 (RFC 8305 §4)."""
    first = ip_address(addresses[0]).version
    same = [address for address in addresses if ip_address(address).version == first]
    rest = [address for address in addresses if ip_address(address).version != first]
    alternating = chain.from_iterable(zip_longest(same, rest))
    return [address for address in alternating if address is not None][:most]
