"""The option `--header`, which sets header fields of every fetch in a list. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec
import typer

from fetchfleet.jobs.contract.checks.field_checks import headers as check_headers
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.cli.options.names import FETCHES
from fetchfleet.worker.errors import BAD_USE, CommandError

HeaderLines = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        metavar="'NAME: VALUE'",
        help="Header field of every fetch that does not set it. Repeatable.",
        rich_help_panel=FETCHES,
    ),
]


def parse_headers(lines: Sequence[str]) -> dict[str, str]:
    """Return the fields of `Name: value` lines. Raises CommandError; no message contains a value."""
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise CommandError("--header: a value has no colon; write it like 'Accept: text/csv'", BAD_USE)
        if name.lower() in (known.lower() for known in fields):
            raise CommandError(f"--header {name}: given twice; give each field once", BAD_USE)
        fields[name] = value.strip(" \t")
    try:
        check_headers(fields)
    except InvalidFetchError as error:
        raise CommandError(f"--header: {error}", BAD_USE) from None
    return fields


def header_change(lines: Sequence[str]) -> Callable[[Fetch], Fetch]:
    """Return the function that adds these fields to a fetch. A field that the fetch sets stays."""
    fields = parse_headers(lines)

    def with_headers(fetch: Fetch) -> Fetch:
        return msgspec.structs.replace(fetch, headers=_merged(fetch.headers, fields))

    return with_headers


def _merged(own: Mapping[str, str], fields: Mapping[str, str]) -> dict[str, str]:
    names = {name.lower() for name in own}
    return {**{name: value for name, value in fields.items() if name.lower() not in names}, **own}
