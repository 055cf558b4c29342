"""The command `serve`: the console and the HTTP API of a fleet."""

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from fetchfleet.worker.cli.options.shared import FLEET, RedisUrl
from fetchfleet.worker.console.access.credentials import Token, TokenError, check_token_mode, is_loopback
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.process import run_until_signal, settings_from
from fetchfleet.worker.util.listen import host_and_port, listening_socket

EXAMPLE = "Example: fetchfleet serve --listen 127.0.0.1:8080"
DEFAULT_PATIENCE_S = 5.0
MAX_MAX_BACKLOG = 1 << 53
MAX_FILE_BYTES = 8192

Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Address to listen on.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with the token that every request needs. Other users must not be able to read it.",
    ),
]
ReadOnly = Annotated[bool, typer.Option("--read-only", help="Refuse every change.")]
Https = Annotated[
    bool, typer.Option("--https", help="A proxy on another machine serves this by https: secure the cookies.")
]
MaxBacklog = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        max=MAX_MAX_BACKLOG,
        help="Enqueue only while the fleet has fewer than N unfinished fetches (default: 0, no limit).",
        rich_help_panel=FLEET,
    ),
]
ServePatience = Annotated[
    float | None,
    typer.Option(
        "--redis-patience",
        metavar="SECONDS",
        min=0,
        help="Time to wait while Redis does not answer, before a request gets 503 (default: 5, env:"
        " FETCHFLEET_REDIS_PATIENCE_S).",
        rich_help_panel=FLEET,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog=EXAMPLE)(serve)


def serve(
    redis: RedisUrl = None,
    listen: Listen = "127.0.0.1:8080",
    token_file: TokenFile = None,
    *,
    read_only: ReadOnly = False,
    https: Https = False,
    max_backlog: MaxBacklog = None,
    redis_patience: ServePatience = None,
) -> None:
    """Serve the console and the HTTP API of a fleet.

    Without a token it listens on loopback only: everyone who can connect may steer the fleet.
    """
    try:
        from fetchfleet.worker.console.server import ServeOptions  # noqa: PLC0415 it needs an extra
        from fetchfleet.worker.console.server import serve as serve_app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise CommandError(f"serve needs {error.name}: pip install 'fetchfleet[console]'", BAD_USE) from None
    from fetchfleet.worker.observability import log  # noqa: PLC0415 slow, and not needed for --help

    if redis_patience is None and not os.environ.get("FETCHFLEET_REDIS_PATIENCE_S"):
        redis_patience = DEFAULT_PATIENCE_S
    settings = settings_from(
        {"redis_url": redis, "redis_patience_s": redis_patience, "max_backlog": max_backlog}
    )
    token = None
    if token_file is not None:
        try:
            text, mode = _read(token_file)
            check_token_mode(mode)
            token = Token(text)
        except TokenError as error:
            raise CommandError(f"--token-file {token_file}: {error}", BAD_USE) from None
    host, port = _parse_listen(listen)
    if token is None and not is_loopback(host):
        raise CommandError(
            f"--listen {listen}: without a token everyone who can connect could steer the fleet; add"
            " --token-file FILE, or listen on 127.0.0.1",
            BAD_USE,
        )
    listening = _listening(listen, host, port)
    log.configure(level=settings.log_level, schema=settings.log_schema, worker=settings.worker_id)
    run_until_signal(serve_app(settings, ServeOptions(token, read_only, https), listening))


def _read(file: Path) -> tuple[str, int]:
    """Return the text of a token file without surrounding space, and its mode. Raises CommandError."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            return opened.read(MAX_FILE_BYTES).decode("ascii", "replace").strip(), mode
    except OSError as error:
        raise CommandError(f"--token-file {file}: {error.strerror}", BAD_USE) from None


def _parse_listen(listen: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT. Raises CommandError."""
    try:
        return host_and_port(listen, "--listen")
    except ValueError as error:
        raise CommandError(str(error), BAD_USE) from None


def _listening(listen: str, host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises CommandError."""
    try:
        return listening_socket(host, port)
    except OSError as error:
        raise CommandError(f"--listen {listen}: {error.strerror}") from None
