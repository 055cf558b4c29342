"""Entries of the index of stored bodies, and the rules for using them. Pure."""

import hashlib
from typing import NamedTuple

import msgspec

from fetchfleet.jobs.contract.checks import field_checks
from fetchfleet.jobs.contract.checks.conditions import CONDITIONS, is_etag, is_http_date
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.names import meta_values
from fetchfleet.jobs.errors import InvalidFetchError


class Validators(NamedTuple):
    """The validators of a response."""

    url: str = ""
    """The URL that sent them, after redirects; they are valid for that URL only."""
    etag: str | None = None
    last_modified: str | None = None


class StoredAt(NamedTuple):
    """The place of a stored body."""

    path: str
    """Relative to the out folder."""
    size_bytes: int
    """The size of the body."""
    sha256: str
    """The body's digest, in hex."""
    offset: int | None = None
    """Offset in bytes of the body's WARC record in that file. None: the file is the body."""
    length: int | None = None
    """Size in bytes of that record."""


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A stored body in the index."""

    path: str
    """Relative to the out folder."""
    bytes: int
    """The size of the body."""
    sha256: str
    """The body's digest, in hex."""
    stored_ms: int
    """The file's modification time, Unix time."""
    inode: int = 0
    """The file's inode; 0 if not recorded. It detects a file replaced within one tick of the clock."""
    object_etag: str | None = None
    """The ETag of the object in the store; None if the body is a file."""
    url: str = ""
    """The URL that sent the body, after redirects."""
    etag: str | None = None
    last_modified: str | None = None


class StoredBody(msgspec.Struct, frozen=True, kw_only=True):
    """A stored body that may serve as the result of a fetch."""

    path: str
    """Relative to the out folder."""
    size_bytes: int
    sha256: str | None
    """The digest in hex; None if the file was found by its path and not hashed."""


def key_of(fetch: Fetch) -> str:
    """Return the index key: a hex digest of the URL and of the headers that may select another body.

    The name of the fetch is part of it too, with the values of `meta` that it uses.
    """
    headers = sorted((name.lower(), value) for name, value in fetch.headers.items())
    selecting = [header for header in headers if header[0] not in CONDITIONS]
    if fetch.decode:
        selecting.append(("accept-encoding", "any"))
    if fetch.name is not None:  # a body that is named in another way is at another place
        text = msgspec.json.encode([fetch.url, selecting, fetch.name, meta_values(fetch.name, fetch.meta)])
    else:
        text = msgspec.json.encode([fetch.url, selecting]) if selecting else fetch.url.encode()
    return hashlib.sha256(text).hexdigest()


def fits(fetch: Fetch, size_bytes: int, sha256: str | None) -> bool:
    """Return whether the body satisfies the fetch's `max_bytes`, `sha256`, and the sizes of its `accept`."""
    if fetch.max_bytes is not None and size_bytes > fetch.max_bytes:
        return False
    if fetch.accept is not None and not fetch.accept.fits(size_bytes):
        return False
    return fetch.sha256 is None or fetch.sha256 == sha256


def usable(fetch: Fetch, entry: IndexEntry) -> bool:
    """Return whether the body satisfies the fetch and is at the fetch's `dest`, if it has one."""
    at_dest = fetch.dest is None or fetch.dest == entry.path
    return at_dest and fits(fetch, entry.bytes, entry.sha256)


_decode = msgspec.json.Decoder(IndexEntry).decode


def to_json(entry: IndexEntry) -> bytes:
    """Return an entry as JSON."""
    return msgspec.json.encode(entry)


def from_json(text: bytes) -> IndexEntry | None:
    """Parse an entry. Returns None if it is malformed or has an invalid path or validator."""
    try:
        entry = _decode(text)
        field_checks.dest(entry.path)
    except (msgspec.DecodeError, UnicodeError, RecursionError, InvalidFetchError):
        return None
    sendable = (entry.etag is None or is_etag(entry.etag)) and (
        entry.last_modified is None or is_http_date(entry.last_modified)
    )
    return entry if sendable else None
