"""The entry of a fetch in a lane: the fetch, its counters, and the state of its redirects. Pure.

A serialized entry is one string: the id (25 characters), the deadline (13 digits, Unix ms by Redis's clock),
then JSON. The fixed head lets Lua read both without parsing the JSON.
"""

import re
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import msgspec

from fetchfleet.jobs.contract import field_checks
from fetchfleet.jobs.contract.conditions import headers_of, is_etag
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of, is_fetch_id
from fetchfleet.jobs.contract.model import MAX_FETCH_BYTES, Fetch, Reason, check_types, record_of
from fetchfleet.jobs.contract.urls import (
    UrlError,
    lane_of_name,
    lane_of_url,
    parse_url,
    shown_origin,
)
from fetchfleet.jobs.errors import InvalidFetchError, shortened

ENTRY_VERSION = 1
DEADLINE_CHARS = 13
HEAD_CHARS = FETCH_ID_CHARS + DEADLINE_CHARS

MAX_HOPS = 10
"""How many redirects a fetch follows."""
MAX_ENTRY_BYTES = 2 * MAX_FETCH_BYTES + (64 << 10)
"""Of a fetch, with a hop that repeats its body."""
MAX_VALIDATOR_CHARS = 256
"""Of a partial body: the validator is kept in Redis with the fetch."""

_GROWTH = 5
"""JSON of another program may be up to four times as long in canonical form: 1e9 becomes 1000000000.0."""
_HEAD = re.compile(rb"([0-9a-f]{16}-[0-9a-f]{8})([0-9]{13})")
_URL_DIGEST = re.compile(r"[0-9a-f]{32}")
_PRINTABLE = re.compile(r"[ -~]+")

Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Size = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]


class BadEntryError(ValueError):
    """A value in a lane that is not an entry."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class TooLargeEntryError(BadEntryError):
    """An entry of more than MAX_ENTRY_BYTES, or whose fetch has more than MAX_FETCH_BYTES."""


class NewerEntryError(BadEntryError):
    """An entry that only a newer worker can read. url, record: of its fetch; the URL may be ""."""

    def __init__(self, message: str, fetch_id: str, deadline_ms: int, outline: "_Outline") -> None:
        super().__init__(message)
        self.fetch_id = fetch_id
        self.deadline_ms = deadline_ms
        self.url = _canonical(_decode_fetch_outline(outline.fetch).url)
        self.record = record_of(bytes(outline.fetch), deadline_ms)
        self._outline = outline

    def may_wait_in(self, lane: str) -> bool:
        """Return whether the lane may hold it, as far as this version can read it."""
        hop = self._outline.hop
        url = hop.get("url") if isinstance(hop, dict) else None
        hop_url = _canonical(url) if isinstance(url, str) else ""
        hops = self._outline.hops if isinstance(self._outline.hops, int) else MAX_HOPS
        unread = not self.url or (hop is not None and not hop_url) or (hops and hop is None)
        return bool(unread) or _may_wait_in(lane, self.url, hop_url or None, hops)


class Hop(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request: the fetch's own, or the one that a redirect asks for in its place.

    `url` is canonical text; the headers are those that may be sent to it.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    body_base64: str | None = None
    body_file: str | None = None

    def __repr__(self) -> str:
        return f"<Hop {self.method} {shown_origin(self.url)}>"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        """Limit what rich shows in a traceback: the rest may be secret."""
        return [("method", self.method), ("origin", shown_origin(self.url))]

    @property
    def has_body(self) -> bool:
        """True if the request has a body, from any source."""
        return (self.body, self.body_base64, self.body_file) != (None, None, None)


class PartialNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A partial file on a worker's disk, and what must still hold to request only the rest of the body.

    token: of the lane while it was written; part of the file's name. offset_bytes: how much is safely on
    disk. of: the digest of its URL. etag or last_modified: the version of the resource; total_bytes: its
    length, if known.
    """

    token: Size
    offset_bytes: Annotated[int, msgspec.Meta(ge=1, lt=10**18)]
    of: str
    etag: str | None = None
    last_modified: str | None = None
    total_bytes: Size | None = None


MAX_TRIED = 8
"""In how many places a fetch is tried in vain before it ends."""

TriedPlace = Annotated[str, msgspec.Meta(min_length=1, max_length=80, pattern=r"^[!-~]+$")]


class EntryData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The JSON of an entry.

    attempts: failures, bounded by the policy. throttles: waits that the host asked for. interruptions:
    deploys, crashes and outages; crashes: the interruptions in which the worker died; doubts: quarters of a
    crash, for deaths that may have another cause. last: why the fetch waits again. tried: settings of workers
    that ended an attempt (worker/fetch/rules/abilities.py): others try it. hop: the request in place
    of the fetch's own, after `hops` redirects. begun: the worker that claimed the fetch was about to start
    it, written only if a crash would leave that in doubt; outlived: its worker was alive a while after that
    (worker/fetch/rules/crashes.py). part: the partial file of its body. retry_of: the fetch that failed and
    was submitted again as this one.
    """

    v: int = ENTRY_VERSION
    fetch: Fetch
    attempts: Count = 0
    throttles: Count = 0
    interruptions: Count = 0
    crashes: Count = 0
    doubts: Count = 0
    last: Reason | None = None
    tried: Annotated[tuple[TriedPlace, ...], msgspec.Meta(max_length=MAX_TRIED)] = ()
    hop: Hop | None = None
    hops: Annotated[int, msgspec.Meta(ge=0, le=MAX_HOPS)] = 0
    begun: bool = False
    outlived: bool = False
    part: PartialNote | None = None
    retry_of: str | None = None


class Entry(EntryData, frozen=True, kw_only=True):
    """One waiting or claimed fetch. deadline_ms is Unix time by Redis's clock."""

    id: str
    deadline_ms: int

    @property
    def batch_id(self) -> str:
        """The batch this fetch belongs to."""
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
        """Return whether the lane may hold it.

        Its next request goes to the lane's host, or it waits there for its redirect to another host, as the
        redirecting host asked.
        """
        if self.hop is None and lane_of_url(self.fetch.url) == lane:
            return True
        return _may_wait_in(lane, self.fetch.url, None if self.hop is None else self.hop.url, self.hops)

    def is_recorded(self, record: int, serialized: bytes) -> bool:
        """Return whether the record of its batch has this fetch; serialized: the entry as it was parsed.

        Most entries hold nothing but their fetch, as the producer has encoded it.
        """
        if serialized.startswith(_ONLY_FETCH, HEAD_CHARS):
            only = serialized[HEAD_CHARS + len(_ONLY_FETCH) : -1]
            if record == record_of(only, self.deadline_ms):
                return True
        return record == record_of(_encode(self.fetch), self.deadline_ms)

    @property
    def submitted_ms(self) -> int:
        """The time of the submit, Unix ms by Redis's clock."""
        return self.deadline_ms - self.fetch.deadline_ms


class _FetchOutline(msgspec.Struct):
    url: str = ""


class _Outline(msgspec.Struct):
    """The fields that every version of an entry has."""

    v: int = ENTRY_VERSION
    fetch: msgspec.Raw = msgspec.Raw(b"{}")
    hop: Any = None
    hops: Any = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(EntryData).decode
_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_fetch_outline = msgspec.json.Decoder(_FetchOutline).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ONLY_FETCH = b'{"fetch":'
_BARE_BYTES = HEAD_CHARS + len('{"fetch":{"url":""}}')
_NO_BODY = (None, None, None)


def serialize_new_entry(fetch_id: str, fetch: Fetch, retry_of: str | None = None) -> bytes:
    """Serialize the entry of a new fetch; its head has the time allowed in place of the deadline.

    Raises InvalidFetchError if it is too long, cannot be JSON, or has a value of the wrong type.
    """
    try:
        serialized = _head(fetch_id, fetch.deadline_ms) + _encode(EntryData(fetch=fetch, retry_of=retry_of))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidFetchError(f"meta: cannot be JSON: {error}") from None
    # A fetch of a URL alone, which is ASCII without quotes, has no value of another type.
    if len(serialized) != _BARE_BYTES + len(fetch.url):
        check_types(fetch)
    if len(serialized) > MAX_FETCH_BYTES:
        raise InvalidFetchError(f"has more than {MAX_FETCH_BYTES} bytes as JSON")
    return serialized


def with_deadline(serialized: bytes, now_ms: int) -> bytes:
    """Return a new serialized entry as it is in a lane after a submit at now_ms."""
    fetch_id, allowed_ms = _split_head(serialized)
    return _head(fetch_id, now_ms + allowed_ms) + serialized[HEAD_CHARS:]


def serialize_entry(entry: Entry) -> bytes:
    """Serialize the entry."""
    data = EntryData(**{name: getattr(entry, name) for name in EntryData.__struct_fields__})
    return _head(entry.id, entry.deadline_ms) + _encode(data)


def parse_entry(serialized: bytes) -> Entry:
    """Parse a serialized entry. Nothing in Redis is trusted: only what a worker can have written is an entry.

    Raises NewerEntryError for an entry of a newer worker, else BadEntryError.
    """
    if len(serialized) > MAX_ENTRY_BYTES:
        raise TooLargeEntryError(f"has {len(serialized)} bytes, more than {MAX_ENTRY_BYTES}")
    fetch_id, deadline_ms = _split_head(serialized)
    try:
        data = _decode(serialized[HEAD_CHARS:])
    except _UNREADABLE as error:
        _refuse(serialized, fetch_id, deadline_ms, str(error))
    if data.v != ENTRY_VERSION:
        _refuse(serialized, fetch_id, deadline_ms, f"version {data.v} is not {ENTRY_VERSION}")
    if len(serialized) * _GROWTH > MAX_FETCH_BYTES and len(_encode(data.fetch)) > MAX_FETCH_BYTES:
        raise TooLargeEntryError(f"{fetch_id}: the fetch has more than {MAX_FETCH_BYTES} bytes as JSON")
    hop = data.hop
    if hop is not None or data.hops or data.part is not None or data.retry_of is not None:
        try:
            _check_retry_of(data.retry_of)
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
        retry_of=data.retry_of,
    )


def _check_retry_of(retry_of: str | None) -> None:
    """Require the id of a fetch, if given."""
    if retry_of is not None and not is_fetch_id(retry_of):
        raise InvalidFetchError("retry_of: is no id of a fetch")


def _checked_hop(fetch: Fetch, hop: Hop | None, hops: int) -> Hop | None:
    """Return the hop with its URL in canonical form.

    It asks for nothing that the fetch does not: redirects keep the request, drop parts of it, or turn it into
    a GET (worker/fetch/rules/redirects.py). Raises InvalidFetchError.
    """
    if (hop is None) != (hops == 0):
        raise InvalidFetchError(f"hops: {hops} redirects {'without' if hop is None else 'with'} a hop")
    if hop is None:
        return None
    same_method = hop.method == fetch.method
    if not same_method and (hop.method != "GET" or fetch.method == "HEAD"):
        raise InvalidFetchError("hop: no redirect of the fetch has that method")
    body = (fetch.body, fetch.body_base64, fetch.body_file) if same_method else _NO_BODY
    if (hop.body, hop.body_base64, hop.body_file) != body:
        raise InvalidFetchError("hop: its body is not that of the fetch")
    named = {*fetch.headers.items(), *headers_of(fetch.etag, fetch.last_modified)}
    if not named.issuperset(hop.headers) or len(set(hop.headers)) != len(hop.headers):
        raise InvalidFetchError("hop: has header fields that the fetch has not")
    url = field_checks.url(hop.url)
    return hop if url == hop.url else msgspec.structs.replace(hop, url=url)


def _check_part(part: PartialNote) -> None:
    """Require a digest of a URL, and one validator that may be sent back; raises InvalidFetchError."""
    if _URL_DIGEST.fullmatch(part.of) is None:
        raise InvalidFetchError("part: is of no URL")
    etag, date = part.etag, part.last_modified
    fits = (
        etag is not None and is_etag(etag) and not etag.startswith("W/")
        if date is None
        else (etag is None and _PRINTABLE.fullmatch(date) is not None)
    )
    if not fits or len(etag or date or "") > MAX_VALIDATOR_CHARS:
        raise InvalidFetchError("part: has no validator that may be sent back")
    if part.total_bytes is not None and part.offset_bytes > part.total_bytes:
        raise InvalidFetchError("part: is longer than the whole body")


def _may_wait_in(lane: str, fetch_url: str, hop_url: str | None, hops: int) -> bool:
    """Return whether a lane may hold an entry with these canonical URLs.

    After one redirect the redirecting host is that of the fetch; after several the entry does not name it.
    """
    hosts = {lane_of_url(fetch_url)}
    if hop_url is not None:
        if hops > 1:
            return True
        hosts.add(lane_of_url(hop_url))
    return lane_of_name(lane) in hosts


def _canonical(url: str) -> str:
    """Return the URL in canonical form, "" if it is none."""
    with suppress(UrlError):
        return parse_url(url).text
    return ""


def _refuse(serialized: bytes, fetch_id: str, deadline_ms: int, note: str) -> NoReturn:
    """Raise NewerEntryError if the entry is of a newer version, else BadEntryError."""
    with suppress(*_UNREADABLE):
        outline = _decode_outline(serialized[HEAD_CHARS:])
        if outline.v > ENTRY_VERSION:
            note = f"{fetch_id}: version {outline.v}; {ENTRY_VERSION} is the newest known here"
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
