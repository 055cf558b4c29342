"""Validators of responses, and conditional requests with them (RFC 9110 §8.8, §13.1). Pure."""

from collections.abc import Callable

import msgspec

from fetchfleet.jobs.contract.checks.conditions import headers_of, is_etag, is_http_date
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.sink.index_entry import IndexEntry, Validators

VALIDATOR_FIELDS = frozenset({b"etag", b"last-modified"})


def validators_of(url: str, header: Callable[[str], str | None]) -> Validators:
    """Return the validators of a response from the URL, without those that are invalid in a request."""
    etag, last_modified = header("etag"), header("last-modified")
    return Validators(
        url,
        etag if etag is not None and is_etag(etag) else None,
        last_modified if last_modified is not None and is_http_date(last_modified) else None,
    )


def conditional(request: Hop, index_entry: IndexEntry | None) -> Hop:
    """Return the request with the validators of the stored body, if that came from the same URL."""
    if index_entry is None or index_entry.url != request.url:
        return request
    conditions = headers_of(index_entry.etag, index_entry.last_modified)
    return msgspec.structs.replace(request, headers=request.headers + conditions)
