"""The options `--name` and `--if-exists`, for the paths of the bodies of every fetch in a list. Pure."""

from collections.abc import Callable
from typing import Annotated

import msgspec
import typer

from fetchfleet.jobs.contract import names
from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.errors import BAD_USE, CommandError

FETCHES = "Each fetch of the list"
"""The group of options that change fetches, in help texts."""

Change = Callable[[Fetch], Fetch]

NameTemplate = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="TEMPLATE",
        help="Path of each body whose fetch sets none, such as '{host}/{stem}{ext}' or '{sha256}{ext}'.",
        rich_help_panel=FETCHES,
    ),
]
OnExisting = Annotated[
    IfExists | None,
    typer.Option(
        "--if-exists",
        metavar="suffix|replace|skip|fail",
        help="What to do if a file has the path of a body, for fetches that do not set if_exists.",
        rich_help_panel=FETCHES,
    ),
]


def name_changes(template: str | None, if_exists: IfExists | None) -> list[Change]:
    """Return the functions that apply the options to a fetch. Raises CommandError for an invalid template."""
    changes: list[Change] = []
    if template is not None:
        try:
            names.parse(template)
        except InvalidFetchError as error:  # begins with the name of the field
            raise CommandError(f"--{error}", BAD_USE) from None
        changes.append(lambda fetch: _with_name(fetch, template))
    if if_exists is not None:
        changes.append(lambda fetch: _with_if_exists(fetch, if_exists))
    return changes


def name_words(template: str | None, if_exists: IfExists | None) -> list[str]:
    """Return the options as they are typed."""
    name = ["--name", template] if template is not None else []
    return [*name, "--if-exists", if_exists.value] if if_exists is not None else name


def _with_name(fetch: Fetch, template: str) -> Fetch:
    if fetch.dest is not None or fetch.name is not None:
        return fetch
    return msgspec.structs.replace(fetch, name=template)


def _with_if_exists(fetch: Fetch, if_exists: IfExists) -> Fetch:
    if fetch.if_exists is not None or (fetch.dest is None and fetch.name is None):
        return fetch
    return msgspec.structs.replace(fetch, if_exists=if_exists.value)
