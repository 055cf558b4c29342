"""The app of the console for tests, in the process of the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from fetchfleet.worker.console.access import Token
from fetchfleet.worker.console.app import console_app
from fetchfleet.worker.console.server import ServeOptions, connected
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.settings import Settings

TOKEN = "fleet-token-0123456789abcdef"
PORT = 8080
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def console(
    redis_url: str, *, token: str | None = None, base_url: str = f"http://localhost:{PORT}", **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an app on the Redis. options: of ServeOptions, and settings."""
    served = {name: options.pop(name) for name in ("read_only", "is_https") if name in options}
    settings = Settings(redis_url=redis_url, redis_patience_s=options.pop("redis_patience_s", 1.0), **options)
    serve = ServeOptions(Token(token) if token else None, **served)
    async with connected(settings, serve, get_logger(worker="console"), PORT) as services:
        transport = httpx.ASGITransport(console_app(services), client=("192.0.2.7", 40000))
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            yield client
