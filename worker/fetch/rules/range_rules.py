"""Range requests that resume a body, and the meaning of the responses. Pure.

A range is requested with If-Range (RFC 9110 §13.1.5), so that the host sends a changed body in full. That
takes a strong validator (§8.8.1, §8.8.3). A 206 is accepted only if its Content-Range (§14.4) begins at the
requested offset.
"""

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import NamedTuple

from fetchfleet.jobs.contract.entry import MAX_VALIDATOR_CHARS, Hop, PartialNote
from fetchfleet.worker.body.decoders import codings_of
from fetchfleet.worker.body.pieces import Piece
from fetchfleet.worker.gate.retry_after import http_date

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|(\*))/(?:([0-9]{1,18})|\*)", re.IGNORECASE)

_CALLER_RANGE_FIELDS = frozenset({"range", "if-range", "if-match", "if-unmodified-since"})
"""A caller that sets one of these fields requests a range, or a certain version: no range is added."""

Header = Callable[[str], str | None]


class Validator(NamedTuple):
    """The validator of one version of a body: one of the two is set."""

    etag: str | None = None
    last_modified: str | None = None


class ContentRange(NamedTuple):
    """A Content-Range (RFC 9110 §14.4)."""

    first: int | None
    """The offset of the first byte; None in a 416."""
    last: int | None
    """The offset of the last byte; None in a 416."""
    total: int | None
    """The length of the whole body; None if unknown."""


class Append(NamedTuple):
    """The body of the response is the rest of the partial file."""

    total_bytes: int
    """The length of the whole body."""


class RangeVerdict(Enum):
    """The other meanings of a response to a request for the rest of a body."""

    RESTART = "restart"
    """The response has the whole body."""
    COMPLETE = "complete"
    """The partial file is the whole body."""
    REFUSE = "refuse"
    """The response does not fit: request the whole body."""
    NOTHING = "nothing"
    """The response is not about the body, so the partial file stays valid."""


def url_digest(url: str) -> str:
    """Return the digest of a URL for the note of a partial file."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def may_have_range(request: Hop) -> bool:
    """Return whether a range may be added to the request: a GET without range fields of the caller."""
    return request.method == "GET" and not any(
        name.lower() in _CALLER_RANGE_FIELDS for name, _ in request.headers
    )


def is_source(request: Hop, note: PartialNote | None) -> bool:
    """Return whether the partial file of the note holds the beginning of the request's body."""
    return note is not None and may_have_range(request) and note.of == url_digest(request.url)


def range_request(request: Hop, note: PartialNote, size_bytes: int | None = None) -> Hop:
    """Return the request for the rest of the body, or for that many bytes of it."""
    last = "" if size_bytes is None else note.offset_bytes + size_bytes - 1
    validator = note.etag or note.last_modified or ""
    range_fields = (("Range", f"bytes={note.offset_bytes}-{last}"), ("If-Range", validator))
    return Hop(request.method, request.url, (*request.headers, *range_fields), request.body)


def first_piece_request(request: Hop, size_bytes: int) -> Hop:
    """Return the request for the start of a body of which nothing is known yet."""
    first = ("Range", f"bytes=0-{size_bytes - 1}")
    return Hop(request.method, request.url, (*request.headers, first), request.body)


def validator_of(request: Hop, status: int, header: Header) -> Validator | None:
    """Return the validator with which the rest of the body can be requested later, None if it cannot.

    A body with a content coding cannot be resumed: the coded bytes may differ in the next response.
    """
    coded = bool(codings_of(header("content-encoding")))
    no_ranges = (header("accept-ranges") or "").strip().lower() == "none"
    if status not in {200, 206} or coded or no_ranges or not may_have_range(request):
        return None
    etag, modified = header("etag"), header("last-modified") or ""
    if etag is not None:
        # With a weak ETag the date may not be used either (RFC 9110 §13.1.5).
        strong = len(etag) <= MAX_VALIDATOR_CHARS and _STRONG_ETAG.fullmatch(etag) is not None
        return Validator(etag=etag) if strong else None
    # A date is strong if it is at least a second before Date: the body may change twice within a second
    # (RFC 9110 §8.8.2.2).
    modified_at, sent_at = http_date(modified), http_date(header("date"))
    if modified_at is None or sent_at is None or sent_at - modified_at < timedelta(seconds=1):
        return None
    return Validator(last_modified=modified) if len(modified) <= MAX_VALIDATOR_CHARS else None


def verdict_of(note: PartialNote, status: int, header: Header) -> Append | RangeVerdict:
    """Return what the response to a request for the rest of a body means."""
    sent = content_range(header("content-range"))
    if status == 206:
        if sent is None or sent.first is None or sent.last is None:
            return RangeVerdict.REFUSE
        declared_bytes = sent.total if sent.total is not None else note.total_bytes
        total_bytes = sent.last + 1 if declared_bytes is None else declared_bytes
        fits = (
            sent.first == note.offset_bytes
            and sent.last < total_bytes
            and note.total_bytes in {None, total_bytes}
            and _is_one_range(sent.last - sent.first + 1, header)
            and _same_version(note, header)
        )
        return Append(total_bytes) if fits else RangeVerdict.REFUSE
    if 200 <= status < 300:
        return RangeVerdict.RESTART
    if status != 416:
        return RangeVerdict.NOTHING
    complete = sent is not None and sent.first is None and sent.total == note.offset_bytes
    fits = complete and note.total_bytes in {None, note.offset_bytes} and _same_version(note, header)
    return RangeVerdict.COMPLETE if fits else RangeVerdict.REFUSE


def verdict_of_first_piece(request: Hop, status: int, header: Header) -> Append | RangeVerdict:
    """Return what the response to the request for the start of a body means.

    Without a strong validator the rest cannot be requested, so the whole body must be. A 416 is the response
    for an empty body.
    """
    sent = content_range(header("content-range"))
    if status not in {206, 416}:
        return RangeVerdict.NOTHING
    if status == 416 or sent is None or sent.first != 0 or sent.last is None or sent.total is None:
        return RangeVerdict.REFUSE
    usable = sent.last == sent.total - 1 or validator_of(request, status, header) is not None
    fits = usable and _is_one_range(sent.last + 1, header)
    return Append(sent.total) if fits else RangeVerdict.REFUSE


def is_piece(note: PartialNote, piece: Piece, status: int, header: Header) -> bool:
    """Return whether a response has exactly the missing bytes of a piece, and of the version of the note.

    note: with the offset of these bytes.
    """
    sent = content_range(header("content-range"))
    whole = sent is not None and sent.last == piece.end - 1 and sent.total == note.total_bytes
    return whole and isinstance(verdict_of(note, status, header), Append)


def _is_one_range(size_bytes: int, header: Header) -> bool:
    """Return whether the content of a 206 is one range of that size, without a content coding."""
    length, media_type = header("content-length"), (header("content-type") or "").strip().lower()
    return (
        (length is None or length.strip() == str(size_bytes))
        and not media_type.startswith("multipart/byteranges")
        and not codings_of(header("content-encoding"))
    )


def content_range(value: str | None) -> ContentRange | None:
    """Parse a Content-Range; return None if it is absent or invalid (RFC 9110 §14.4)."""
    match = _CONTENT_RANGE.fullmatch((value or "").strip())
    if match is None:
        return None
    first, last, total = (int(match[group]) if match[group] else None for group in (1, 2, 4))
    if first is None or last is None:
        return ContentRange(None, None, total) if total is not None else None
    return None if last < first or (total is not None and last >= total) else ContentRange(first, last, total)


def _same_version(note: PartialNote, header: Header) -> bool:
    """Return whether the response is of the same version, by the strong comparison of RFC 9110 §8.8.3.2."""
    etag, modified = header("etag"), header("last-modified")
    if note.etag is not None:
        return etag is None or etag == note.etag
    return modified is None or modified == note.last_modified
