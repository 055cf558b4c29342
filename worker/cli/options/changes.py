"""The options that change each fetch of a list, together. Pure."""

from typing import Annotated

import msgspec
import typer

from fetchfleet.jobs.contract.checks.conditions import is_conditional
from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.cli.options.headers import header_change
from fetchfleet.worker.cli.options.names import FETCHES, Change, name_changes, name_words

Revalidate = Annotated[
    bool,
    typer.Option(
        "--revalidate",
        help="Transfer a body again only if it has changed. Give it from the first run on.",
        rich_help_panel=FETCHES,
    ),
]


def changes_of(
    header: list[str] | None, name: str | None, if_exists: IfExists | None, *, revalidate: bool
) -> list[Change]:
    """Return the functions that apply the options to each fetch. Raises CommandError for invalid values."""
    changes = [header_change(header)] if header else []
    changes += name_changes(name, if_exists)
    return [*changes, revalidated] if revalidate else changes


def words_of(name: str | None, if_exists: IfExists | None, *, revalidate: bool) -> list[str]:
    """Return the options as they are typed, without header fields, which may be secret."""
    return [*name_words(name, if_exists), *(["--revalidate"] if revalidate else [])]


def revalidated(fetch: Fetch) -> Fetch:
    """Return the fetch with `revalidate`, if it is a GET that sets no condition itself."""
    sets_condition = (fetch.etag, fetch.last_modified) != (None, None) or is_conditional(
        fetch.headers.items()
    )
    if fetch.method != "GET" or sets_condition:
        return fetch
    return msgspec.structs.replace(fetch, revalidate=True)
