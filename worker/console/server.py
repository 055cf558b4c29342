"""The server of `fetchfleet serve`: uvicorn in this process, until SIGTERM or SIGINT."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.console.access.credentials import Sessions, Token
from fetchfleet.worker.console.app import console_app
from fetchfleet.worker.console.connections import Connection
from fetchfleet.worker.console.metrics import FleetMetrics
from fetchfleet.worker.console.services import ConsoleServices
from fetchfleet.worker.observability.log import Event, get_logger
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util import aio

STOP_S = 3
"""The time that requests have to end when the server stops."""
MAX_CONNECTIONS = 1000
"""Further connections get a 503."""
KEEP_ALIVE_S = 15
PROXIES = ["127.0.0.1", "::1"]
"""The peers whose X-Forwarded-For and X-Forwarded-Proto are believed: a proxy on this machine."""


class ServeOptions(NamedTuple):
    """The options of `fetchfleet serve` besides the settings."""

    token: Token | None = None
    """None: everyone who can connect may do everything."""
    read_only: bool = False
    """Refuse every change."""
    is_https: bool = False
    """A proxy on another machine serves the console by https."""


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, options: ServeOptions, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT. listening: a listening socket."""
    signalled = aio.stop_signal()
    async with running(settings, options, listening) as serving:
        await aio.wait_for_either(serving, signalled)


@asynccontextmanager
async def running(
    settings: Settings, options: ServeOptions, listening: socket.socket
) -> AsyncIterator[asyncio.Task[None]]:
    """Serve within the block. Yields the task of the server, which ends with the block or by a bug."""
    log = get_logger(worker=settings.worker_id)
    address, port = listening.getsockname()[:2]
    async with connected(settings, options, log, port) as services:
        server = _Server(_config(console_app(services)))
        serving = asyncio.create_task(server.serve([listening]), name="serve")
        listen = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        log.info(
            Event.CONSOLE_STARTED,
            listen=listen,
            token=options.token is not None,
            read_only=options.read_only,
        )
        try:
            yield serving
        finally:
            services.stopping.set()
            server.should_exit = True
            await serving
            log.info(Event.CONSOLE_STOPPED)


@asynccontextmanager
async def connected(
    settings: Settings, options: ServeOptions, log: FilteringBoundLogger, port: int
) -> AsyncIterator[ConsoleServices]:
    """Connect to the fleet within the block. port: of the server; browsers share cookies among ports."""
    fleet = Fleet(
        settings.redis_url,
        max_backlog=settings.max_backlog,
        redis_patience_s=settings.redis_patience_s,
        warn=lambda message: log.warning(Event.CONSOLE_REDIS, message=message),
    )
    async with fleet, connect(settings.redis_url, max(settings.redis_patience_s, 1)) as redis:
        yield ConsoleServices(
            fleet=fleet,
            redis=redis,
            log=log,
            token=options.token,
            sessions=Sessions(secrets.token_bytes(32)),
            cookie=f"fetchfleet_{port}",
            metrics=FleetMetrics(redis),
            read_only=options.read_only,
            is_https=options.is_https,
        )


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=PROXIES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )
