"""What is remembered of names, and for how long: pure, the clock comes in as an argument."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import NamedTuple

MAX_TTL_S = 300.0
"""A name that has moved is found again within minutes, whatever was once said of it."""

NO_SUCH_NAME_S = 5.0
SERVER_FAILED_S = 1.0
MAX_NAMES = 10_000


class Failure(StrEnum):
    """Why a name has no address for us; closed."""

    NO_SUCH_NAME = "no such name, or it has no address"
    NOT_ASKED = "it could not be asked for"
    SERVER_FAILED = "the nameserver failed, or is not there"
    TIMED_OUT = "no answer in time"


Said = tuple[str, ...] | Failure
"""The addresses of a name, in the order in which they came, each once; or why there is none."""

_FAILURES_S = {
    Failure.NO_SUCH_NAME: NO_SUCH_NAME_S,
    Failure.NOT_ASKED: 0.0,
    Failure.SERVER_FAILED: SERVER_FAILED_S,
    Failure.TIMED_OUT: 0.0,  # who comes next waits for an answer himself
}


def keep_s(said: Said, ttls_s: Collection[int] = ()) -> float:
    """How long what was said of a name counts: the least of its TTLs, or as long as for its failure.

    A TTL of 0 says that it counts only now (RFC 1035 §3.2.1), one below it means 0 (RFC 2181 §8). What has
    none, since no nameserver was asked, counts only now as well.
    """
    if isinstance(said, Failure):
        return _FAILURES_S[said]
    return max(0.0, min(MAX_TTL_S, *ttls_s)) if ttls_s else 0.0


class _Kept(NamedTuple):
    said: Said
    until_s: float


class NameCache:
    """What was said of names; of so many at most that a list of hosts without end takes no more memory."""

    def __init__(self, most: int = MAX_NAMES) -> None:
        self._most = most
        self._kept: dict[str, _Kept] = {}  # the longest unrenewed first

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str, now_s: float) -> Said | None:
        """What was said of it, while that counts."""
        kept = self._kept.get(name)
        return kept.said if kept is not None and now_s < kept.until_s else None

    def put(self, name: str, said: Said, seconds: float, now_s: float) -> None:
        """Remember what was said of it for so long."""
        self._kept.pop(name, None)
        if seconds > 0:
            self._kept[name] = _Kept(said, now_s + seconds)
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]

    def forget(self, name: str) -> bool:
        """It is to be asked for again; whether anything was known of it."""
        return self._kept.pop(name, None) is not None


def to_try(addresses: Sequence[str], most: int) -> list[str]:
    """At most so many of the addresses, IPv6 and IPv4 in turn from the first one's on (RFC 8305 §4)."""
    first = ip_address(addresses[0]).version
    same = [address for address in addresses if ip_address(address).version == first]
    rest = [address for address in addresses if ip_address(address).version != first]
    in_turn = chain.from_iterable(zip_longest(same, rest))
    return [address for address in in_turn if address is not None][:most]
