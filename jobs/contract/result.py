"""A Result: the outcome of one fetch, as JSON in Redis. Pure."""

from enum import StrEnum
from typing import Any, cast

import msgspec

ABSENT = cast(None, msgspec.UNSET)
"""The note of a new result without one: msgspec leaves a field with this value out of the JSON."""


class Outcome(StrEnum):
    """The outcome of a fetch. The list is closed: an unknown value is not a result."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """The reason of a failure. The list is closed; docs/results.md explains each reason and its remedy."""

    BAD_DEST = "bad_dest"
    BAD_ENCODING = "bad_encoding"
    BAD_LINE = "bad_line"
    CONNECT = "connect"
    CONNECT_TIMEOUT = "connect_timeout"
    DEADLINE = "deadline"
    DIGEST_MISMATCH = "digest_mismatch"
    DISK = "disk"
    DNS = "dns"
    DNS_NXDOMAIN = "dns_nxdomain"
    DNS_SERVFAIL = "dns_servfail"
    DNS_TIMEOUT = "dns_timeout"
    EGRESS_REFUSED = "egress_refused"
    EXISTS = "exists"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    HOST_DEAD = "host_dead"
    HTTP_STATUS = "http_status"
    INTERNAL = "internal"
    INTERRUPTED = "interrupted"
    INVALID = "invalid"
    NO_BODY_FILE = "no_body_file"
    POISON = "poison"
    POOL_TIMEOUT = "pool_timeout"
    PROTOCOL = "protocol"
    READ = "read"
    READ_TIMEOUT = "read_timeout"
    REDIRECT_REFUSED = "redirect_refused"
    ROBOTS_DISALLOWED = "robots_disallowed"
    STATUS_REFUSED = "status_refused"
    THROTTLED = "throttled"
    TLS = "tls"
    TLS_TIMEOUT = "tls_timeout"
    TOO_LARGE = "too_large"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_SLOW = "too_slow"
    TOO_SMALL = "too_small"
    TOTAL_TIMEOUT = "total_timeout"
    TRUNCATED = "truncated"
    TYPE_REFUSED = "type_refused"
    WRITE = "write"
    WRITE_TIMEOUT = "write_timeout"
    X_ROBOTS_REFUSED = "x_robots_refused"


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of the stages of a fetch, in ms; null for a stage that was not reached."""

    queue_ms: float | None = None
    """Time from submit to the start of the last attempt."""
    connect_ms: float | None = None
    """TCP and TLS of the last attempt; 0 on a reused connection."""
    ttfb_ms: float | None = None
    """Time from the start of the last attempt to the head of its response."""
    total_ms: float | None = None
    """Time from submit to the end."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one fetch, and where its body is. Each fetch gets exactly one Result.

    `outcome` is stored, unchanged, failed or cancelled. `path` is the stored body; `reason` says why a fetch
    failed. Each field is described below its definition, and in docs/results.md with every reason.
    """

    id: str
    """ID of the fetch: its batch ID, a hyphen, and its place in the batch as 8 hex digits."""
    url: str
    """URL of the fetch, in canonical form."""
    outcome: Outcome
    """Outcome: stored, unchanged, failed or cancelled."""
    worker: str
    """ID of the worker that wrote the result."""
    final_url: str | None = None
    """URL after redirects, with the values of secret parameters masked; null if no request was made."""
    reason: Reason | None = None
    """Reason of the failure, or of a `stale` result; null otherwise."""
    status: int | None = None
    """Status code of the last response; null without one."""
    bytes: int | None = None
    """Size of the body: of the file, or of the body as it was sent (WARC)."""
    sha256: str | None = None
    """SHA-256 of the same body, 64 hex digits; null for HEAD, and for a kept file of unknown digest."""
    path: str | None = None
    """Path of the body, relative to the out folder or `store`; or of the WARC segment that holds it."""
    store: str | None = None
    """URL of the object store to whose prefix `path` is relative; null if `path` is in the out folder."""
    offset: int | None = None
    """Position of the body's WARC record in that segment, in bytes; null if `path` is the body."""
    length: int | None = None
    """Length of that WARC record, in bytes; null if `path` is the body."""
    etag: str | None = None
    """ETag of the body, for a later conditional request; null if there is none that can be sent back."""
    last_modified: str | None = None
    """Last-Modified of the body, as `etag`."""
    content_encoding: str | None = None
    """Content coding of the stored body, if it is still compressed; null if it is plain."""
    content_type: str | None = None
    """Content-Type of the last response, shortened; null without one."""
    lines: int | None = None
    """Number of JSON Lines records; null unless the fetch sets `lines`."""
    bad_line: int | None = None
    """Number of the first line that is not JSON, from 1; with the reason `bad_line`."""
    stale: bool = False
    """True if the host is down, and `path` is the body stored before; `reason` is the host's failure."""
    unverified: bool = False
    """True if the body ended with the connection, and no length or digest shows that it is complete."""
    attempts: int = 0
    """Attempts made, the last included; bounded by the policy."""
    throttles: int = 0
    """Times that the host asked to back off; no attempt is charged."""
    interruptions: int = 0
    """Deploys, crashes, lost leases and full disks; no attempt is charged."""
    timings: Timings = Timings()
    """Durations of the stages."""
    meta: Any = None
    """The `meta` of the fetch."""
    retry_of: str | None = None
    """ID of the failed fetch that was submitted again as this one; null otherwise."""
    method: str | None = None
    """Method of the fetch; null if it is unknown."""
    dest: str | None = None
    """The `dest` of the fetch; null if unset."""
    name: str | None = None
    """The `name` of the fetch; null if unset."""
    key: str | None = None
    """The `key` of the fetch; null if unset."""
    omitted: list[str] | None = None
    """Other fields that the fetch sets, by name, if it failed or was cancelled; null otherwise."""
    note: str | None = None
    """Details of the last error, without secrets, 300 characters at most; absent without an error."""


_decode = msgspec.json.Decoder(Result).decode


def decode_result(line: bytes) -> Result:
    """Decode one Result from JSON; raises msgspec.DecodeError."""
    return _decode(line)
