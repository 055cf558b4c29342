"""Exchanges on the connection pool of a lane, without an engine."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from fetchfleet.worker.http.connection_stats import ConnectionStats
from fetchfleet.worker.http.exchange import Request, Response, Trace
from fetchfleet.worker.http.net.dns import Resolver
from fetchfleet.worker.http.net.guard import Dialler, GuardedNetwork
from fetchfleet.worker.http.net.pool import LanePool
from fetchfleet.worker.http.net.redis_guard import RedisAddresses
from fetchfleet.worker.http.request_body import FileBody, MemoryBody
from fetchfleet.worker.http.wire import Header
from fetchfleet.worker.policy.egress import Egress
from fetchfleet.worker.policy.model import Timeouts

LONG_TIMEOUTS = Timeouts(connect_s=10, read_s=10, write_s=10, pool_s=10, total_s=10)


def dialler_to(host: str, stats: ConnectionStats) -> Dialler:
    """Return a dialler that is allowed to connect to the host, at any port."""
    return Dialler(GuardedNetwork(Egress.parse(host), Resolver(), RedisAddresses(None, 0)), host, (), stats)


@asynccontextmanager
async def lane_pool(
    host: str,
    cafile: Path | None = None,
    *,
    stats: ConnectionStats | None = None,
    max_idle: int = 100,
    **how: Any,
) -> AsyncIterator[LanePool]:
    """Yield the pool of a host; close it at the end of the block."""
    stats = stats or ConnectionStats()

    def tls(http2: bool) -> ssl.SSLContext:  # noqa: FBT001 the pool passes it by position
        trusting = ssl.create_default_context(cafile=cafile)
        trusting.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
        return trusting

    pool = LanePool(dialler_to(host, stats), tls, stats, max_idle=max_idle, **how)
    try:
        yield pool
    finally:
        await pool.close()


def request_to(
    url: str,
    method: str = "GET",
    content: bytes | MemoryBody | FileBody | None = None,
    headers: tuple[Header, ...] = (),
    **timeouts: float,
) -> Request:
    """Return a request with Host and, if it has content, Content-Length.

    timeouts: fields that replace those of LONG_TIMEOUTS.
    """
    parts = urlsplit(url)
    if isinstance(content, bytes):
        content = MemoryBody(content)
    framing = () if content is None else ((b"Content-Length", b"%d" % content.length_bytes),)
    return Request(
        method=method,
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port or {"http": 80, "https": 443}[parts.scheme],
        target=(parts.path + ("?" + parts.query if parts.query else "")).encode() or b"/",
        headers=((b"Host", parts.netloc.encode()), *framing, *headers),
        content=content,
        timeouts=replace(LONG_TIMEOUTS, **timeouts),
        trace=Trace(),
    )


@asynccontextmanager
async def exchange(pool: LanePool, url: str, *args: Any, **request: Any) -> AsyncIterator[Response]:
    """Send a request; yield the response, and close it at the end of the block."""
    response = await pool.exchange(request_to(url, *args, **request))
    try:
        yield response
    finally:
        response.close()


async def read_all(response: Response) -> bytes:
    """Return the rest of the body."""
    pieces = []
    while piece := await response.read():
        pieces.append(piece)
    return b"".join(pieces)


async def fetch(pool: LanePool, url: str, *args: Any, **request: Any) -> bytes:
    """Send a request; return the whole body of the response."""
    async with exchange(pool, url, *args, **request) as response:
        return await read_all(response)
