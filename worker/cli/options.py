"""The options that several commands share. The import must stay quick: `run` starts its workers after it."""

from pathlib import Path
from typing import Annotated

import typer

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.policy.names import host_named

Host = "A host or a URL of it, a pattern (*.cdn.net), or default"
File = Annotated[str, typer.Argument(help="URLs or JSON fetches, one a line; - for standard input.")]
FileOrReport = Annotated[
    str | None, typer.Argument(metavar="FILE", help="URLs or JSON fetches, one a line; - for standard input.")
]
RedisUrl = Annotated[str | None, typer.Option("--redis", help="The fleet's Redis (FETCHFLEET_REDIS_URL).")]
RedisPatience = Annotated[
    float | None,
    typer.Option(
        "--redis-patience",
        min=0,
        help="Seconds to wait for a Redis that does not answer, 60 by default (FETCHFLEET_REDIS_PATIENCE_S).",
    ),
]
Via = Annotated[
    str | None,
    typer.Option(
        metavar="lanes|inbox",
        help="inbox: by the inbox of the Redis user, which may be all that it has (FETCHFLEET_VIA).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For machines: JSON on standard output.")]
Reveal = Annotated[bool, typer.Option("--reveal", help="With secrets: query values, headers, bodies.")]
PolicyFile = Annotated[str | None, typer.Option("--policy", help="TOML (FETCHFLEET_POLICY).")]
Report = Annotated[Path | None, typer.Option(help="Write each result as a JSON line to this file.")]
OnlyFailed = Annotated[
    Path | None,
    typer.Option(
        metavar="REPORT",
        help="Fetch what failed by this report of an earlier run. FILE may be left out.",
    ),
]
SkipInvalid = Annotated[
    Path | None,
    typer.Option(
        "--skip-invalid",
        metavar="REJECTS",
        help="Skip invalid lines of FILE and write each, with its number and the reason, to this file.",
    ),
]
LinesTo = Annotated[
    str | None,
    typer.Option(
        "--lines-to",
        help="Ask for JSON Lines and gather the records of all bodies in this file; - or stream: on standard"
        " output.",
    ),
]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000_000, help="How many at most.")]


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
