"""Validators of a resource (RFC 9110 §8.8) and the conditions made of them. Pure.

Each check raises InvalidFetchError naming the field.
"""

import re
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

from fetchfleet.jobs.errors import InvalidFetchError

MAX_ETAG_BYTES = 1024
MAX_DATE_BYTES = 64
CONDITIONAL_METHODS = frozenset({"GET", "HEAD"})
CONDITIONS = frozenset({"if-modified-since", "if-none-match"})

# RFC 9110 §8.8.3, without obs-text: one tag, so that `*` or a list cannot pass for one.
_ETAG = re.compile(r'(?:W/)?"[!#-~]*"')
_DATE = re.compile(r"[ -~]+")
# As nearly all hosts write it (RFC 9110 §5.6.7). February 29 needs a calendar.
_FIXDATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), "
    r"(?:(?:0[1-9]|1[0-9]|2[0-8]) (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    r"|(?:29|30) (?:Jan|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)|31 (?:Jan|Mar|May|Jul|Aug|Oct|Dec))"
    r" (?:19|20)[0-9]{2} (?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9] GMT"
)


def is_etag(value: str) -> bool:
    """Return whether the text is one entity tag of at most MAX_ETAG_BYTES."""
    return len(value) <= MAX_ETAG_BYTES and _ETAG.fullmatch(value) is not None


def is_http_date(value: str) -> bool:
    """Return whether the text is an HTTP date; hosts may compare the text itself (RFC 9110 §13.1.3)."""
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
    """Return the conditional headers. Both are sent: a host that knows If-None-Match ignores the other."""
    if etag is None and last_modified is None:
        return ()
    made = (("If-None-Match", etag), ("If-Modified-Since", last_modified))
    return tuple((name, value) for name, value in made if value is not None)


def is_conditional(headers: Iterable[tuple[str, str]]) -> bool:
    """Return whether a request with these headers may be answered by 304."""
    return any(name.lower() in CONDITIONS for name, _ in headers)


def check(
    method: str,
    headers: Iterable[tuple[str, str]],
    etag: str | None,
    last_modified: str | None,
    *,
    revalidate: bool,
) -> None:
    """Require well-formed validators with a GET or HEAD that has no other condition.

    With revalidate it must be a GET without either: the workers supply the validators of the stored body.
    """
    given = {"etag": etag, "last_modified": last_modified}
    for field in (name for name, value in given.items() if value is not None):
        if method not in CONDITIONAL_METHODS:
            raise InvalidFetchError(f"{field}: a {method} is not made conditional by it; leave it out")
        if is_conditional(headers):
            raise InvalidFetchError(f"{field}: headers hold a condition already; give one of the two")
    if etag is not None and not is_etag(etag):
        raise InvalidFetchError(
            f'etag: is no entity tag ("…" or W/"…", ASCII, at most {MAX_ETAG_BYTES} bytes);'
            " give that of a result"
        )
    if last_modified is not None and not is_http_date(last_modified):
        raise InvalidFetchError("last_modified: is no date of HTTP; give that of a result")
    if revalidate and method != "GET":
        raise InvalidFetchError(f"revalidate: nothing is kept of a {method}; leave it out")
    if revalidate and (etag is not None or last_modified is not None or is_conditional(headers)):
        raise InvalidFetchError(
            "revalidate: the workers know what they have; leave etag, last_modified and conditions out"
        )
