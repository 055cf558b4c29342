"""Flags and arguments that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[str, typer.Argument(help="URLs or JSON fetches, one a line; - for standard input.")]
RedisUrl = Annotated[str | None, typer.Option("--redis", help="The fleet's Redis (FETCHFLEET_REDIS_URL).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: JSON on standard output.")]
Out = Annotated[str | None, typer.Option(help="Folder for bodies (FETCHFLEET_OUT), ./data by default.")]
In = Annotated[str | None, typer.Option("--in", help="Folder of files to send (FETCHFLEET_IN).")]
PolicyFile = Annotated[str | None, typer.Option("--policy", help="TOML (FETCHFLEET_POLICY).")]
AllowNet = Annotated[
    str | None,
    typer.Option(help="CIDR[,CIDR] that may be dialled although not public (FETCHFLEET_ALLOW_NET)."),
]
DenyNet = Annotated[
    str | None,
    typer.Option(help="CIDR[,CIDR] that is never dialled, allowed or public (FETCHFLEET_DENY_NET)."),
]
Engine = Annotated[str | None, typer.Option(help="httpx or reqwest (FETCHFLEET_ENGINE).")]
Sink = Annotated[
    str | None, typer.Option(help="files, a body each, or warc: WARC segments (FETCHFLEET_SINK).")
]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")]
Report = Annotated[Path | None, typer.Option(help="Write each result as a JSON line to this file.")]
LinesTo = Annotated[
    str | None,
    typer.Option(
        "--lines-to",
        help="Ask for JSON Lines and gather the records of all bodies in this file; - or stream: on standard"
        " output.",
    ),
]
