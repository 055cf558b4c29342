"""The entry of a fetch in a lane: the fetch, its counters, and the state of its redirects. Pure.

A serialized entry is one string: the id (25 characters), the deadline (13 digits, Unix ms by Redis's clock),
then JSON. The fixed head lets Lua read both without parsing the JSON.
"""

from contextlib import suppress
from typing import Annotated

import msgspec

from fetchfleet.jobs.contract.conditions import headers_of
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of, is_fetch_id
from fetchfleet.jobs.contract.model import MAX_MESSAGE_BYTES, Fetch, Reason
from fetchfleet.jobs.contract.urls import shown_origin
from fetchfleet.jobs.errors import InvalidFetchError

ENTRY_VERSION = 1
DEADLINE_CHARS = 13
HEAD_CHARS = FETCH_ID_CHARS + DEADLINE_CHARS


class BadEntryError(ValueError):
    """A value in a lane that is not an entry."""


class NewerEntryError(BadEntryError):
    """An entry that only a newer worker can read. url: of its fetch, "" if it cannot be read."""

    def __init__(self, message: str, fetch_id: str, deadline_ms: int, url: str) -> None:
        super().__init__(message)
        self.fetch_id = fetch_id
        self.deadline_ms = deadline_ms
        self.url = url


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
        """Whether the request has a body, from any source."""
        return (self.body, self.body_base64, self.body_file) != (None, None, None)


class PartialNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A partial file on a worker's disk, and what must still hold to request only the rest of the body.

    token: of the lane while it was written; part of the file's name. offset_bytes: how much is safely on
    disk. of: the digest of its URL. etag or last_modified: the version of the resource; total_bytes: its
    length, if known.
    """

    token: Annotated[int, msgspec.Meta(ge=0)]
    offset_bytes: Annotated[int, msgspec.Meta(ge=1)]
    of: str
    etag: str | None = None
    last_modified: str | None = None
    total_bytes: int | None = None


class EntryData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The JSON of an entry.

    attempts: failures, bounded by the policy. throttles: waits that the host asked for. interruptions:
    deploys, crashes and outages; crashes: the interruptions in which the worker died; doubts: quarters of a
    crash, for deaths that may have another cause. last: why the fetch waits again. hop: the request in place
    of the fetch's own, after `hops` redirects. begun: the worker that claimed the fetch was about to start
    it, written only if a crash would leave that in doubt; outlived: its worker was alive a while after that
    (worker/fetch/rules/crashes.py). part: the partial file of its body. retry_of: the fetch that failed and
    was submitted again as this one.
    """

    v: int = ENTRY_VERSION
    fetch: Fetch
    attempts: int = 0
    throttles: int = 0
    interruptions: int = 0
    crashes: int = 0
    doubts: int = 0
    last: Reason | None = None
    hop: Hop | None = None
    hops: int = 0
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

    @property
    def submitted_ms(self) -> int:
        """The time of the submit, Unix ms by Redis's clock."""
        return self.deadline_ms - self.fetch.deadline_ms


class _FetchGlimpse(msgspec.Struct):
    url: str = ""


class _Glimpse(msgspec.Struct):
    """The fields that every version of an entry has."""

    v: int = ENTRY_VERSION
    fetch: _FetchGlimpse = msgspec.field(default_factory=_FetchGlimpse)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(EntryData).decode
_glimpse = msgspec.json.Decoder(_Glimpse).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def serialize_new_entry(fetch_id: str, fetch: Fetch, retry_of: str | None = None) -> bytes:
    """Serialize the entry of a new fetch; its head has the time allowed in place of the deadline.

    Raises InvalidFetchError if it is too long or cannot be JSON.
    """
    try:
        serialized = _head(fetch_id, fetch.deadline_ms) + _encode(EntryData(fetch=fetch, retry_of=retry_of))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidFetchError(f"meta: cannot be JSON: {error}") from None
    if len(serialized) > MAX_MESSAGE_BYTES:
        raise InvalidFetchError(f"has more than {MAX_MESSAGE_BYTES} bytes as JSON")
    return serialized


def placed(serialized: bytes, now_ms: int) -> bytes:
    """Return a new serialized entry as it is in a lane after a submit at now_ms."""
    fetch_id, allowed_ms = _split_head(serialized)
    return _head(fetch_id, now_ms + allowed_ms) + serialized[HEAD_CHARS:]


def serialize_entry(entry: Entry) -> bytes:
    """Serialize the entry."""
    data = EntryData(**{name: getattr(entry, name) for name in EntryData.__struct_fields__})
    return _head(entry.id, entry.deadline_ms) + _encode(data)


def parse_entry(serialized: bytes) -> Entry:
    """Parse a serialized entry. Nothing in Redis is trusted.

    Raises NewerEntryError for an entry of a newer worker, else BadEntryError.
    """
    fetch_id, deadline = _split_head(serialized)
    try:
        data = _decode(serialized[HEAD_CHARS:])
    except _UNREADABLE as error:
        _refuse_newer(serialized, fetch_id, deadline)
        raise BadEntryError(f"{fetch_id}: {error}") from None
    if data.v != ENTRY_VERSION:
        _refuse_newer(serialized, fetch_id, deadline)
        raise BadEntryError(f"{fetch_id}: version {data.v} is not {ENTRY_VERSION}")
    return Entry(id=fetch_id, deadline_ms=deadline, **msgspec.structs.asdict(data))


def _refuse_newer(serialized: bytes, fetch_id: str, deadline_ms: int) -> None:
    with suppress(*_UNREADABLE):
        glimpse = _glimpse(serialized[HEAD_CHARS:])
        if glimpse.v > ENTRY_VERSION:
            note = f"{fetch_id}: version {glimpse.v}; {ENTRY_VERSION} is the newest known here"
            raise NewerEntryError(note, fetch_id, deadline_ms, glimpse.fetch.url)


def _head(fetch_id: str, deadline_ms: int) -> bytes:
    return f"{fetch_id}{deadline_ms:0{DEADLINE_CHARS}d}".encode()


def _split_head(serialized: bytes) -> tuple[str, int]:
    head = serialized[:HEAD_CHARS].decode("ascii", errors="replace")
    fetch_id, deadline = head[:FETCH_ID_CHARS], head[FETCH_ID_CHARS:]
    if not is_fetch_id(fetch_id) or len(deadline) != DEADLINE_CHARS or not deadline.isdigit():
        raise BadEntryError(f"not an entry: {serialized[:60]!r}")
    return fetch_id, int(deadline)
