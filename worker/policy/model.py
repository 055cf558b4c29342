"""The policy of one host: every key, its default and its range. Pure."""

import math
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import msgspec

from fetchfleet.jobs.contract.field_checks import Fallback
from fetchfleet.worker.policy.egress import WEB_PORTS

MIN_S = 0.001
DAY_S = 24 * 3600
WEEK_S = 7 * DAY_S


class Bounds(NamedTuple):
    """The values that a number of a policy may have. off: 0 too, which switches the rule off."""

    minimum: float
    maximum: float
    off: bool = False

    def admit(self, value: float) -> bool:
        """Return whether the value is one of them. NaN is none."""
        return self.minimum <= value <= self.maximum or (self.off and value == 0)


BOUNDS = {
    "concurrency": Bounds(1, 1000),
    "rate_per_s": Bounds(0.00001, 100_000, off=True),  # from about one a day
    "burst": Bounds(1, 100_000),
    "attempts": Bounds(1, 100),
    "retry_base_s": Bounds(MIN_S, 3600),
    "retry_cap_s": Bounds(MIN_S, DAY_S),
    "throttle_cap_s": Bounds(MIN_S, DAY_S),
    "breaker_failures": Bounds(1, 1000),
    "breaker_reset_s": Bounds(MIN_S, DAY_S),
    "breaker_cap_s": Bounds(MIN_S, DAY_S),
    "give_up_s": Bounds(MIN_S, WEEK_S),
    "give_up_dns_s": Bounds(MIN_S, WEEK_S),
    "ports": Bounds(1, 65535),
    "max_bytes": Bounds(1, 1 << 50, off=True),
    "min_rate_bytes_per_s": Bounds(0.001, 1 << 40, off=True),
    "min_rate_window_s": Bounds(MIN_S, DAY_S),
    "max_decode_ratio": Bounds(1, 1_000_000, off=True),
    "max_line_bytes": Bounds(1, 256 << 20),
}
"""The bounds of every key that is a number, of both ends of a range, and of each port."""

TIMEOUT_BOUNDS = Bounds(MIN_S, DAY_S)

MAX_SHOWN_DIGITS = 20
MAX_SHOWN_CHARS = 80

ROBOTS = ("ignore", "obey")
DURABILITIES = ("none", "file", "full")


class PolicyError(ValueError):
    """A policy that cannot be used; the message names the table, the key and the fault."""


def _within(name: str, value: float, bounds: Bounds) -> None:
    if bounds.admit(value) and not isinstance(value, bool):
        return
    if isinstance(value, int) and abs(value) >= 10**MAX_SHOWN_DIGITS:
        value = math.inf if value > 0 else -math.inf  # thousands of digits are not shown
    off = "0, or " if bounds.off else ""
    raise PolicyError(
        f"{name}: {value} is not {off}within {_number(bounds.minimum)} and {_number(bounds.maximum)}"
    )


def _number(value: float) -> str:
    """Return a bound as people write it."""
    return f"{value:f}".rstrip("0").rstrip(".")


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise PolicyError(f"{name}: {value[:MAX_SHOWN_CHARS]!r} is not one of {', '.join(known)}")


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one attempt, in seconds; each is required."""

    connect_s: float
    """To open a connection, name resolution included; and as long again for the TLS handshake."""
    read_s: float
    """Until the first byte of a response, and between two pieces of it."""
    write_s: float
    """For the host to take each block of a request body."""
    pool_s: float
    """For a connection to become free."""
    total_s: float
    """For the whole attempt."""

    def __post_init__(self) -> None:
        """Check the range of each, a millisecond to a day."""
        for name in self.__struct_fields__:
            _within(f"timeout.{name}", getattr(self, name), TIMEOUT_BOUNDS)


PROFILES = {
    "api": Timeouts(connect_s=2, read_s=5, write_s=2, pool_s=2, total_s=10),
    "upload": Timeouts(connect_s=5, read_s=60, write_s=60, pool_s=5, total_s=120),
    # A stream may last long, but must progress and end: without a limit on a read, a dead host would block
    # its lane forever.
    "stream": Timeouts(connect_s=5, read_s=30, write_s=5, pool_s=5, total_s=3600),
    "internal": Timeouts(connect_s=1, read_s=3, write_s=1, pool_s=1, total_s=5),
}


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bounds of a concurrency that adapts to the host."""

    min: int = 1
    max: int = 64

    def __post_init__(self) -> None:
        """Check 1 <= min <= max <= 1000."""
        bounds = BOUNDS["concurrency"]
        _within("concurrency.min", self.min, bounds)
        _within("concurrency.max", self.max, bounds._replace(minimum=self.min))


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that define a TLS context."""

    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    verify: bool = True


class LanePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """The policy of one host, for the whole fleet; docs/policy.md explains the keys."""

    concurrency: int | Range = 8
    """Fetches in flight at once, 1 to 1000; or {min, max}: adapted to the host within these bounds."""
    rate_per_s: float = 0.0
    """Fetches started each second, 0 for no rate limit."""
    burst: int = 1
    """How many may start together."""
    attempts: int = 5
    """Attempts that may fail before the fetch does, 1 to 100."""
    retry_base_s: float = 1.0
    """The wait before a retry is random, up to a bound that starts here and doubles."""
    retry_cap_s: float = 60.0
    """The largest such bound."""
    throttle_cap_s: float = 3600.0
    """The longest cool-down that a host can ask for."""
    timeout: str | Timeouts = "stream"
    """A profile (api, upload, stream, internal), or a table of all five limits."""
    breaker_failures: int = 5
    """Failures in a row that open the breaker."""
    breaker_reset_s: float = 30.0
    """How long it stays open; each time in a row, breaker_reset_s longer."""
    breaker_cap_s: float = 600.0
    """The longest time that it stays open."""
    give_up_s: float = 3600.0
    """After this time without a response the host is dead: its waiting fetches fail."""
    give_up_dns_s: float = 60.0
    """The same for a host whose name does not exist."""
    quota: bool = True
    """Obey RateLimit fields of responses."""
    paused: bool = False
    """Start no fetches."""
    robots: str = "ignore"
    """`obey` fetches each origin's robots.txt first and obeys it; `ignore` never fetches it."""
    fallback: str = "none"
    """`stale` returns the body stored before if the host is down; `none` fails. A fetch may override it."""
    durability: str = "none"
    """What survives a power loss once a result is `stored`: with `none` nothing is sure, with `file` a file
    that exists is complete, with `full` it exists. The crash of a process never loses a stored body."""
    context: bool = False
    """Send the fetch's id (X-Request-ID) and its trace (traceparent, tracestate) to the host."""
    http2: bool = False
    """Offer HTTP/2 to https hosts; HTTP/1.1 remains the fallback."""
    ca_file: str = ""
    """CA bundle (PEM) to trust instead of the system store."""
    client_cert: str = ""
    """Client certificate (PEM) to send if the host asks for one."""
    client_key: str = ""
    """Its private key (PEM), if not in the same file."""
    verify: bool = True
    """Verify certificates."""
    https_to_http: bool = False
    """Follow redirects from https to http."""
    redirect_bodies: bool = False
    """Follow redirects that send the body of a request to another host."""
    ports: tuple[int, ...] = WEB_PORTS
    """The ports that may be dialled on public addresses, 1 to 65535."""
    max_bytes: int = 0
    """The largest body accepted, unless the fetch sets a lower limit; 0 for no limit."""
    min_rate_bytes_per_s: float = 0.0
    """A body that arrives more slowly, over min_rate_window_s of waiting, is given up. 0 for no limit,
    because a host that is computing looks like one that trickles."""
    min_rate_window_s: float = 30.0
    max_decode_ratio: int = 200
    """The largest ratio of a decoded body to its encoded one, after its first MiB; 0 for no limit."""
    max_line_bytes: int = 1 << 20
    """The longest line accepted for a fetch of lines, 1 byte to 256 MiB."""

    def __post_init__(self) -> None:
        """Check the ranges; raises PolicyError."""
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            if name == "ports":
                for port in value:
                    _within(name, port, bounds)
            elif not isinstance(value, Range):
                _within(name, value, bounds)
        if self.retry_cap_s < self.retry_base_s:
            raise PolicyError(f"retry_cap_s: {self.retry_cap_s:g} is less than retry_base_s")
        if isinstance(self.timeout, str):
            _one_of("timeout", self.timeout, PROFILES)
        _one_of("robots", self.robots, ROBOTS)
        _one_of("fallback", self.fallback, tuple(Fallback))
        _one_of("durability", self.durability, DURABILITIES)
        if self.client_key and not self.client_cert:
            raise PolicyError("client_key: names the key of no client_cert")

    @cached_property
    def most_at_once(self) -> int:
        """The most fetches that may be in flight at once."""
        return self.concurrency.max if isinstance(self.concurrency, Range) else self.concurrency

    @cached_property
    def tls(self) -> Tls:
        """The keys that define its TLS context."""
        return Tls(
            ca_file=self.ca_file,
            client_cert=self.client_cert,
            client_key=self.client_key,
            verify=self.verify,
        )

    @cached_property
    def timeouts(self) -> Timeouts:
        """The five limits, of the profile or the table."""
        return PROFILES[self.timeout] if isinstance(self.timeout, str) else self.timeout

    @cached_property
    def is_plain(self) -> bool:
        """True if no key needs worker/fetch/cases/special.py, so that plain fetches can do without it.

        A key that only those cases obey belongs here.
        """
        return not (self.context or self.min_rate_bytes_per_s or self.fallback == Fallback.STALE)
