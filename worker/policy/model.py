"""How one host wants to be treated: every key, its default and its range. Pure."""

from collections.abc import Iterable

import msgspec

from fetchfleet.jobs.contract.field_checks import FALLBACKS
from fetchfleet.worker.policy.egress import WEB_PORTS

MAX_TIMEOUT_S = 24 * 3600
ROBOTS = ("ignore", "obey")
DURABILITIES = ("none", "file", "full")


class PolicyError(ValueError):
    """A policy that cannot be used; the message names the table, the key and the fault."""


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every wait of one attempt has its bound, in seconds.

    connect_s: for the connection, names resolved, and as long again for the TLS handshake. read_s: until the
    first byte of an answer, and between two pieces of it. write_s: for each block of a body to be taken.
    pool_s: for a connection to be free. total_s: for all of it.
    """

    connect_s: float
    read_s: float
    write_s: float
    pool_s: float
    total_s: float

    def __post_init__(self) -> None:
        """All are more than nothing, and end within a day."""
        for name in self.__struct_fields__:
            if not 0 < getattr(self, name) <= MAX_TIMEOUT_S:
                raise PolicyError(f"timeout.{name} must be more than 0 s and at most {MAX_TIMEOUT_S} s")


PROFILES = {
    "api": Timeouts(connect_s=2, read_s=5, write_s=2, pool_s=2, total_s=10),
    "upload": Timeouts(connect_s=5, read_s=60, write_s=60, pool_s=5, total_s=120),
    # A stream may last, yet it must move and it must end: where nothing bounds a read, a dead
    # host holds its lane for ever.
    "stream": Timeouts(connect_s=5, read_s=30, write_s=5, pool_s=5, total_s=3600),
    "internal": Timeouts(connect_s=1, read_s=3, write_s=1, pool_s=1, total_s=5),
}


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds within which a host's concurrency is found by trying."""

    min: int = 1
    max: int = 64

    def __post_init__(self) -> None:
        """At least one, at most a thousand, in this order."""
        _within("concurrency.min", self.min, 1, 1000)
        _within("concurrency.max", self.max, self.min, 1000)


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Who may vouch for a host, and how we show ourselves to it."""

    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    verify: bool = True


class LanePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one host is treated by the whole fleet.

    concurrency: fetches in flight at once, 1 to 1000; or {min, max}: found by trying, within these.
    rate_per_s: fetches started each second, 0 for no pacing; burst: how many may start together.
    attempts: tries that may fail before the fetch does, 1 to 100.
    retry_base_s, retry_cap_s: the wait before a retry is random within a bound that doubles.
    throttle_cap_s: the longest cool-down that a host can ask for.
    timeout: a profile (api, upload, stream, internal) or a table of all five.
    breaker_failures: failures in a row that park the lane; breaker_reset_s: for how long the first time,
    breaker_cap_s at most: each time in a row it is breaker_reset_s longer.
    give_up_s: a host that gives no answer for so long is dead: what waits for it fails; give_up_dns_s: one
    whose name does not exist.
    quota: heed RateLimit fields. paused: start nothing.
    robots: "obey" asks each origin's robots.txt first and does as it says, "ignore" never asks.
    fallback: "stale" answers with what was stored before where the host is down, "none" fails; a fetch may
    say otherwise.
    durability: what stands a machine's loss of power once a result says `stored`: "none" nothing for sure,
    "file" that no half body is at its name, "full" body and name. A process that dies harms none of them.
    context: tell the host the fetch's id (X-Request-ID) and its trace (traceparent, tracestate).
    http2: offer HTTP/2 to https hosts; HTTP/1.1 remains the fallback.
    ca_file: the PEM file of those who may vouch for the host, in place of those that the system trusts.
    client_cert, client_key: PEM files by which we show ourselves; the key may be in the certificate's.
    verify: false takes whoever answers for the host. https_to_http: follow a redirect into the clear.
    ports: those of public addresses that may be dialled, 1 to 65535.
    max_bytes: the largest body taken, unless the fetch says less; 0 for no cap.
    min_rate_bytes_per_s: a body that brings less over min_rate_window_s of waiting for it is given up; 0:
    none is, since a host that says little while it works cannot be told from one that trickles.
    max_decode_ratio: how many times larger decoding may make a body, beyond its first MiB; 0 for no cap.
    max_line_bytes: the longest line taken where a fetch asks for lines, 1 byte to 256 MiB.
    """

    concurrency: int | Range = 8
    rate_per_s: float = 0.0
    burst: int = 1
    attempts: int = 5
    retry_base_s: float = 1.0
    retry_cap_s: float = 60.0
    throttle_cap_s: float = 3600.0
    timeout: str | Timeouts = "stream"
    breaker_failures: int = 5
    breaker_reset_s: float = 30.0
    breaker_cap_s: float = 600.0
    give_up_s: float = 3600.0
    give_up_dns_s: float = 60.0
    quota: bool = True
    paused: bool = False
    robots: str = "ignore"
    fallback: str = "none"
    durability: str = "none"
    context: bool = False
    http2: bool = False
    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    verify: bool = True
    https_to_http: bool = False
    ports: tuple[int, ...] = WEB_PORTS
    max_bytes: int = 0
    min_rate_bytes_per_s: float = 0.0
    min_rate_window_s: float = 30.0
    max_decode_ratio: int = 200
    max_line_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        """Check the ranges; raises PolicyError."""
        if isinstance(self.concurrency, int):
            _within("concurrency", self.concurrency, 1, 1000)
        _within("rate_per_s", self.rate_per_s, 0, 100_000)
        _within("burst", self.burst, 1, 100_000)
        _within("attempts", self.attempts, 1, 100)
        _within("retry_base_s", self.retry_base_s, 0.001, 3600)
        _within("retry_cap_s", self.retry_cap_s, self.retry_base_s, 24 * 3600)
        _within("throttle_cap_s", self.throttle_cap_s, 0.001, 24 * 3600)
        _within("breaker_failures", self.breaker_failures, 1, 1000)
        _within("breaker_reset_s", self.breaker_reset_s, 0.001, 24 * 3600)
        _within("breaker_cap_s", self.breaker_cap_s, 0.001, 24 * 3600)
        _within("give_up_s", self.give_up_s, 0.001, 7 * 24 * 3600)
        _within("give_up_dns_s", self.give_up_dns_s, 0.001, 7 * 24 * 3600)
        _within("max_bytes", self.max_bytes, 0, 1 << 50)
        _within("min_rate_bytes_per_s", self.min_rate_bytes_per_s, 0, 1 << 40)
        _within("min_rate_window_s", self.min_rate_window_s, 0.001, MAX_TIMEOUT_S)
        _within("max_decode_ratio", self.max_decode_ratio, 0, 1_000_000)
        _within("max_line_bytes", self.max_line_bytes, 1, 256 << 20)
        for port in self.ports:
            _within("ports", port, 1, 65535)
        if isinstance(self.timeout, str):
            _one_of("timeout", self.timeout, PROFILES)
        _one_of("robots", self.robots, ROBOTS)
        _one_of("fallback", self.fallback, FALLBACKS)
        _one_of("durability", self.durability, DURABILITIES)
        if self.client_key and not self.client_cert:
            raise PolicyError("client_key: names the key of no client_cert")

    @property
    def most_at_once(self) -> int:
        """More than so many fetches are never in flight."""
        return self.concurrency.max if isinstance(self.concurrency, Range) else self.concurrency

    @property
    def tls(self) -> Tls:
        """What concerns trust."""
        return Tls(
            ca_file=self.ca_file,
            client_cert=self.client_cert,
            client_key=self.client_key,
            verify=self.verify,
        )

    @property
    def timeouts(self) -> Timeouts:
        """The five bounds, by whichever way they were given."""
        return PROFILES[self.timeout] if isinstance(self.timeout, str) else self.timeout


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise PolicyError(f"{name}: {value} is not within {least} and {most}")


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise PolicyError(f"{name}: {value!r} is not one of {', '.join(known)}")
