"""The objects that all requests of the server share, and the caller of a request."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

from redis.asyncio import Redis
from starlette.requests import HTTPConnection
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.worker.console.access.credentials import BrowserSession, LoginLimit, Sessions, Token
from fetchfleet.worker.console.metrics import FleetMetrics
from fetchfleet.worker.console.pages.state import PagesState

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ConsoleServices:
    """The objects that all requests share."""

    fleet: Fleet
    """Submits, and reads batches and dead letters."""
    redis: Redis
    """For the views of worker/inspect; call them through `read`."""
    log: FilteringBoundLogger
    token: Token | None
    """None: everyone who can connect may do everything. The server then listens on loopback only."""
    sessions: Sessions
    cookie: str
    """The name of the session cookie."""
    metrics: FleetMetrics
    """The metrics of the fleet, for `/metrics`."""
    read_only: bool = False
    """Refuse every change."""
    is_https: bool = False
    """Browsers reach the server by https, through a proxy: cookies are Secure."""
    logins: LoginLimit = field(default_factory=LoginLimit)
    pages: PagesState = field(default_factory=PagesState)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server stops, which ends live streams."""

    async def read(
        self, view: Callable[Concatenate[Redis, P], Awaitable[T]], /, *args: P.args, **named: P.kwargs
    ) -> T:
        """Return what a view reads from Redis; repeat it for the patience. Raises FleetUnreachableError."""
        return await self.fleet.call(view, self.redis, *args, **named)


@dataclass(frozen=True)
class Caller:
    """The caller of a request."""

    name: str
    """`token`, `local` without a token, or the name of the session."""
    peer: str
    """The address of the client."""
    session: BrowserSession | None = None
    """The session of a browser."""


def services_of(request: HTTPConnection) -> ConsoleServices:
    """Return the services of the app that serves the request."""
    services = request.app.state.services
    assert isinstance(services, ConsoleServices)
    return services


def caller_of(request: HTTPConnection) -> Caller:
    """Return the caller of a request that the guard let pass."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller
