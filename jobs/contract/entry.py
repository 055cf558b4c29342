"""A fetch as it waits in a lane: the fetch, its three ledgers, and where redirects have led it. Pure.

In Redis an entry is one string, the *element*: the id (25 characters), the deadline (13 digits,
Unix ms by Redis's clock), then JSON. The fixed head lets Lua see both without parsing anything.
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


class BadElementError(ValueError):
    """Something in a lane that is no entry of ours."""


class NewerElementError(BadElementError):
    """An entry that only a newer worker can read; url is that of its fetch, '' if it cannot be told."""

    def __init__(self, message: str, fetch_id: str, deadline_ms: int, url: str) -> None:
        super().__init__(message)
        self.fetch_id = fetch_id
        self.deadline_ms = deadline_ms
        self.url = url


class Hop(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request as it goes out: the fetch's own, or what a redirect asks for in its place.

    `url` is canonical text; the headers are those that may travel there.
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
        """What rich shows in a traceback: the rest may be secret."""
        return [("method", self.method), ("origin", shown_origin(self.url))]

    @property
    def has_body(self) -> bool:
        """Whether it sends one, from wherever it comes."""
        return (self.body, self.body_base64, self.body_file) != (None, None, None)


class PartNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Half a body on some worker's disk, and what must still hold for the rest of it to be asked for.

    token: of the stay in which it was written, by which its file is found; offset_bytes: so many are safe
    on disk. of: which URL it is of, as a digest. etag or last_modified: what the host called this version
    of it; total_bytes: how long it is as a whole, where that is known.
    """

    token: Annotated[int, msgspec.Meta(ge=0)]
    offset_bytes: Annotated[int, msgspec.Meta(ge=1)]
    of: str
    etag: str | None = None
    last_modified: str | None = None
    total_bytes: int | None = None


class Ledgers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What waits in a lane: the fetch, and what it has cost so far.

    attempts counts those that the host answered badly or not at all, throttles the waits it asked for,
    interruptions what was nobody's fault, crashes those interruptions in which the worker died; last is
    why it waits again. hop is the request to make in place of the fetch's own, hops how many redirects
    led there. begun: the worker that has claimed it was about to begin it; noted only where a crash would
    leave it in doubt (worker/fetch/rules/crashes.py). part: the half of its body that is there already.
    """

    v: int = ENTRY_VERSION
    fetch: Fetch
    attempts: int = 0
    throttles: int = 0
    interruptions: int = 0
    crashes: int = 0
    last: Reason | None = None
    hop: Hop | None = None
    hops: int = 0
    begun: bool = False
    part: PartNote | None = None


class Entry(Ledgers, frozen=True, kw_only=True):
    """One waiting or claimed fetch. deadline_ms is Unix time by Redis's clock."""

    id: str
    deadline_ms: int

    @property
    def batch_id(self) -> str:
        """The batch this fetch belongs to."""
        return batch_of(self.id)

    @property
    def method(self) -> str:
        """That of the request to make next."""
        return self.fetch.method if self.hop is None else self.hop.method

    @property
    def url(self) -> str:
        """That of the request to make next."""
        return self.fetch.url if self.hop is None else self.hop.url

    @property
    def request(self) -> Hop:
        """The request to make next."""
        if self.hop is not None:
            return self.hop
        fetch = self.fetch
        headers = (*fetch.headers.items(), *headers_of(fetch.etag, fetch.last_modified))
        return Hop(fetch.method, fetch.url, headers, fetch.body, fetch.body_base64, fetch.body_file)

    @property
    def submitted_ms(self) -> int:
        """When it was submitted, Unix ms by Redis's clock."""
        return self.deadline_ms - self.fetch.deadline_ms


class _FetchGlimpse(msgspec.Struct):
    url: str = ""


class _Glimpse(msgspec.Struct):
    """As much of an entry as every version has."""

    v: int = ENTRY_VERSION
    fetch: _FetchGlimpse = msgspec.field(default_factory=_FetchGlimpse)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Ledgers).decode
_glimpse = msgspec.json.Decoder(_Glimpse).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def new_element(fetch_id: str, fetch: Fetch) -> bytes:
    """The element of a fetch not yet in Redis: its head holds the time allowed, not yet a deadline.

    Raises InvalidFetchError for what is too long, or holds what cannot be JSON.
    """
    try:
        element = _head(fetch_id, fetch.deadline_ms) + _encode(Ledgers(fetch=fetch))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidFetchError(f"meta: cannot be JSON: {error}") from None
    if len(element) > MAX_MESSAGE_BYTES:
        raise InvalidFetchError(f"has more than {MAX_MESSAGE_BYTES} bytes as JSON")
    return element


def placed(element: bytes, now_ms: int) -> bytes:
    """A new element as it is in a lane once it was submitted at now_ms."""
    fetch_id, allowed_ms = _split_head(element)
    return _head(fetch_id, now_ms + allowed_ms) + element[HEAD_CHARS:]


def to_element(entry: Entry) -> bytes:
    """The element that stands for the entry."""
    ledgers = Ledgers(**{name: getattr(entry, name) for name in Ledgers.__struct_fields__})
    return _head(entry.id, entry.deadline_ms) + _encode(ledgers)


def from_element(element: bytes) -> Entry:
    """The entry that an element stands for. Nothing in Redis is trusted.

    Raises NewerElementError for what a newer worker has written, else BadElementError.
    """
    fetch_id, deadline = _split_head(element)
    try:
        ledgers = _decode(element[HEAD_CHARS:])
    except _UNREADABLE as error:
        _refuse_newer(element, fetch_id, deadline)
        raise BadElementError(f"{fetch_id}: {error}") from None
    if ledgers.v != ENTRY_VERSION:
        _refuse_newer(element, fetch_id, deadline)
        raise BadElementError(f"{fetch_id}: version {ledgers.v} is not {ENTRY_VERSION}")
    return Entry(id=fetch_id, deadline_ms=deadline, **msgspec.structs.asdict(ledgers))


def _refuse_newer(element: bytes, fetch_id: str, deadline_ms: int) -> None:
    with suppress(*_UNREADABLE):
        glimpse = _glimpse(element[HEAD_CHARS:])
        if glimpse.v > ENTRY_VERSION:
            note = f"{fetch_id}: version {glimpse.v}; {ENTRY_VERSION} is the newest known here"
            raise NewerElementError(note, fetch_id, deadline_ms, glimpse.fetch.url)


def _head(fetch_id: str, deadline_ms: int) -> bytes:
    return f"{fetch_id}{deadline_ms:0{DEADLINE_CHARS}d}".encode()


def _split_head(element: bytes) -> tuple[str, int]:
    head = element[:HEAD_CHARS].decode("ascii", errors="replace")
    fetch_id, deadline = head[:FETCH_ID_CHARS], head[FETCH_ID_CHARS:]
    if not is_fetch_id(fetch_id) or len(deadline) != DEADLINE_CHARS or not deadline.isdigit():
        raise BadElementError(f"not an entry: {element[:60]!r}")
    return fetch_id, int(deadline)
