"""The version of a response, and requests for another version only (RFC 9110 §8.8, §13.1). Pure."""

from collections.abc import Callable

import msgspec

from fetchfleet.jobs.contract.conditions import headers_of, is_etag, is_http_date
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.sink.index_entry import IndexEntry, Validators

VALIDATOR_FIELDS = frozenset({b"etag", b"last-modified"})


def validators_of(url: str, header: Callable[[str], str | None]) -> Validators:
    """Return the validators of a response of the URL that are valid in a request."""
    etag, last_modified = header("etag"), header("last-modified")
    return Validators(
        url,
        etag if etag is not None and is_etag(etag) else None,
        last_modified if last_modified is not None and is_http_date(last_modified) else None,
    )


def conditional(request: Hop, known: IndexEntry | None) -> Hop:
    """Return the request, conditional if what is known came from the URL that is requested."""
    if known is None or known.url != request.url:
        return request
    conditions = headers_of(known.etag, known.last_modified)
    return msgspec.structs.replace(request, headers=request.headers + conditions)
