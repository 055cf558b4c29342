"""A Fetch: one HTTP request and where its body goes, as JSON in Redis. Pure.

A Fetch is checked when it is made or decoded, so every Fetch object is valid.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, get_origin

import msgspec

from fetchfleet.jobs.contract import names
from fetchfleet.jobs.contract.checks import accept, body_checks, conditions, field_checks, trace_context
from fetchfleet.jobs.contract.checks.accept import Accept
from fetchfleet.jobs.contract.urls import UrlError, canonical_url, shown_origin
from fetchfleet.jobs.errors import InvalidFetchError

TOO_DEEP = "is nested too deeply (recursion limit)"
"""The error for nesting that exceeds the interpreter's stack; Python's own text varies by version."""

MAX_FETCH_BYTES = 2 << 20
"""Largest fetch as JSON: a body of 1 MiB in base64, and the other fields."""
CONTRACT_VERSION = 2
"""Newest version of the contract: of fetches, and so of the messages and entries that hold them."""
DEFAULT_DEADLINE_S = 24 * 3600.0
MAX_DEADLINE_S = 7 * 24 * 3600.0


class Priority(StrEnum):
    """The order of a lane's fetches; first in, first out within a priority."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


_UNSET = (None, None, False, None, None, None, None, None, None, None, None)
"""The defaults of fields that few fetches set, in the order in which `__post_init__` compares them."""


class Fetch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One HTTP request, and where its response body goes. Only `url` is required.

    Values are checked and put into canonical form when a Fetch is made or decoded. Raises InvalidFetchError,
    which names the field, the error and the remedy. A Fetch is immutable.

        Fetch(url="https://example.com/a.bin", dest="a.bin", headers={"Accept": "*/*"}, key="order 7")

    Request: url, method, headers, body or body_base64 or body_file, etag, last_modified, revalidate.
    Response: accept, retry_statuses, x_robots.
    Body: dest or name, if_exists, sha256, max_bytes, segments, decode, lines.
    Scheduling: priority, deadline_s, retry_unsafe, fallback, key. Context: traceparent, tracestate, meta.
    Each field is described below its definition, and in docs/api.md.
    """

    url: str
    """Absolute http or https URL, at most 8192 bytes, no user or password; kept in canonical form."""
    method: str = "GET"
    """GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS, in upper or lower case."""
    headers: dict[str, str] = {}
    """Request headers, at most 16 KiB; not those of the connection or framing (Host, Content-Length, …)."""
    body: str | None = None
    """Request body as text, sent as UTF-8, at most 1 MiB; not with GET, HEAD or OPTIONS."""
    body_base64: str | None = None
    """Request body in padded base64 (RFC 4648 §4), at most 1 MiB decoded; in place of `body`."""
    body_file: str | None = None
    """Request body from a file of any size: a relative path in the workers' in folder; in place of `body`."""
    dest: str | None = None
    """Relative path of the stored body in the workers' out folder; if unset, derived from the fetch ID.

    A `dest` with a placeholder of `name` is a `name`.
    """
    name: str | None = None
    """Template of that path, such as `{host}/{stem}{ext}`; in place of `dest`."""
    if_exists: str | None = None
    """Action on an existing file: "replace" it atomically (default of `dest`); "suffix": store the body under
    a name with the fetch ID, unless both are the same bytes (default of `name`); "skip": keep it; "fail"."""
    sha256: str | None = None
    """SHA-256 that the stored body must have, 64 hex digits; another fails with `digest_mismatch`."""
    max_bytes: int | None = None
    """Largest body in bytes; a larger one fails with `too_large`. The policy's limit applies too."""
    accept: Accept | None = None
    """Responses whose body is stored, by types, sizes and statuses; in place of the policy's `accept`."""
    retry_statuses: tuple[int, ...] | None = None
    """Further statuses that are retried, of 2xx, 4xx and 5xx; in place of the policy's `retry_statuses`."""
    x_robots: str | None = None
    """"obey": refuse a response whose X-Robots-Tag forbids its use; "ignore": store it; else the policy's."""
    segments: int | None = None
    """Ranges in which a large body is received at once, 1 to 16, GET only; 1: none. The policy's if unset."""
    etag: str | None = None
    """ETag of an earlier result, GET and HEAD only. If it still matches, the fetch ends as `unchanged`."""
    last_modified: str | None = None
    """Last-Modified of an earlier result, as `etag`; hosts ignore it if `etag` is set too."""
    revalidate: bool = False
    """Send the validators of the body that the workers stored, while its file is unmodified; GET only."""
    decode: bool = False
    """Request a compressed body and store it decoded; `sha256` and `max_bytes` apply to the decoded body."""
    lines: bool = False
    """Require JSON Lines, one JSON value a line; a line that is not JSON fails with `bad_line`."""
    priority: Priority = Priority.NORMAL
    """Order among the fetches of one host: high, normal or low; first in, first out within each."""
    deadline_s: float | None = None
    """Seconds from submit to the end, over all attempts and waits; at most 604800, 86400 if unset."""
    retry_unsafe: bool = False
    """Retry although the method is not idempotent (POST, PATCH); the host may get the request twice."""
    fallback: str | None = None
    """For a dead host: "stale" returns the body stored before, "none" fails. The policy's if unset."""
    sign: bool = False
    """Sign the request with the workers' secret. Set by the fleet for webhooks; no producer may set it."""
    traceparent: str | None = None
    """W3C Trace Context of the fetch, for logs; sent to hosts only if the policy sets `context`."""
    tracestate: str | None = None
    """W3C tracestate; needs `traceparent`."""
    key: str | None = None
    """Idempotency key, 1 to 200 bytes: for 24 h, or `deadline_s` if longer, one key is one fetch."""
    meta: Any = None
    """Any JSON value, at most 100 levels deep; returned in the result, never sent to the host."""

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
        if self.dest is not None or self.name is not None:
            self._check_place()
        if self.revalidate or self.etag is not None or self.last_modified is not None:
            conditions.check(
                self.method, self.headers.items(), self.etag, self.last_modified, revalidate=self.revalidate
            )
        rarely_set = (self.if_exists, self.max_bytes, self.decode, self.deadline_s, self.fallback)
        requirements = (self.accept, self.retry_statuses, self.x_robots)
        if (*rarely_set, self.sha256, self.key, self.segments, *requirements) != _UNSET:
            self._check_rarely_set()
        if self.sign and (self.method != "POST" or self.body is None):
            raise InvalidFetchError("sign: needs a POST with a body")
        if self.priority is not Priority.NORMAL:
            msgspec.structs.force_setattr(self, "priority", _priority(self.priority))
        if self.traceparent is not None or self.tracestate is not None:
            trace_context.check(self.traceparent, self.tracestate)
        if self.meta is not None:
            msgspec.structs.force_setattr(self, "meta", field_checks.meta(self.meta))

    def _check_place(self) -> None:
        if self.dest is not None:
            field_checks.dest(self.dest)
            if self.name is not None:
                raise InvalidFetchError("name: cannot be combined with dest; leave one of them out")
            if not names.is_template(self.dest):
                return
            msgspec.structs.force_setattr(self, "name", self.dest)
            msgspec.structs.force_setattr(self, "dest", None)
        assert self.name is not None
        names.parse(self.name)

    def _check_rarely_set(self) -> None:
        if_exists = field_checks.if_exists(self.if_exists, self.dest, self.name)
        msgspec.structs.force_setattr(self, "if_exists", if_exists)
        field_checks.max_bytes(self.max_bytes)
        field_checks.segments(self.segments)
        field_checks.decode(self.headers, wanted=self.decode)
        field_checks.deadline(self.deadline_s, MAX_DEADLINE_S)
        if self.deadline_s is not None:  # 30 and 30.0 are one JSON
            msgspec.structs.force_setattr(self, "deadline_s", float(self.deadline_s))
        field_checks.fallback(self.fallback)
        if self.sha256 is not None:
            msgspec.structs.force_setattr(self, "sha256", field_checks.sha256(self.sha256))
        if self.key is not None:
            field_checks.key(self.key)
        if self.retry_statuses is not None:
            retried = accept.statuses("retry_statuses", self.retry_statuses)
            msgspec.structs.force_setattr(self, "retry_statuses", retried)
        if self.x_robots is not None:
            accept.x_robots(self.x_robots)

    def __repr__(self) -> str:
        return f"<Fetch {self.method} {shown_origin(self.url)}>"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        """Show method and origin only in a traceback of rich: the rest may be secret."""
        return [("method", self.method), ("origin", shown_origin(self.url))]

    @property
    def is_plain(self) -> bool:
        """True if no field of the fetch needs a special case; the policy may still do so."""
        return not (
            self.decode
            or self.lines
            or self.revalidate
            or self.sign
            or self.method == "HEAD"
            or (self.segments is not None and self.segments > 1)
            or self.if_exists is not None
            or self.fallback == field_checks.Fallback.STALE
            or self.accept is not None
            or self.retry_statuses is not None
            or self.x_robots is not None
        )

    @property
    def on_existing(self) -> field_checks.IfExists:
        """The treatment of a file at the path of the body: `if_exists`, or its default."""
        if self.if_exists is not None:
            return field_checks.IfExists(self.if_exists)
        return field_checks.IfExists.REPLACE if self.name is None else field_checks.IfExists.SUFFIX

    def size_limit(self, policy_max_bytes: int) -> int:
        """Return the size limit of the body in bytes, the smaller of fetch and policy; 0 for no limit."""
        own = self.max_bytes or 0
        return own if own and not 0 < policy_max_bytes < own else policy_max_bytes

    @property
    def lifetime_ms(self) -> int:
        """The time allowed from submit to the end: `deadline_s` or its default, in ms."""
        return int((self.deadline_s or DEFAULT_DEADLINE_S) * 1000)


def _priority(value: str) -> Priority:
    try:
        return Priority(value)
    except ValueError:
        raise InvalidFetchError(f"priority: {value!r} is not one of {', '.join(Priority)}") from None


_VERSION_1_FIELDS = frozenset(
    {
        *("url", "method", "headers", "body", "body_base64", "body_file", "dest", "if_exists", "sha256"),
        *("max_bytes", "etag", "last_modified", "revalidate", "decode", "lines", "priority", "deadline_s"),
        *("retry_unsafe", "fallback", "traceparent", "tracestate", "key", "meta"),
    }
)
_LATER = [field for field in msgspec.structs.fields(Fetch) if field.name not in _VERSION_1_FIELDS]
_later_values = attrgetter(*(field.name for field in _LATER))
_LATER_DEFAULTS = tuple(field.default for field in _LATER)


def version_of(fetch: Fetch) -> int:
    """Return the version of the contract that introduced the newest field or value of the fetch.

    A message or an entry with the fetch states it, so that older workers leave it to newer ones.
    """
    is_first = _later_values(fetch) == _LATER_DEFAULTS and fetch.if_exists != field_checks.IfExists.SUFFIX
    return 1 if is_first else CONTRACT_VERSION


_values = attrgetter(*Fetch.__struct_fields__)


def check_types(fetch: Fetch) -> None:
    """Raise InvalidFetchError if a value does not have its field's type: its JSON could not be decoded."""
    fault = _wrong_type(tuple(map(type, _values(fetch))))
    if fault is not None:
        raise InvalidFetchError(fault)


@lru_cache(maxsize=1024)
def _wrong_type(kinds: tuple[type, ...]) -> str | None:
    """Return the error for the first value of a wrong type; None if every type fits."""
    for field, kind in zip(msgspec.structs.fields(Fetch), kinds, strict=True):
        hints = field.type.__args__ if isinstance(field.type, UnionType) else (field.type,)
        wanted = tuple(get_origin(hint) or hint for hint in hints)
        if field.type is not Any and not issubclass(kind, wanted):
            names = " or ".join("None" if one is NoneType else one.__name__ for one in wanted)
            return f"{field.name}: must be {names}, got {kind.__name__}"
    return None


_fetch_decoder = msgspec.json.Decoder(Fetch)
encode = msgspec.json.Encoder().encode


def decode_fetch(line: bytes | str) -> Fetch:
    """Decode one Fetch from JSON; raises InvalidFetchError."""
    try:
        text = line.encode() if isinstance(line, str) else line
        if len(text) > MAX_FETCH_BYTES:
            raise InvalidFetchError(f"the fetch has {len(text)} bytes; the limit is {MAX_FETCH_BYTES}")
        return _unsigned(_fetch_decoder.decode(text))
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidFetchError(str(error)) from None
    except RecursionError:
        raise InvalidFetchError(TOO_DEEP) from None


FINGERPRINT_BITS = 48


def fingerprint_of(fetch_json: bytes) -> int:
    """Return a hash of FINGERPRINT_BITS bits of a fetch, given its JSON as `encode` writes it."""
    return int.from_bytes(hashlib.blake2b(fetch_json, digest_size=FINGERPRINT_BITS // 8).digest())


def record_of(fetch_json: bytes, deadline_ms: int) -> int:
    """Return the value of a fetch in the record of its batch (`keys.record`); never 0."""
    return (fingerprint_of(fetch_json) + deadline_ms) % (1 << FINGERPRINT_BITS) or 1


def as_fetch(item: "Fetch | str | Mapping[str, Any]") -> Fetch:
    """Convert a URL, or a mapping of the JSON fields, to a Fetch; return a Fetch unchanged.

    Raises InvalidFetchError for everything else.
    """
    if isinstance(item, Fetch):
        return _unsigned(item)
    if isinstance(item, str):
        return Fetch(url=item)
    try:
        value: Any = item
        fetch: Fetch = msgspec.convert(dict(value) if isinstance(value, Mapping) else value, Fetch | str)
    except msgspec.ValidationError as error:
        raise InvalidFetchError(str(error)) from None
    except RecursionError:
        raise InvalidFetchError(TOO_DEEP) from None
    return _unsigned(fetch)


def _unsigned(fetch: Fetch) -> Fetch:
    """Return a fetch of a producer; raise InvalidFetchError if the fleet would sign it."""
    if fetch.sign:
        raise InvalidFetchError("sign: leave it out; the fleet signs webhooks only (notify of a submit)")
    return fetch
