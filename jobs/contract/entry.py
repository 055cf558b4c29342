"""The entry of a fetch in a lane: the fetch, its counters, its redirects and its partial file. Pure.

A serialized entry is the fetch ID (25 characters), the deadline (13 digits, Unix ms by Redis's clock) and
JSON. The fixed head lets Lua read both without parsing the JSON.
"""

import re
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import msgspec

from fetchfleet.jobs.contract.checks import field_checks
from fetchfleet.jobs.contract.checks.conditions import headers_of, is_etag
from fetchfleet.jobs.contract.fetch import (
    CONTRACT_VERSION,
    MAX_FETCH_BYTES,
    Fetch,
    check_types,
    record_of,
    version_of,
)
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of, is_fetch_id
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.jobs.contract.urls import UrlError, lane_of_name, lane_of_url, parse_url, shown_origin
from fetchfleet.jobs.errors import InvalidFetchError, shortened

ENTRY_VERSION = CONTRACT_VERSION
DEADLINE_CHARS = 13
HEAD_CHARS = FETCH_ID_CHARS + DEADLINE_CHARS

MAX_HOPS = 10
"""Maximum number of redirects that a fetch follows."""
MAX_ENTRY_BYTES = 2 * MAX_FETCH_BYTES + (64 << 10)
"""Largest entry: a fetch, and a hop that repeats its body."""
MAX_VALIDATOR_CHARS = 256
"""Longest validator of a partial file: it is part of the entry in Redis."""

_CANONICAL_GROWTH = 5
"""Bound on the growth of another program's JSON in canonical form: 1e9 becomes 1000000000.0."""
_HEAD = re.compile(rb"([0-9a-f]{16}-[0-9a-f]{8})([0-9]{13})")
_URL_DIGEST = re.compile(r"[0-9a-f]{32}")
_PRINTABLE = re.compile(r"[ -~]+")

Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Size = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]


class BadEntryError(ValueError):
    """A value in a lane is not an entry of a fetch."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class TooLargeEntryError(BadEntryError):
    """An entry has more than MAX_ENTRY_BYTES, or its fetch more than MAX_FETCH_BYTES."""


class NewerEntryError(BadEntryError):
    """An entry needs a newer worker."""

    def __init__(self, message: str, fetch_id: str, deadline_ms: int, outline: "_Outline") -> None:
        super().__init__(message)
        self.fetch_id = fetch_id
        self.deadline_ms = deadline_ms
        self.url = _canonical(_decode_fetch_outline(outline.fetch).url)
        """Canonical URL of its fetch; "" if it cannot be read."""
        self.record = record_of(bytes(outline.fetch), deadline_ms)
        """Value of its fetch in the record of its batch."""
        self._outline = outline

    def may_wait_in(self, lane: str) -> bool:
        """Return whether the lane may hold the entry; True if this version cannot tell."""
        hop = self._outline.hop
        url = hop.get("url") if isinstance(hop, dict) else None
        hop_url = _canonical(url) if isinstance(url, str) else ""
        hops = self._outline.hops if isinstance(self._outline.hops, int) else MAX_HOPS
        unread = not self.url or (hop is not None and not hop_url) or (hops and hop is None)
        return bool(unread) or _may_wait_in(lane, self.url, hop_url or None, hops)


class Hop(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request: that of the fetch, or the one after a redirect."""

    method: str
    url: str
    """Canonical URL."""
    headers: tuple[tuple[str, str], ...] = ()
    """Headers that may be sent to the host of the URL."""
    body: str | None = None
    body_base64: str | None = None
    body_file: str | None = None

    def __repr__(self) -> str:
        return f"<Hop {self.method} {shown_origin(self.url)}>"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        """Show method and origin only in a traceback of rich: the rest may be secret."""
        return [("method", self.method), ("origin", shown_origin(self.url))]

    @property
    def has_body(self) -> bool:
        """True if the request has a body, from any source."""
        return (self.body, self.body_base64, self.body_file) != (None, None, None)


class PartialNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A partial file on the disk of a worker, and the conditions to request only the rest of the body."""

    token: Size
    """Fencing token of the lane when the file was written; part of the file name."""
    offset_bytes: Annotated[int, msgspec.Meta(ge=1, lt=10**18)]
    """Bytes that are safely on disk."""
    of: str
    """Digest of the URL, 32 hex digits."""
    etag: str | None = None
    """Strong ETag of the resource; either this or `last_modified`."""
    last_modified: str | None = None
    total_bytes: Size | None = None
    """Length of the whole body, if known."""


MAX_TRIED = 8
"""Maximum number of worker settings that may each end an attempt before the fetch ends."""

MAX_RETRY_WAITS = 8
"""Maximum number of waits for a retry that an entry remembers, the last ones."""

Millisecond = Annotated[int, msgspec.Meta(ge=0, lt=10**15)]
RetryWaits = Annotated[tuple[tuple[Millisecond, Millisecond], ...], msgspec.Meta(max_length=MAX_RETRY_WAITS)]

TriedPlace = Annotated[str, msgspec.Meta(min_length=1, max_length=80, pattern=r"^[!-~]+$")]


class EntryData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The JSON of an entry."""

    v: int = 1  # version of the contract that a worker must know to read the entry
    fetch: Fetch
    attempts: Count = 0  # failed attempts, bounded by the policy
    throttles: Count = 0  # times that the host asked to back off
    interruptions: Count = 0  # deploys, crashes, outages and full disks
    crashes: Count = 0  # interruptions in which the worker died (worker/fetch/rules/crashes.py)
    doubts: Count = 0  # quarters of a crash, for deaths that may have another cause
    last: Reason | None = None  # reason the fetch waits again
    # Worker settings that ended an attempt; other workers try the fetch (worker/fetch/rules/abilities.py).
    tried: Annotated[tuple[TriedPlace, ...], msgspec.Meta(max_length=MAX_TRIED)] = ()
    hop: Hop | None = None  # the next request, after redirects
    hops: Annotated[int, msgspec.Meta(ge=0, le=MAX_HOPS)] = 0  # number of redirects
    begun: bool = False  # start marker: the request may have been sent
    outlived: bool = False  # the worker lived for a while after the start marker
    part: PartialNote | None = None  # the partial file of the body
    # Start and end (Unix ms by Redis's clock) of the last waits for a retry, for the log line of the fetch.
    retry_waits: RetryWaits = ()
    retry_of: str | None = None  # ID of the failed fetch that was submitted again as this one


class Entry(EntryData, frozen=True, kw_only=True):
    """One waiting or claimed fetch."""

    id: str
    deadline_ms: int  # Unix ms by Redis's clock

    @property
    def batch_id(self) -> str:
        """The batch ID of the fetch."""
        return batch_of(self.id)

    @property
    def method(self) -> str:
        """The method of the next request."""
        return self.fetch.method if self.hop is None else self.hop.method

    @property
    def url(self) -> str:
        """The URL of the next request."""
        return self.fetch.url if self.hop is None else self.hop.url

    @property
    def request(self) -> Hop:
        """The next request."""
        if self.hop is not None:
            return self.hop
        fetch = self.fetch
        headers = tuple(fetch.headers.items())
        if fetch.etag is not None or fetch.last_modified is not None:
            headers += headers_of(fetch.etag, fetch.last_modified)
        return Hop(fetch.method, fetch.url, headers, fetch.body, fetch.body_base64, fetch.body_file)

    def may_wait_in(self, lane: str) -> bool:
        """Return whether the lane may hold the entry: it belongs to the host of its next request.

        It may also wait in the lane of the host that redirected it.
        """
        if self.hop is None and lane_of_url(self.fetch.url) == lane:
            return True
        return _may_wait_in(lane, self.fetch.url, None if self.hop is None else self.hop.url, self.hops)

    def is_recorded(self, record: int, serialized: bytes) -> bool:
        """Return whether the value in the record of the batch is that of this fetch.

        serialized: the entry as it was parsed. Most entries are only a fetch, as the producer encoded it.
        """
        if serialized.startswith(_FETCH_ONLY, HEAD_CHARS):
            fetch_json = serialized[HEAD_CHARS + len(_FETCH_ONLY) : -1]
            if record == record_of(fetch_json, self.deadline_ms):
                return True
        return record == record_of(_encode(self.fetch), self.deadline_ms)

    @property
    def submitted_ms(self) -> int:
        """Unix ms of the submit, by Redis's clock."""
        return self.deadline_ms - self.fetch.lifetime_ms


class _FetchOutline(msgspec.Struct):
    url: str = ""


class _Outline(msgspec.Struct):
    """The fields that entries of every version have."""

    v: int = 1
    fetch: msgspec.Raw = msgspec.Raw(b"{}")
    hop: Any = None
    hops: Any = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(EntryData).decode
_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_fetch_outline = msgspec.json.Decoder(_FetchOutline).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FETCH_ONLY = b'{"fetch":'
_BARE_BYTES = HEAD_CHARS + len('{"fetch":{"url":""}}')
_NO_BODY = (None, None, None)


def serialize_new_entry(fetch_id: str, fetch: Fetch, retry_of: str | None = None) -> bytes:
    """Serialize the entry of a new fetch, with the time allowed in ms in place of the deadline.

    Raises InvalidFetchError if it is too long, cannot be JSON, or has a value of the wrong type.
    """
    try:
        serialized = _head(fetch_id, fetch.lifetime_ms) + _encode(EntryData(fetch=fetch, retry_of=retry_of))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidFetchError(f"meta: cannot be JSON: {error}") from None
    # A fetch with a URL only, which is ASCII without quotes, has no value to check and is of version 1.
    if len(serialized) != _BARE_BYTES + len(fetch.url):
        check_types(fetch)
        if (version := version_of(fetch)) > 1:
            serialized = serialized[:HEAD_CHARS] + b'{"v":%d,' % version + serialized[HEAD_CHARS + 1 :]
    if len(serialized) > MAX_FETCH_BYTES:
        raise InvalidFetchError(f"the fetch has more than {MAX_FETCH_BYTES} bytes as JSON; shorten it")
    return serialized


def with_deadline(serialized: bytes, now_ms: int) -> bytes:
    """Return a new serialized entry with its deadline, as submit.lua stores it at now_ms."""
    fetch_id, allowed_ms = _split_head(serialized)
    return _head(fetch_id, now_ms + allowed_ms) + serialized[HEAD_CHARS:]


def serialize_entry(entry: Entry) -> bytes:
    """Serialize the entry."""
    data = EntryData(**{name: getattr(entry, name) for name in EntryData.__struct_fields__})
    return _head(entry.id, entry.deadline_ms) + _encode(data)


def parse_entry(serialized: bytes) -> Entry:
    """Parse a serialized entry. Redis is not trusted: anything that a worker cannot have written is invalid.

    Raises NewerEntryError for an entry of a newer version, TooLargeEntryError or BadEntryError.
    """
    if len(serialized) > MAX_ENTRY_BYTES:
        raise TooLargeEntryError(f"has {len(serialized)} bytes; the limit is {MAX_ENTRY_BYTES}")
    fetch_id, deadline_ms = _split_head(serialized)
    try:
        data = _decode(serialized[HEAD_CHARS:])
    except _UNREADABLE as error:
        _refuse(serialized, fetch_id, deadline_ms, str(error))
    if not 1 <= data.v <= ENTRY_VERSION:
        _refuse(serialized, fetch_id, deadline_ms, f"version {data.v} is not 1 to {ENTRY_VERSION}")
    if len(serialized) * _CANONICAL_GROWTH > MAX_FETCH_BYTES and len(_encode(data.fetch)) > MAX_FETCH_BYTES:
        raise TooLargeEntryError(f"{fetch_id}: the fetch has more than {MAX_FETCH_BYTES} bytes as JSON")
    hop = data.hop
    if hop is not None or data.hops or data.part is not None or data.retry_of is not None:
        try:
            if data.retry_of is not None and not is_fetch_id(data.retry_of):
                raise InvalidFetchError("retry_of: is not a fetch ID")  # noqa: TRY301 reported as the others
            hop = _checked_hop(data.fetch, hop, data.hops)
            if data.part is not None:
                _check_part(data.part)
        except InvalidFetchError as error:
            raise BadEntryError(f"{fetch_id}: {error}") from None
    return Entry(
        id=fetch_id,
        deadline_ms=deadline_ms,
        v=data.v,
        fetch=data.fetch,
        attempts=data.attempts,
        throttles=data.throttles,
        interruptions=data.interruptions,
        crashes=data.crashes,
        doubts=data.doubts,
        last=data.last,
        tried=data.tried,
        hop=hop,
        hops=data.hops,
        begun=data.begun,
        outlived=data.outlived,
        part=data.part,
        retry_waits=data.retry_waits,
        retry_of=data.retry_of,
    )


def _checked_hop(fetch: Fetch, hop: Hop | None, hops: int) -> Hop | None:
    """Return the hop with its URL in canonical form. Raises InvalidFetchError.

    A redirect keeps the request, removes parts of it, or changes it to GET (worker/fetch/rules/redirects.py).
    """
    if (hop is None) != (hops == 0):
        raise InvalidFetchError(f"hops: {hops} redirects {'without' if hop is None else 'with'} a hop")
    if hop is None:
        return None
    same_method = hop.method == fetch.method
    if not same_method and (hop.method != "GET" or fetch.method == "HEAD"):
        raise InvalidFetchError(f"hop: no redirect changes {fetch.method} to {hop.method}")
    body = (fetch.body, fetch.body_base64, fetch.body_file) if same_method else _NO_BODY
    if (hop.body, hop.body_base64, hop.body_file) != body:
        raise InvalidFetchError("hop: has another body than the fetch")
    allowed = {*fetch.headers.items(), *headers_of(fetch.etag, fetch.last_modified)}
    if not allowed.issuperset(hop.headers) or len(set(hop.headers)) != len(hop.headers):
        raise InvalidFetchError("hop: has headers that the fetch does not have")
    url = field_checks.url(hop.url)
    return hop if url == hop.url else msgspec.structs.replace(hop, url=url)


def _check_part(part: PartialNote) -> None:
    """Require the digest of a URL, and one strong validator. Raises InvalidFetchError."""
    if _URL_DIGEST.fullmatch(part.of) is None:
        raise InvalidFetchError("part: has no digest of a URL")
    etag, date = part.etag, part.last_modified
    is_valid = (
        etag is not None and is_etag(etag) and not etag.startswith("W/")
        if date is None
        else (etag is None and _PRINTABLE.fullmatch(date) is not None)
    )
    if not is_valid or len(etag or date or "") > MAX_VALIDATOR_CHARS:
        raise InvalidFetchError("part: has no strong validator")
    if part.total_bytes is not None and part.offset_bytes > part.total_bytes:
        raise InvalidFetchError("part: has more bytes than the whole body")


def _may_wait_in(lane: str, fetch_url: str, hop_url: str | None, hops: int) -> bool:
    """Return whether a lane may hold an entry with these canonical URLs.

    After several redirects the entry does not name the host that redirected it, so any lane may hold it.
    """
    hosts = {lane_of_url(fetch_url)}
    if hop_url is not None:
        if hops > 1:
            return True
        hosts.add(lane_of_url(hop_url))
    return lane_of_name(lane) in hosts


def _canonical(url: str) -> str:
    """Return the URL in canonical form, "" if it is invalid."""
    with suppress(UrlError):
        return parse_url(url).text
    return ""


def _refuse(serialized: bytes, fetch_id: str, deadline_ms: int, note: str) -> NoReturn:
    """Raise NewerEntryError if the entry has a newer version, else BadEntryError."""
    with suppress(*_UNREADABLE):
        outline = _decode_outline(serialized[HEAD_CHARS:])
        if outline.v > ENTRY_VERSION:
            note = f"{fetch_id}: version {outline.v} is newer than {ENTRY_VERSION}, which this worker knows"
            raise NewerEntryError(note, fetch_id, deadline_ms, outline)
    raise BadEntryError(f"{fetch_id}: {note}")


def _head(fetch_id: str, deadline_ms: int) -> bytes:
    return f"{fetch_id}{deadline_ms:0{DEADLINE_CHARS}d}".encode()


def _split_head(serialized: bytes) -> tuple[str, int]:
    found = _HEAD.match(serialized)
    if found is None:
        raise BadEntryError(f"not an entry: {serialized[:60]!r}")
    fetch_id, deadline = found.groups()
    return fetch_id.decode(), int(deadline)
