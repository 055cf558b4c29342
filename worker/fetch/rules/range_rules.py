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


def range_request(request: Hop, note: PartialNote) -> Hop:
    """Return the request for the rest of the body."""
    validator = note.etag or note.last_modified or ""
    range_fields = (("Range", f"bytes={note.offset_bytes}-"), ("If-Range", validator))
    return Hop(request.method, request.url, (*request.headers, *range_fields), request.body)


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
        media_type = (header("content-type") or "").strip().lower()
        multipart = media_type.startswith("multipart/byteranges")
        if sent is None or sent.first is None or sent.last is None or multipart:
            return RangeVerdict.REFUSE
        declared_bytes = sent.total if sent.total is not None else note.total_bytes
        total_bytes = sent.last + 1 if declared_bytes is None else declared_bytes
        length = header("content-length")
        coded = bool(codings_of(header("content-encoding")))
        fits = (
            sent.first == note.offset_bytes
            and sent.last < total_bytes
            and note.total_bytes in {None, total_bytes}
            and (length is None or length.strip() == str(sent.last - sent.first + 1))
            and not coded
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
