"""The contract: what a producer asks for (Fetch) and what it gets back (Result). Pure.

Both are JSON on the wire and checked whenever they are made or decoded, so that a Fetch that
exists is a Fetch that may be sent.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, get_origin

import msgspec

from fetchfleet.jobs.contract import body_checks, conditions, field_checks, trace_context
from fetchfleet.jobs.contract.urls import UrlError, canonical_url, shown_origin
from fetchfleet.jobs.errors import InvalidFetchError

TOO_DEEP = "is nested too deeply (recursion limit)"
"""The error for nesting that exceeds the interpreter's stack; its own text varies by version."""

MAX_MESSAGE_BYTES = 2 << 20
"""Of a fetch as JSON: a body of 1 MiB in base64, and what goes with it."""
DEFAULT_DEADLINE_S = 24 * 3600.0
MAX_DEADLINE_S = 7 * 24 * 3600.0


class Outcome(StrEnum):
    """The outcome of a fetch; a closed list."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """The reason for a failure; a closed list. docs/results.md explains each, with the remedy."""

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
    THROTTLED = "throttled"
    TLS = "tls"
    TLS_TIMEOUT = "tls_timeout"
    TOO_LARGE = "too_large"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_SLOW = "too_slow"
    TOTAL_TIMEOUT = "total_timeout"
    TRUNCATED = "truncated"
    WRITE = "write"
    WRITE_TIMEOUT = "write_timeout"


class Priority(StrEnum):
    """The order of a lane's fetches; within one priority, first in, first out."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


_UNSET = (field_checks.IfExists.REPLACE.value, None, False, None, None, None, None)
"""The defaults of the fields of a fetch that few fetches set."""


class Fetch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One request and where its body goes.

    url: http or https, without user and password; kept in canonical form.
    method: GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS.
    headers: sent as given; not those that belong to the connection (Host, Content-Length, …).
    body: text sent as UTF-8; not with GET, HEAD or OPTIONS.
    body_base64: the same for any bytes, 1 MiB at most before that.
    body_file: the same from a file: a relative path inside the workers' in folder.
    dest: a relative path inside the workers' out folder; without it the name comes from the id.
    if_exists: what becomes of a file at dest: "replace" (in one step), "skip" (it stays, and no request is
    made), "fail" (with `exists`).
    sha256: 64 hex digits that the body must have.
    max_bytes: a larger body fails with `too_large`.
    etag: that of an earlier result: what still has it is not sent again, and the fetch ends as unchanged.
    last_modified: the same by the date of the last change; where both are given, hosts go by the etag.
    revalidate: the workers do the same by themselves, while the file that they have stored is as it was.
    decode: ask for a compressed body and store it decoded; sha256 and max_bytes are then of the decoded one.
    lines: the body must be JSON Lines; a line that is none fails with `bad_line`.
    priority: high, normal or low.
    deadline_s: from submit to the end, over all attempts and waits; 24 h unless given, 7 days at most.
    retry_unsafe: try again although the method is not idempotent; the host may see the request twice.
    fallback: "stale": when the host is down, what was stored before is the result; "none": never. Without it
    the workers' policy says which.
    traceparent: the trace that this fetch is part of (W3C Trace Context); sent to hosts only if the workers'
    policy says so.
    tracestate: what goes with it.
    key: a name of the caller's; for 24 h (or deadline_s, if longer) the same key is the same fetch.
    meta: any JSON, at most 100 levels deep; comes back in the result, is never sent.

    Raises InvalidFetchError, which names the field.
    """

    url: str
    method: str = "GET"
    headers: dict[str, str] = {}
    body: str | None = None
    body_base64: str | None = None
    body_file: str | None = None
    dest: str | None = None
    if_exists: str = field_checks.IfExists.REPLACE.value
    sha256: str | None = None
    max_bytes: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    revalidate: bool = False
    decode: bool = False
    lines: bool = False
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    retry_unsafe: bool = False
    fallback: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    key: str | None = None
    meta: Any = None

    def __post_init__(self) -> None:
        """Check every field; put the URL, the method and others into canonical form."""
        try:
            msgspec.structs.force_setattr(self, "url", canonical_url(self.url))
        except UrlError as error:
            raise InvalidFetchError(f"url: {error}") from None
        if self.method != "GET":
            msgspec.structs.force_setattr(self, "method", field_checks.method(self.method))
        if self.headers:
            field_checks.headers(self.headers)
        if self.body is not None or self.body_base64 is not None or self.body_file is not None:
            body_checks.check(self.method, self.body, self.body_base64, self.body_file)
        if self.dest is not None:
            field_checks.dest(self.dest)
        if self.revalidate or self.etag is not None or self.last_modified is not None:
            conditions.check(
                self.method, self.headers.items(), self.etag, self.last_modified, revalidate=self.revalidate
            )
        rarely_set = (self.if_exists, self.max_bytes, self.decode, self.deadline_s, self.fallback)
        if (*rarely_set, self.sha256, self.key) != _UNSET:
            self._check_rarely_set()
        if self.priority is not Priority.NORMAL:
            msgspec.structs.force_setattr(self, "priority", _priority(self.priority))
        if self.traceparent is not None or self.tracestate is not None:
            trace_context.check(self.traceparent, self.tracestate)
        if self.meta is not None:
            msgspec.structs.force_setattr(self, "meta", field_checks.meta(self.meta))

    def _check_rarely_set(self) -> None:
        field_checks.if_exists(self.if_exists, self.dest)
        field_checks.max_bytes(self.max_bytes)
        field_checks.decode(self.headers, wanted=self.decode)
        field_checks.deadline(self.deadline_s, MAX_DEADLINE_S)
        if self.deadline_s is not None:  # 30 and 30.0 are one JSON
            msgspec.structs.force_setattr(self, "deadline_s", float(self.deadline_s))
        field_checks.fallback(self.fallback)
        if self.sha256 is not None:
            msgspec.structs.force_setattr(self, "sha256", field_checks.sha256(self.sha256))
        if self.key is not None:
            field_checks.key(self.key)

    def __repr__(self) -> str:
        return f"<Fetch {self.method} {shown_origin(self.url)}>"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        """Limit what rich shows in a traceback: the rest may be secret."""
        return [("method", self.method), ("origin", shown_origin(self.url))]

    @property
    def is_plain(self) -> bool:
        """True if the request goes out as it is, and the body is stored as it comes, if the policy agrees."""
        return not (
            self.decode
            or self.lines
            or self.revalidate
            or self.method == "HEAD"
            or self.if_exists != field_checks.IfExists.REPLACE
            or self.fallback == field_checks.Fallback.STALE
        )

    def size_limit(self, policy_max_bytes: int) -> int:
        """Return the largest body by the fetch and by the policy; 0 for no limit, as in the policy."""
        own = self.max_bytes or 0
        return own if own and not 0 < policy_max_bytes < own else policy_max_bytes

    @property
    def deadline_ms(self) -> int:
        """The time allowed from submit to the end, in ms."""
        return int((self.deadline_s or DEFAULT_DEADLINE_S) * 1000)


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """The time that each stage of a fetch took, in ms; null for a stage that was not reached.

    queue_ms: from submit to the start of the last attempt.
    connect_ms: TCP and TLS of that attempt, 0 on a reused connection.
    ttfb_ms: from the start of that attempt to the head of its answer.
    total_ms: from submit to the end.
    """

    queue_ms: float | None = None
    connect_ms: float | None = None
    ttfb_ms: float | None = None
    total_ms: float | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one fetch. Each fetch gets exactly one.

    id: of the fetch: its batch's id, a hyphen, and its place in the batch as 8 hex digits.
    url: of the fetch, in canonical form.
    outcome: stored, unchanged, failed or cancelled.
    worker: which one wrote the result.
    final_url: where redirects led; values of parameters whose names are those of secrets are hidden.
    reason: why it failed; null for the other outcomes unless stale.
    status: of the last answer; null without one.
    bytes: of the body on disk.
    sha256: of the body on disk, 64 hex digits.
    path: of the body, relative to the out folder; or of the WARC segment that has it.
    offset: of the body's record in that segment; null where path is the body.
    length: of that record, in bytes.
    etag: of what was stored or is unchanged; null where the host gave none that can be sent back.
    last_modified: the same.
    content_encoding: the body on disk is still compressed so, as it was sent; null where it is plain.
    lines: how many records the body holds; null unless the fetch asks for lines.
    bad_line: the number of the first line that is no JSON, from 1.
    stale: the host is down, and path is what was stored before; reason says what was wrong.
    unverified: only the end of the connection ended the body, so nothing shows that it is whole.
    attempts: tries, the last one included; bounded by the policy.
    throttles: waits that the host asked for; they charge no attempt.
    interruptions: deploys, crashes, a full disk; they charge no attempt.
    timings: where the time went.
    meta: that of the fetch.
    retry_of: the id of the fetch that failed and was submitted again as this one.
    method: that of the fetch; null if the worker could not tell.
    dest: the same.
    key: the same.
    omitted: the names of the other fields that the fetch has set; null unless it failed or was cancelled.
    """

    id: str
    url: str
    outcome: Outcome
    worker: str
    final_url: str | None = None
    reason: Reason | None = None
    status: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    path: str | None = None
    offset: int | None = None
    length: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    content_encoding: str | None = None
    lines: int | None = None
    bad_line: int | None = None
    stale: bool = False
    unverified: bool = False
    attempts: int = 0
    throttles: int = 0
    interruptions: int = 0
    timings: Timings = Timings()
    meta: Any = None
    retry_of: str | None = None
    method: str | None = None
    dest: str | None = None
    key: str | None = None
    omitted: list[str] | None = None


def _priority(value: str) -> Priority:
    try:
        return Priority(value)
    except ValueError:
        raise InvalidFetchError(f"priority: {value!r} is not one of {', '.join(Priority)}") from None


_values = attrgetter(*Fetch.__struct_fields__)


def check_types(fetch: Fetch) -> None:
    """Require of each value the type of its field: the JSON of another one is not read as a fetch.

    Raises InvalidFetchError.
    """
    fault = _wrong_type(tuple(map(type, _values(fetch))))
    if fault is not None:
        raise InvalidFetchError(fault)


@lru_cache(maxsize=1024)
def _wrong_type(kinds: tuple[type, ...]) -> str | None:
    """Return which field has a value of a type that its JSON would not be read as, None if none has."""
    for field, kind in zip(msgspec.structs.fields(Fetch), kinds, strict=True):
        hints = field.type.__args__ if isinstance(field.type, UnionType) else (field.type,)
        wanted = tuple(get_origin(hint) or hint for hint in hints)
        if field.type is not Any and not issubclass(kind, wanted):
            names = " or ".join("None" if one is NoneType else one.__name__ for one in wanted)
            return f"{field.name}: is of type {kind.__name__}, not {names}"
    return None


_fetch_decoder = msgspec.json.Decoder(Fetch)
_result_decoder = msgspec.json.Decoder(Result)
encode = msgspec.json.Encoder().encode


def decode_fetch(line: bytes | str) -> Fetch:
    """Decode one Fetch from JSON; raises InvalidFetchError."""
    try:
        text = line.encode() if isinstance(line, str) else line
        if len(text) > MAX_MESSAGE_BYTES:
            raise InvalidFetchError(f"the fetch has more than {MAX_MESSAGE_BYTES} bytes")
        return _fetch_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidFetchError(str(error)) from None
    except RecursionError:
        raise InvalidFetchError(TOO_DEEP) from None


FINGERPRINT_BITS = 48


def fingerprint_of(fetch_json: bytes) -> int:
    """Return a hash of a fetch, given its JSON as this module encodes it."""
    return int.from_bytes(hashlib.blake2b(fetch_json, digest_size=FINGERPRINT_BITS // 8).digest())


def record_of(fetch_json: bytes, deadline_ms: int) -> int:
    """Return what the record of its batch has for a fetch with this JSON and deadline (`keys.record`)."""
    return (fingerprint_of(fetch_json) + deadline_ms) % (1 << FINGERPRINT_BITS) or 1


def decode_result(line: bytes) -> Result:
    """Decode one Result from JSON; raises msgspec.DecodeError."""
    return _result_decoder.decode(line)


def as_fetch(item: "Fetch | str | Mapping[str, Any]") -> Fetch:
    """Return the Fetch of a Fetch, a URL, or a mapping of the JSON fields.

    Raises InvalidFetchError for everything else.
    """
    if isinstance(item, Fetch):
        return item
    if isinstance(item, str):
        return Fetch(url=item)
    try:
        given: Any = item
        fetch: Fetch = msgspec.convert(dict(given) if isinstance(given, Mapping) else given, Fetch | str)
    except msgspec.ValidationError as error:
        raise InvalidFetchError(str(error)) from None
    except RecursionError:
        raise InvalidFetchError(TOO_DEEP) from None
    return fetch
