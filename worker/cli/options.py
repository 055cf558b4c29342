"""The options that several commands share. The import must stay quick: `run` starts its workers after it."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

File = Annotated[str, typer.Argument(help="URLs or JSON fetches, one a line; - for standard input.")]
RedisUrl = Annotated[str | None, typer.Option("--redis", help="The fleet's Redis (FETCHFLEET_REDIS_URL).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: JSON on standard output.")]
PolicyFile = Annotated[str | None, typer.Option("--policy", help="TOML (FETCHFLEET_POLICY).")]
Report = Annotated[Path | None, typer.Option(help="Write each result as a JSON line to this file.")]
LinesTo = Annotated[
    str | None,
    typer.Option(
        "--lines-to",
        help="Ask for JSON Lines and gather the records of all bodies in this file; - or stream: on standard"
        " output.",
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]

_WORKER_OPTIONS = {
    "out": Annotated[str | None, typer.Option(help="Folder for bodies (FETCHFLEET_OUT), ./data by default.")],
    "in_folder": Annotated[str | None, typer.Option("--in", help="Folder of files to send (FETCHFLEET_IN).")],
    "policy": PolicyFile,
    "allow_net": Annotated[
        str | None,
        typer.Option(help="CIDR[,CIDR] that may be dialled although not public (FETCHFLEET_ALLOW_NET)."),
    ],
    "deny_net": Annotated[
        str | None,
        typer.Option(help="CIDR[,CIDR] that is never dialled, allowed or public (FETCHFLEET_DENY_NET)."),
    ],
    "engine": Annotated[str | None, typer.Option(help="httpx or reqwest (FETCHFLEET_ENGINE).")],
    "sink": Annotated[
        str | None, typer.Option(help="files, a body each, or warc: WARC segments (FETCHFLEET_SINK).")
    ],
}


def with_worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a worker to a command, which receives them as one mapping, `flags`."""

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        command(flags={name: given.pop(name) for name in _WORKER_OPTIONS}, **given)

    own = inspect.signature(command)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _WORKER_OPTIONS.items()
    ]
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "flags"]
    wrapper.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return wrapper
