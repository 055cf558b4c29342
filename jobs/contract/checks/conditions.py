"""Validators (RFC 9110 §8.8) and conditional requests (§13). Pure."""

import re
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

from fetchfleet.jobs.errors import InvalidFetchError

MAX_ETAG_BYTES = 1024
MAX_DATE_BYTES = 64
CONDITIONAL_METHODS = frozenset({"GET", "HEAD"})
CONDITIONS = frozenset({"if-modified-since", "if-none-match"})

# One entity tag (RFC 9110 §8.8.3), without obs-text; neither `*` nor a list of tags.
_ETAG = re.compile(r'(?:W/)?"[!#-~]*"')
_DATE = re.compile(r"[ -~]+")
# A fast path for IMF-fixdate (RFC 9110 §5.6.7). February 29 depends on the year.
_FIXDATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), "
    r"(?:(?:0[1-9]|1[0-9]|2[0-8]) (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    r"|(?:29|30) (?:Jan|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)|31 (?:Jan|Mar|May|Jul|Aug|Oct|Dec))"
    r" (?:19|20)[0-9]{2} (?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9] GMT"
)


def is_etag(value: str) -> bool:
    """Return whether the value is one entity tag of at most MAX_ETAG_BYTES."""
    return len(value) <= MAX_ETAG_BYTES and _ETAG.fullmatch(value) is not None


def is_http_date(value: str) -> bool:
    """Return whether the value is an HTTP date of any format; hosts may compare its text (§13.1.3)."""
    if _FIXDATE.fullmatch(value):
        return True
    if len(value) > MAX_DATE_BYTES or not _DATE.fullmatch(value) or value != value.strip():
        return False
    try:
        parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return False
    return True


def headers_of(etag: str | None, last_modified: str | None) -> tuple[tuple[str, str], ...]:
    """Return the conditional headers. A host that knows If-None-Match ignores If-Modified-Since (§13.1.3)."""
    if etag is None and last_modified is None:
        return ()
    headers = (("If-None-Match", etag), ("If-Modified-Since", last_modified))
    return tuple((name, value) for name, value in headers if value is not None)


def is_conditional(headers: Iterable[tuple[str, str]]) -> bool:
    """Return whether a 304 may respond to a request with these headers."""
    return any(name.lower() in CONDITIONS for name, _ in headers)


def check(
    method: str,
    headers: Iterable[tuple[str, str]],
    etag: str | None,
    last_modified: str | None,
    *,
    revalidate: bool,
) -> None:
    """Require valid validators, with a GET or HEAD whose headers set no condition.

    With revalidate, require a GET without validators: the workers send those of the stored body. Raises
    InvalidFetchError, which names the field.
    """
    validators = {"etag": etag, "last_modified": last_modified}
    for field in (name for name, value in validators.items() if value is not None):
        if method not in CONDITIONAL_METHODS:
            raise InvalidFetchError(f"{field}: only GET and HEAD are conditional, not {method}; leave it out")
        if is_conditional(headers):
            raise InvalidFetchError(f"{field}: the headers set a condition too; set only one of them")
    if etag is not None and not is_etag(etag):
        raise InvalidFetchError(
            f'etag: is not an entity tag ("…" or W/"…", ASCII, at most {MAX_ETAG_BYTES} bytes);'
            " use the etag of a result"
        )
    if last_modified is not None and not is_http_date(last_modified):
        raise InvalidFetchError("last_modified: is not an HTTP date; use the last_modified of a result")
    if revalidate and method != "GET":
        raise InvalidFetchError(f"revalidate: needs GET, not {method}; leave it out")
    if revalidate and (etag is not None or last_modified is not None or is_conditional(headers)):
        raise InvalidFetchError(
            "revalidate: the workers set the condition; leave out etag, last_modified and conditional headers"
        )
