"""The options that several commands share. The import must stay quick: `run` starts its workers after it."""

from pathlib import Path
from typing import Annotated

import typer

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import host_named

OUTPUT, FLEET = "Output", "Fleet"
"""Groups of options in help texts."""

Host = "A host or a URL of it, a pattern (*.cdn.net), or default"
_LIST_HELP = "File of URLs or JSON fetches, one a line; - for standard input."
File = Annotated[str, typer.Argument(metavar="FILE", help=_LIST_HELP)]
FileOrReport = Annotated[str | None, typer.Argument(metavar="FILE", help=_LIST_HELP)]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis", metavar="URL", help="The fleet's Redis (FETCHFLEET_REDIS_URL).", rich_help_panel=FLEET
    ),
]
RedisPatience = Annotated[
    float | None,
    typer.Option(
        "--redis-patience",
        metavar="SECONDS",
        min=0,
        help="Wait for a Redis that does not answer (FETCHFLEET_REDIS_PATIENCE_S). 60 by default.",
        rich_help_panel=FLEET,
    ),
]
Via = Annotated[
    str | None,
    typer.Option(
        metavar="lanes|inbox",
        help="inbox: use only the inbox of the Redis user (FETCHFLEET_VIA).",
        rich_help_panel=FLEET,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reveal = Annotated[
    bool, typer.Option("--reveal", help="Show secrets: query values, header values, request bodies.")
]
PolicyFile = Annotated[
    str | None, typer.Option("--policy", metavar="FILE", help="Policy file, TOML (FETCHFLEET_POLICY).")
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write each result to this file, as a JSON line.", rich_help_panel=OUTPUT
    ),
]
OnlyFailed = Annotated[
    Path | None,
    typer.Option(
        metavar="REPORT",
        help="Fetch only what failed according to this report of an earlier run. FILE is then optional.",
    ),
]
SkipInvalid = Annotated[
    Path | None,
    typer.Option(
        "--skip-invalid",
        metavar="REJECTS",
        help="Skip invalid lines of FILE. Write each, with its number and the reason, to this file.",
        rich_help_panel=OUTPUT,
    ),
]
LinesTo = Annotated[
    str | None,
    typer.Option(
        "--lines-to",
        metavar="FILE",
        help="Require JSON Lines, and append the records of all bodies to this file; - for standard output.",
        rich_help_panel=OUTPUT,
    ),
]
Limit = Annotated[int, typer.Option(metavar="N", min=1, max=1_000_000_000, help="Show at most N.")]


def named(text: str) -> str:
    """Return the host, pattern or `default` that an argument names; raises CommandError."""
    try:
        return host_named(text)
    except PolicyError as error:
        raise CommandError(str(error), BAD_USE) from None


def host_given(text: str | None) -> str | None:
    """Return what an option names, as `named` does; None if it is not given."""
    return None if text is None else named(text)


def via_words(via: str | None) -> list[str]:
    """Return --via as it was given."""
    return ["--via", via] if via else []
