"""The options that several commands share. Keep imports few: `run` loads them before it forks workers."""

from pathlib import Path
from typing import Annotated

import typer

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import host_named

OUTPUT, FLEET, LIST = "Output", "Fleet", "List"
"""Groups of options in help texts."""

HOST_HELP = "A host, one of its URLs, a pattern (*.cdn.net), or default."
_LIST_HELP = (
    "List of URLs: text, JSON Lines, CSV, TSV, Parquet, aria2 or sitemap, also in gzip or zstd. A path, a"
    " quoted pattern, the URL of an object or of a list, or - for standard input."
)
File = Annotated[str, typer.Argument(metavar="FILE", help=_LIST_HELP)]
FileOrReport = Annotated[str | None, typer.Argument(metavar="FILE", help=_LIST_HELP)]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        help="The fleet's Redis (env: FETCHFLEET_REDIS_URL).",
        rich_help_panel=FLEET,
    ),
]
RedisPatience = Annotated[
    float | None,
    typer.Option(
        "--redis-patience",
        metavar="SECONDS",
        min=0,
        help="Time to wait while Redis does not answer (default: 60, env: FETCHFLEET_REDIS_PATIENCE_S).",
        rich_help_panel=FLEET,
    ),
]
Via = Annotated[
    str | None,
    typer.Option(
        metavar="lanes|inbox",
        help="With inbox, use only the inbox of the Redis user (default: lanes, env: FETCHFLEET_VIA).",
        rich_help_panel=FLEET,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reveal = Annotated[
    bool, typer.Option("--reveal", help="Show secrets: query values, header values and request bodies.")
]
PolicyFile = Annotated[
    str | None, typer.Option("--policy", metavar="FILE", help="Policy file, TOML (env: FETCHFLEET_POLICY).")
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write results to this file: JSON Lines, or a table if it ends in .csv, .parquet or .sqlite.",
        rich_help_panel=OUTPUT,
    ),
]
OnlyFailed = Annotated[
    Path | None,
    typer.Option(
        metavar="REPORT",
        help="Fetch only what failed or was cancelled by this report of an earlier run. FILE is optional.",
    ),
]
SkipInvalid = Annotated[
    Path | None,
    typer.Option(
        "--skip-invalid",
        metavar="REJECTS",
        help="Skip invalid lines of FILE, and write them to this file with number and reason.",
        rich_help_panel=LIST,
    ),
]
LinesTo = Annotated[
    str | None,
    typer.Option(
        "--lines-to",
        metavar="FILE",
        help="Require bodies in JSON Lines, and append their records to this file; - for standard output.",
        rich_help_panel=OUTPUT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only check FILE: print its fetches by host and the expected duration. Needs no Redis.",
    ),
]
Limit = Annotated[int, typer.Option(metavar="N", min=1, max=1_000_000_000, help="Show at most N.")]


def parse_host(text: str) -> str:
    """Return the host, pattern or `default` that an argument names. Raises CommandError."""
    try:
        return host_named(text)
    except PolicyError as error:
        raise CommandError(str(error), BAD_USE) from None


def parse_host_option(text: str | None) -> str | None:
    """Return the host, pattern or `default` that an option names; None if it is not given."""
    return None if text is None else parse_host(text)


def via_words(via: str | None) -> list[str]:
    """Return the words of `--via`, for a command line that continues this one."""
    return ["--via", via] if via else []
