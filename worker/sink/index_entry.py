"""What is remembered of a stored body, and which fetch it serves. Pure."""

import hashlib
from typing import NamedTuple

import msgspec

from fetchfleet.jobs.contract import field_checks
from fetchfleet.jobs.contract.conditions import CONDITIONS, is_etag, is_http_date
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.jobs.errors import InvalidFetchError


class Validators(NamedTuple):
    """Those of an answer, and the URL that gave them: they mean nothing anywhere else."""

    url: str = ""
    etag: str | None = None
    last_modified: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a body: its path in the out folder, and what tells its file from another.

    stored_ms: the file's own time of change; inode: its number, 0 where it was not noted: two files may be
    changed within one tick of that clock. url: whose answer it was, wherever redirects had led; etag and
    last_modified: what that answer said of its version.
    """

    path: str
    bytes: int
    sha256: str
    stored_ms: int
    inode: int = 0
    url: str = ""
    etag: str | None = None
    last_modified: str | None = None


class Old(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in for a fetch; sha256 is None where only its name was known."""

    path: str
    size_bytes: int
    sha256: str | None


def key_of(fetch: Fetch) -> str:
    """Under which name a body is remembered: by its URL, and the headers that may choose another body."""
    headers = sorted((name.lower(), value) for name, value in fetch.headers.items())
    chosen = [header for header in headers if header[0] not in CONDITIONS]
    if fetch.decode:
        chosen.append(("accept-encoding", "any"))
    text = msgspec.json.encode([fetch.url, chosen]) if chosen else fetch.url.encode()
    return hashlib.sha256(text).hexdigest()


def fits(fetch: Fetch, size_bytes: int, sha256: str | None) -> bool:
    """Whether a body is one that the fetch would have taken."""
    if fetch.max_bytes is not None and size_bytes > fetch.max_bytes:
        return False
    return fetch.sha256 is None or fetch.sha256 == sha256


_decode = msgspec.json.Decoder(Record).decode


def to_json(record: Record) -> bytes:
    """The record as it is kept."""
    return msgspec.json.encode(record)


def from_json(text: bytes) -> Record | None:
    """The record that was kept; None if it is none, or names what no fetch could have been stored at."""
    try:
        record = _decode(text)
        field_checks.dest(record.path)
    except (msgspec.DecodeError, UnicodeError, RecursionError, InvalidFetchError):
        return None
    return record if _is_sendable(record) else None


def _is_sendable(record: Record) -> bool:
    """Whether what it would be asked by is what a host can have said."""
    tag, date = record.etag, record.last_modified
    return (tag is None or is_etag(tag)) and (date is None or is_http_date(date))


def usable(fetch: Fetch, record: Record) -> bool:
    """Whether the fetch would have the stored body, and where it is."""
    placed = fetch.dest is None or fetch.dest == record.path
    return placed and fits(fetch, record.bytes, record.sha256)
