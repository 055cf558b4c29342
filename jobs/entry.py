"""A fetch as it waits in a lane: the fetch, its three ledgers, and where redirects have led it.

In Redis an entry is one string, the *element*: the id (25 characters), the deadline (13 digits,
Unix ms by Redis's clock), then JSON. The fixed head lets Lua see both without parsing anything.
"""

import msgspec

from jobs.errors import InvalidFetchError
from jobs.model import MAX_MESSAGE_BYTES, Fetch, Reason
from jobs.names import FETCH_ID_CHARS, batch_of, is_fetch_id

ENTRY_VERSION = 1
DEADLINE_CHARS = 13
HEAD_CHARS = FETCH_ID_CHARS + DEADLINE_CHARS


class BadElementError(ValueError):
    """Something in a lane that is no entry of ours."""


class Hop(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request as it goes out: the fetch's own, or what a redirect asks for in its place.

    `url` is canonical text; the headers are those that may travel there.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None


class Ledgers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What waits in a lane: the fetch, and what it has cost so far.

    attempts counts those that the host answered badly or not at all, throttles the waits it asked for,
    interruptions what was nobody's fault, crashes those interruptions in which the worker died; last is
    why it waits again. hop is the request to make in place of the fetch's own, hops how many redirects
    led there.
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


class Entry(Ledgers, frozen=True, kw_only=True):
    """One waiting or claimed fetch. deadline_ms is Unix time by Redis's clock."""

    id: str
    deadline_ms: int

    @property
    def batch_id(self) -> str:
        """The batch this fetch belongs to."""
        return batch_of(self.id)

    @property
    def request(self) -> Hop:
        """The request to make next."""
        if self.hop is not None:
            return self.hop
        fetch = self.fetch
        return Hop(fetch.method, fetch.url, tuple(fetch.headers.items()), fetch.body)

    @property
    def submitted_ms(self) -> int:
        """When it was submitted, Unix ms by Redis's clock."""
        return self.deadline_ms - self.fetch.deadline_ms


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Ledgers).decode


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
    """The entry that an element stands for; raises BadElementError. Nothing in Redis is trusted."""
    fetch_id, deadline = _split_head(element)
    try:
        ledgers = _decode(element[HEAD_CHARS:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadElementError(f"{fetch_id}: {error}") from None
    if ledgers.v != ENTRY_VERSION:
        raise BadElementError(f"{fetch_id}: version {ledgers.v} is not {ENTRY_VERSION}")
    return Entry(id=fetch_id, deadline_ms=deadline, **msgspec.structs.asdict(ledgers))


def _head(fetch_id: str, deadline_ms: int) -> bytes:
    return f"{fetch_id}{deadline_ms:0{DEADLINE_CHARS}d}".encode()


def _split_head(element: bytes) -> tuple[str, int]:
    head = element[:HEAD_CHARS].decode("ascii", errors="replace")
    fetch_id, deadline = head[:FETCH_ID_CHARS], head[FETCH_ID_CHARS:]
    if not is_fetch_id(fetch_id) or len(deadline) != DEADLINE_CHARS or not deadline.isdigit():
        raise BadElementError(f"not an entry: {element[:60]!r}")
    return fetch_id, int(deadline)
