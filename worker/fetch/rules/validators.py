"""What an answer says of its version, and asking only for another one (RFC 9110 §8.8, §13.1). Pure."""

from collections.abc import Callable

import msgspec

from fetchfleet.jobs.contract.conditions import headers_of, is_etag, is_http_date
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.sink.index_entry import IndexEntry, Validators


def validators_of(url: str, header: Callable[[str], str | None]) -> Validators:
    """What the answer of the URL says, where it can be sent back."""
    etag, last_modified = header("etag"), header("last-modified")
    return Validators(
        url,
        etag if etag is not None and is_etag(etag) else None,
        last_modified if last_modified is not None and is_http_date(last_modified) else None,
    )


def conditional(request: Hop, known: IndexEntry | None) -> Hop:
    """The request, made conditional where the very URL that is asked gave what is known."""
    if known is None or known.url != request.url:
        return request
    conditions = headers_of(known.etag, known.last_modified)
    return msgspec.structs.replace(request, headers=request.headers + conditions)
