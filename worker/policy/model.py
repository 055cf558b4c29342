"""The policy of one host: every key, its default and its range. Pure."""

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import msgspec

from fetchfleet.jobs.contract.checks.accept import Accept, XRobots, statuses
from fetchfleet.jobs.contract.checks.field_checks import MAX_SEGMENTS, Fallback
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.policy.egress import WEB_PORTS

MIN_S = 0.001
DAY_S = 24 * 3600
WEEK_S = 7 * DAY_S


class Bounds(NamedTuple):
    """The range of a number in a policy."""

    minimum: float
    maximum: float
    off: bool = False
    """True if 0 is allowed as well. It switches the rule off."""

    def admit(self, value: float) -> bool:
        """Return whether the value is within the bounds. NaN never is."""
        return self.minimum <= value <= self.maximum or (self.off and value == 0)


BOUNDS = {
    "concurrency": Bounds(1, 1000),
    "rate_per_s": Bounds(0.00001, 100_000, off=True),  # at least about one request a day
    "burst": Bounds(1, 100_000),
    "segments": Bounds(1, MAX_SEGMENTS),
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
"""The bounds of every numeric key. Those of `concurrency` and `ports` apply to each number in the value."""

TIMEOUT_BOUNDS = Bounds(MIN_S, DAY_S)

MAX_SHOWN_DIGITS = 20
MAX_SHOWN_CHARS = 80

ROBOTS = ("ignore", "obey")
DURABILITIES = ("none", "file", "full")


class PolicyFault(NamedTuple):
    """One fault of a policy."""

    message: str
    """It names the table, the key and the fault."""
    table: str = ""
    """The name of the table in a file; empty if the fault is in no table."""
    keys: tuple[str, ...] = ()
    """The keys of the table that cause it; several if they contradict each other."""


class PolicyError(ValueError):
    """A policy is invalid. The message has a line for each fault."""

    faults: Sequence[PolicyFault]

    def __init__(self, *faults: PolicyFault | str) -> None:
        self.faults = [PolicyFault(fault) if isinstance(fault, str) else fault for fault in faults]
        super().__init__("\n".join(fault.message for fault in self.faults))


def _within(name: str, value: float, bounds: Bounds) -> None:
    if bounds.admit(value) and not isinstance(value, bool):
        return
    if isinstance(value, int) and abs(value) >= 10**MAX_SHOWN_DIGITS:
        value = math.inf if value > 0 else -math.inf  # the message must not have thousands of digits
    off = "0 or " if bounds.off else ""
    least, largest = _number(bounds.minimum), _number(bounds.maximum)
    raise PolicyError(f"{name}: must be {off}between {least} and {largest}, got {value}")


def _number(value: float) -> str:
    """Return a bound in decimal notation, never as 1e-05."""
    return f"{value:f}".rstrip("0").rstrip(".")


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise PolicyError(f"{name}: {value[:MAX_SHOWN_CHARS]!r} is not one of {', '.join(known)}")


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The time limits of one attempt, in seconds: 0.001 to 86400 each. All are required."""

    connect_s: float
    """The maximum time to resolve the host and open a connection, and again for the TLS handshake."""
    read_s: float
    """The maximum time until the first byte of a response, and between two reads of its body."""
    write_s: float
    """The maximum time for the host to accept a block of the request body."""
    pool_s: float
    """The maximum time until a connection of the pool is free."""
    total_s: float
    """The maximum duration of the attempt."""

    def __post_init__(self) -> None:
        """Check the ranges. Raises PolicyError."""
        for name in self.__struct_fields__:
            _within(f"timeout.{name}", getattr(self, name), TIMEOUT_BOUNDS)


PROFILES = {
    "api": Timeouts(connect_s=2, read_s=5, write_s=2, pool_s=2, total_s=10),
    "upload": Timeouts(connect_s=5, read_s=60, write_s=60, pool_s=5, total_s=120),
    # A stream may be long but must progress: without a limit on reads, a dead host would block its lane.
    "stream": Timeouts(connect_s=5, read_s=30, write_s=5, pool_s=5, total_s=3600),
    "internal": Timeouts(connect_s=1, read_s=3, write_s=1, pool_s=1, total_s=5),
}


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The range of adaptive concurrency: 1 <= min <= max <= 1000."""

    min: int = 1
    """The concurrency below which refusals never push the limit."""
    max: int = 64
    """The concurrency above which good responses never raise the limit."""

    def __post_init__(self) -> None:
        """Check the ranges. Raises PolicyError."""
        bounds = BOUNDS["concurrency"]
        _within("concurrency.min", self.min, bounds)
        _within("concurrency.max", self.max, bounds._replace(minimum=self.min))


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a policy that define a TLS context; see LanePolicy."""

    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    verify: bool = True


class LanePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """The policy of one host, for the whole fleet. Ranges are in BOUNDS; docs/policy.md explains the keys."""

    concurrency: int | Range = 8
    """Fetches in flight at once. A table {min, max} enables adaptive concurrency."""
    rate_per_s: float = 0.0
    """Requests started per second, including retries and redirects; 0 for no rate limit."""
    burst: int = 1
    """Requests that may start together under a rate limit."""
    segments: int = 1
    """Ranges in which a large body is received at once, each counted against the concurrency; 1 for none. A
    fetch may override it."""
    attempts: int = 5
    """Failed attempts after which the fetch fails."""
    retry_base_s: float = 1.0
    """Upper bound of the random wait before the first retry. It doubles with each further retry."""
    retry_cap_s: float = 60.0
    """Largest value of that bound; at least retry_base_s."""
    throttle_cap_s: float = 3600.0
    """Longest cool-down, or wait of a retry, that a host can impose."""
    timeout: str | Timeouts = "stream"
    """A profile (api, upload, stream, internal), or a table of all five limits."""
    breaker_failures: int = 5
    """Failures in a row that open the breaker. Those of one fetch count once."""
    breaker_reset_s: float = 30.0
    """Time for which the breaker opens first. Each further time in a row adds breaker_reset_s."""
    breaker_cap_s: float = 600.0
    """The maximum time for which the breaker opens. A value below breaker_reset_s has no effect."""
    give_up_s: float = 3600.0
    """The time without a response after which the host is dead and its waiting fetches fail."""
    give_up_dns_s: float = 60.0
    """The same for a host whose name does not exist."""
    quota: bool = True
    """Obey RateLimit fields of responses."""
    paused: bool = False
    """Start no fetches."""
    robots: str = "ignore"
    """`obey` requests robots.txt of each origin first and obeys it; `ignore` never requests it."""
    accept: Accept = Accept()
    """The responses whose body is stored, by types, sizes and statuses. A fetch may override it."""
    retry_statuses: tuple[int, ...] = ()
    """Further statuses that are retried. A fetch may override them."""
    x_robots: str = "ignore"
    """`obey` refuses responses whose X-Robots-Tag forbids their use. A fetch may override it."""
    fallback: str = "none"
    """For a dead host: `stale` returns the body stored before, `none` fails. A fetch may override it."""
    durability: str = "none"
    """The guarantee for a `stored` body after a power loss. `none`: none. `file`: if the file exists, it is
    complete. `full`: the file exists and is complete. The crash of a process never loses a stored body."""
    context: bool = False
    """Send the ID of the fetch (X-Request-ID) and its trace (traceparent, tracestate) to the host."""
    http2: bool = False
    """Offer HTTP/2 to https hosts. HTTP/1.1 is used if the host does not select it."""
    ca_file: str = ""
    """Path of a CA bundle (PEM) to trust instead of the system store."""
    client_cert: str = ""
    """Path of the client certificate (PEM) to present if the host requests one."""
    client_key: str = ""
    """Path of its private key (PEM), if the key is not in the file client_cert."""
    verify: bool = True
    """Verify the certificate of the host."""
    https_to_http: bool = False
    """Follow redirects from https to http."""
    redirect_bodies: bool = False
    """Follow redirects that send a request body, or a request that may not be repeated, to another origin."""
    ports: tuple[int, ...] = WEB_PORTS
    """Ports that may be dialled on public addresses."""
    max_bytes: int = 0
    """Largest body; 0 for no limit. The smaller one of this limit and that of the fetch applies."""
    min_rate_bytes_per_s: float = 0.0
    """Least average rate of a body over min_rate_window_s of waiting; 0 for no limit. Off by default,
    because a host that computes its response cannot be distinguished from one that trickles."""
    min_rate_window_s: float = 30.0
    """The waiting time over which that rate is measured."""
    max_decode_ratio: int = 200
    """Largest ratio of a decoded body to its coded bytes, beyond the first decoded MiB; 0 for no limit."""
    max_line_bytes: int = 1 << 20
    """Longest line of a body that must be JSON Lines."""

    def __post_init__(self) -> None:
        """Check the ranges. Raises PolicyError."""
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            if name == "ports":
                for port in value:
                    _within(name, port, bounds)
            elif not isinstance(value, Range):
                _within(name, value, bounds)
        if self.retry_cap_s < self.retry_base_s:
            least = f"retry_base_s, {self.retry_base_s:g}"
            raise PolicyError(f"retry_cap_s: must be at least {least}, got {self.retry_cap_s:g}")
        if isinstance(self.timeout, str):
            _one_of("timeout", self.timeout, PROFILES)
        _one_of("robots", self.robots, ROBOTS)
        _one_of("x_robots", self.x_robots, tuple(XRobots))
        try:
            statuses("retry_statuses", self.retry_statuses)
        except InvalidFetchError as error:
            raise PolicyError(str(error)) from None
        _one_of("fallback", self.fallback, tuple(Fallback))
        _one_of("durability", self.durability, DURABILITIES)
        if self.client_key and not self.client_cert:
            raise PolicyError("client_key: client_cert is not set; set it to the certificate of this key")

    @cached_property
    def max_concurrency(self) -> int:
        """The maximum number of fetches that may be in flight at once."""
        return self.concurrency.max if isinstance(self.concurrency, Range) else self.concurrency

    @cached_property
    def tls(self) -> Tls:
        """The keys that define the TLS context of the host."""
        return Tls(
            ca_file=self.ca_file,
            client_cert=self.client_cert,
            client_key=self.client_key,
            verify=self.verify,
        )

    @cached_property
    def timeouts(self) -> Timeouts:
        """The five limits of `timeout`, whether a profile or a table."""
        return PROFILES[self.timeout] if isinstance(self.timeout, str) else self.timeout

    @cached_property
    def is_plain(self) -> bool:
        """True if no key needs worker/fetch/cases/special.py, so a plain GET can skip it.

        A new key that only that module obeys must be added to the expression.
        """
        return not (
            self.context
            or self.min_rate_bytes_per_s
            or self.segments > 1
            or self.fallback == Fallback.STALE
            or self.accept != Accept()
            or self.retry_statuses
            or self.x_robots == XRobots.OBEY
        )
