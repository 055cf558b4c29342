"""Whether a body that broke off may be gone on with, and what an answer to that means. Pure.

RFC 9110: a range is asked for with If-Range (§13.1.5), so that a body which has changed comes whole instead;
only a strong validator will do (§8.8.1, §8.8.3), and a 206 is believed only where its Content-Range (§14.4)
begins at our offset.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from enum import Enum
from typing import NamedTuple

from fetchfleet.jobs.contract.entry import Hop, PartNote
from fetchfleet.worker.gate.retry_after import http_date

MAX_VALIDATOR_CHARS = 256
"""It is kept in Redis with the fetch."""

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|(\*))/(?:([0-9]{1,18})|\*)", re.IGNORECASE)

_OF_THE_CALLER = frozenset({"range", "if-range", "if-match", "if-unmodified-since"})
"""Who asks with these wants something else than the whole body as it is."""

Header = Callable[[str], str | None]


class Validator(NamedTuple):
    """By what a host tells versions of a body apart; one of the two is there."""

    etag: str | None = None
    last_modified: str | None = None


class ContentRange(NamedTuple):
    """A Content-Range; first and last are None in a 416, total where it is not told."""

    first: int | None
    last: int | None
    total: int | None


class Append(NamedTuple):
    """The answer's body is the rest; total_bytes is the length of the whole."""

    total_bytes: int


class RangeVerdict(Enum):
    """What else an answer to the question for the rest of a body can be."""

    RESTART = "restart"
    """The answer's body is a whole one."""
    COMPLETE = "complete"
    """Nothing is missing."""
    REFUSE = "refuse"
    """It fits nothing: the body must be asked for from its beginning."""
    NOTHING = "nothing"
    """It says nothing of the body; what is on disk is still good."""


def url_digest(url: str) -> str:
    """Which URL a part is of, in few characters."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def may_ask_on(request: Hop) -> bool:
    """Whether ranges of the request's body may be asked for: a GET that asks for none itself."""
    return request.method == "GET" and not _names(request.headers) & _OF_THE_CALLER


def asks_on(request: Hop, note: PartNote | None) -> bool:
    """Whether the request is the one that the part came by."""
    return note is not None and may_ask_on(request) and note.of == url_digest(request.url)


def asked_on(request: Hop, note: PartNote) -> Hop:
    """The request for the rest of the body."""
    validator = note.etag or note.last_modified or ""
    wanted = (("Range", f"bytes={note.offset_bytes}-"), ("If-Range", validator))
    return Hop(request.method, request.url, (*request.headers, *wanted), request.body)


def validator_of(request: Hop, status: int, header: Header) -> Validator | None:
    """By what the rest of an answer's body may be asked for later, None if it may not.

    A body in a content coding is left out: its bytes are of the coding, and may differ the next time.
    """
    coded = (header("content-encoding") or "identity").lower() != "identity"
    unwilling = (header("accept-ranges") or "").strip().lower() == "none"
    if status not in {200, 206} or coded or unwilling or not may_ask_on(request):
        return None
    etag = header("etag")
    if etag is not None:
        # Also a weak one rules the date out (RFC 9110 §13.1.5).
        return Validator(etag=etag) if _is_strong(etag) else None
    modified = header("last-modified")
    return Validator(last_modified=modified) if _is_strong_date(modified, header("date")) else None


def judged(note: PartNote, status: int, header: Header) -> Append | RangeVerdict:
    """What an answer to the question for the rest means."""
    if status == 206:
        return _partial(note, header)
    if 200 <= status < 300:
        return RangeVerdict.RESTART
    if status != 416:
        return RangeVerdict.NOTHING
    found = content_range(header("content-range"))
    whole = found is not None and found.first is None and found.total == note.offset_bytes
    fits = whole and note.total_bytes in {None, note.offset_bytes} and _same_version(note, header)
    return RangeVerdict.COMPLETE if fits else RangeVerdict.REFUSE


def content_range(value: str | None) -> ContentRange | None:
    """A Content-Range that makes sense, else None (RFC 9110 §14.4)."""
    found = _CONTENT_RANGE.fullmatch((value or "").strip())
    if found is None:
        return None
    first, last, total = (int(found[place]) if found[place] else None for place in (1, 2, 4))
    if first is None or last is None:
        return ContentRange(None, None, total) if total is not None else None
    return None if last < first or (total is not None and last >= total) else ContentRange(first, last, total)


def _partial(note: PartNote, header: Header) -> Append | RangeVerdict:
    found = content_range(header("content-range"))
    kind = (header("content-type") or "").strip().lower()
    if found is None or found.first is None or found.last is None or kind.startswith("multipart/byteranges"):
        return RangeVerdict.REFUSE
    total = found.total if found.total is not None else note.total_bytes
    whole = found.last + 1 if total is None else total
    fits = found.first == note.offset_bytes and found.last < whole and note.total_bytes in {None, whole}
    length = header("content-length")
    framed = length is None or length.strip() == str(found.last - found.first + 1)
    coded = (header("content-encoding") or "identity").lower() != "identity"
    if fits and framed and not coded and _same_version(note, header):
        return Append(whole)
    return RangeVerdict.REFUSE


def _same_version(note: PartNote, header: Header) -> bool:
    """Whether the answer says nothing against it: the strong comparison of RFC 9110 §8.8.3.2."""
    etag, modified = header("etag"), header("last-modified")
    if note.etag is not None:
        return etag is None or etag == note.etag
    return modified is None or modified == note.last_modified


def _is_strong(etag: str) -> bool:
    return len(etag) <= MAX_VALIDATOR_CHARS and _STRONG_ETAG.fullmatch(etag) is not None


def _is_strong_date(modified: str | None, date: str | None) -> bool:
    """A second before Date, or earlier: else it may have changed twice in it (RFC 9110 §8.8.2.2)."""
    then, now = http_date(modified), http_date(date)
    short = len(modified or "") <= MAX_VALIDATOR_CHARS
    return short and then is not None and now is not None and now - then >= timedelta(seconds=1)


def _names(headers: Iterable[tuple[str, str]]) -> set[str]:
    return {name.lower() for name, _ in headers}
