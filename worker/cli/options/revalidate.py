"""The option `--revalidate`, which makes the fetches of a list conditional on stored bodies. Pure."""

from typing import Annotated

import msgspec
import typer

from fetchfleet.jobs.contract.checks.conditions import is_conditional
from fetchfleet.jobs.contract.fetch import Fetch

Revalidate = Annotated[
    bool,
    typer.Option(
        "--revalidate", help="Transfer a body only if it has changed since it was stored here, for each GET."
    ),
]


def revalidated(fetch: Fetch) -> Fetch:
    """Return the fetch with `revalidate`, if it is a GET that sets no condition itself."""
    sets_condition = (fetch.etag, fetch.last_modified) != (None, None) or is_conditional(
        fetch.headers.items()
    )
    if fetch.method != "GET" or sets_condition:
        return fetch
    return msgspec.structs.replace(fetch, revalidate=True)
