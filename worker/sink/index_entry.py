"""Entries of the index of stored bodies, and the fetches that an entry serves. Pure."""

import hashlib
from typing import NamedTuple

import msgspec

from fetchfleet.jobs.contract import field_checks
from fetchfleet.jobs.contract.conditions import CONDITIONS, is_etag, is_http_date
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.jobs.errors import InvalidFetchError


class Validators(NamedTuple):
    """The validators of a response, and the URL that sent them: they mean nothing for another one."""

    url: str = ""
    etag: str | None = None
    last_modified: str | None = None


class StoredAt(NamedTuple):
    """The place of a stored body; path is relative to the out folder."""

    path: str
    size_bytes: int
    sha256: str
    offset: int | None = None
    """First byte of the body's record in that file. None: the file is the body alone."""
    length: int | None = None
    """Bytes of that record."""


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A stored body, as the index has it."""

    path: str
    """Relative to the out folder."""
    bytes: int
    sha256: str
    stored_ms: int
    """The file's modification time."""
    inode: int = 0
    """The file's inode, 0 if not recorded: two files may change within one tick of the clock."""
    url: str = ""
    """The URL that sent the body, after redirects."""
    etag: str | None = None
    last_modified: str | None = None


class StoredBody(msgspec.Struct, frozen=True, kw_only=True):
    """A stored body that may stand in for a fetch."""

    path: str
    size_bytes: int
    sha256: str | None
    """None: the file was found by its name alone."""


def key_of(fetch: Fetch) -> str:
    """Return the index key: a digest of the URL and of the headers that may select another body."""
    headers = sorted((name.lower(), value) for name, value in fetch.headers.items())
    chosen = [header for header in headers if header[0] not in CONDITIONS]
    if fetch.decode:
        chosen.append(("accept-encoding", "any"))
    text = msgspec.json.encode([fetch.url, chosen]) if chosen else fetch.url.encode()
    return hashlib.sha256(text).hexdigest()


def fits(fetch: Fetch, size_bytes: int, sha256: str | None) -> bool:
    """Return whether the fetch accepts a body of this size and digest."""
    if fetch.max_bytes is not None and size_bytes > fetch.max_bytes:
        return False
    return fetch.sha256 is None or fetch.sha256 == sha256


def usable(fetch: Fetch, entry: IndexEntry) -> bool:
    """Return whether the fetch accepts the body, and at the place where it is."""
    placed = fetch.dest is None or fetch.dest == entry.path
    return placed and fits(fetch, entry.bytes, entry.sha256)


_decode = msgspec.json.Decoder(IndexEntry).decode


def to_json(entry: IndexEntry) -> bytes:
    """Encode an entry."""
    return msgspec.json.encode(entry)


def from_json(text: bytes) -> IndexEntry | None:
    """Decode an entry; None if it is malformed, or has a path or validators that no fetch could have."""
    try:
        entry = _decode(text)
        field_checks.dest(entry.path)
    except (msgspec.DecodeError, UnicodeError, RecursionError, InvalidFetchError):
        return None
    sendable = (entry.etag is None or is_etag(entry.etag)) and (
        entry.last_modified is None or is_http_date(entry.last_modified)
    )
    return entry if sendable else None
