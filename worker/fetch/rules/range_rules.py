"""The resumption of a body that broke off, and the meaning of responses to it. Pure.

RFC 9110: a range is requested with If-Range (§13.1.5), so that a body which has changed comes whole instead.
Only a strong validator will do (§8.8.1, §8.8.3). A 206 is accepted only if its Content-Range (§14.4) begins
at the requested offset.
"""

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import NamedTuple

from fetchfleet.jobs.contract.entry import MAX_VALIDATOR_CHARS, Hop, PartialNote
from fetchfleet.worker.body.decoders import codings_of
from fetchfleet.worker.gate.retry_after import http_date

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|(\*))/(?:([0-9]{1,18})|\*)", re.IGNORECASE)

_OF_THE_CALLER = frozenset({"range", "if-range", "if-match", "if-unmodified-since"})
"""A request with these fields wants something else than the whole body."""

Header = Callable[[str], str | None]


class Validator(NamedTuple):
    """The validator by which a host distinguishes versions of a body: one of the two is set."""

    etag: str | None = None
    last_modified: str | None = None


class ContentRange(NamedTuple):
    """A Content-Range; first and last are None in a 416, total is None if unknown."""

    first: int | None
    last: int | None
    total: int | None


class Append(NamedTuple):
    """The body of the response is the rest; total_bytes is the length of the whole."""

    total_bytes: int


class RangeVerdict(Enum):
    """The other meanings of a response to a request for the rest of a body."""

    RESTART = "restart"
    """The body of the response is a whole one."""
    COMPLETE = "complete"
    """Nothing is missing."""
    REFUSE = "refuse"
    """The response does not fit: the body must be requested from its beginning."""
    NOTHING = "nothing"
    """The response says nothing about the body; the bytes on disk stay valid."""


def url_digest(url: str) -> str:
    """Return a short digest of the URL that a partial body is of."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def may_ask_on(request: Hop) -> bool:
    """Return whether ranges may be requested: the request is a GET that requests none itself."""
    return request.method == "GET" and not any(name.lower() in _OF_THE_CALLER for name, _ in request.headers)


def asks_on(request: Hop, note: PartialNote | None) -> bool:
    """Return whether the request is the one that the partial body came from."""
    return note is not None and may_ask_on(request) and note.of == url_digest(request.url)


def asked_on(request: Hop, note: PartialNote) -> Hop:
    """Return the request for the rest of the body."""
    validator = note.etag or note.last_modified or ""
    wanted = (("Range", f"bytes={note.offset_bytes}-"), ("If-Range", validator))
    return Hop(request.method, request.url, (*request.headers, *wanted), request.body)


def validator_of(request: Hop, status: int, header: Header) -> Validator | None:
    """Return the validator by which the rest of the body may be requested later, None if it may not.

    A body in a content coding is left out: its bytes are of the coding, and may differ the next time.
    """
    coded = bool(codings_of(header("content-encoding")))
    no_ranges = (header("accept-ranges") or "").strip().lower() == "none"
    if status not in {200, 206} or coded or no_ranges or not may_ask_on(request):
        return None
    etag, modified = header("etag"), header("last-modified") or ""
    if etag is not None:
        # A weak one rules the date out as well (RFC 9110 §13.1.5).
        strong = len(etag) <= MAX_VALIDATOR_CHARS and _STRONG_ETAG.fullmatch(etag) is not None
        return Validator(etag=etag) if strong else None
    # A date is strong if it is a second before Date, or earlier: else the body may have changed twice in that
    # second (RFC 9110 §8.8.2.2).
    modified_at, sent_at = http_date(modified), http_date(header("date"))
    if modified_at is None or sent_at is None or sent_at - modified_at < timedelta(seconds=1):
        return None
    return Validator(last_modified=modified) if len(modified) <= MAX_VALIDATOR_CHARS else None


def judged(note: PartialNote, status: int, header: Header) -> Append | RangeVerdict:
    """Return what a response to a request for the rest means."""
    found = content_range(header("content-range"))
    if status == 206:
        kind = (header("content-type") or "").strip().lower()
        multipart = kind.startswith("multipart/byteranges")
        if found is None or found.first is None or found.last is None or multipart:
            return RangeVerdict.REFUSE
        total = found.total if found.total is not None else note.total_bytes
        whole_bytes = found.last + 1 if total is None else total
        length = header("content-length")
        coded = bool(codings_of(header("content-encoding")))
        fits = (
            found.first == note.offset_bytes
            and found.last < whole_bytes
            and note.total_bytes in {None, whole_bytes}
            and (length is None or length.strip() == str(found.last - found.first + 1))
            and not coded
            and _same_version(note, header)
        )
        return Append(whole_bytes) if fits else RangeVerdict.REFUSE
    if 200 <= status < 300:
        return RangeVerdict.RESTART
    if status != 416:
        return RangeVerdict.NOTHING
    whole = found is not None and found.first is None and found.total == note.offset_bytes
    fits = whole and note.total_bytes in {None, note.offset_bytes} and _same_version(note, header)
    return RangeVerdict.COMPLETE if fits else RangeVerdict.REFUSE


def content_range(value: str | None) -> ContentRange | None:
    """Parse a Content-Range; None if it makes no sense (RFC 9110 §14.4)."""
    found = _CONTENT_RANGE.fullmatch((value or "").strip())
    if found is None:
        return None
    first, last, total = (int(found[place]) if found[place] else None for place in (1, 2, 4))
    if first is None or last is None:
        return ContentRange(None, None, total) if total is not None else None
    return None if last < first or (total is not None and last >= total) else ContentRange(first, last, total)


def _same_version(note: PartialNote, header: Header) -> bool:
    """Return whether the response is of the same version, by the strong comparison of RFC 9110 §8.8.3.2."""
    etag, modified = header("etag"), header("last-modified")
    if note.etag is not None:
        return etag is None or etag == note.etag
    return modified is None or modified == note.last_modified
