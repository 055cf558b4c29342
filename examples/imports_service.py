"""An import service that uses a fleet: `uvicorn examples.imports_service:app`.

Clients post lists of URLs and get the results later. The workers run in other processes. The service uses
only the public API of `fetchfleet`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from fetchfleet import (
    Batch,
    BatchExistsError,
    Fleet,
    FullError,
    InvalidFetchError,
    Outcome,
    UnknownBatchError,
    batch_id_for,
)

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379"
REDIS_PATIENCE_S = 2.0
"""The maximum time that a request waits for Redis. After it, the client gets a 503 and may retry."""

RETRY_AFTER_S = 5
JSON_LINES = "application/jsonl"


class Order(BaseModel):
    """The URLs to fetch."""

    urls: list[str] = Field(min_length=1, max_length=10_000)
    name: str | None = None
    """Returned in the `meta` of every result."""


class Accepted(BaseModel):
    """An import that was enqueued."""

    id: str
    total: int
    """The number of fetches."""
    status: str
    """The path of its progress."""


class Progress(BaseModel):
    """The progress of an import; final once `ended` is true."""

    id: str
    total: int
    done: int
    stored: int
    unchanged: int
    failed: int
    cancelled: int
    bytes: int
    ended: bool


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open one Fleet for the lifetime of the app; all requests share its connections."""
    redis_url = os.environ.get("FETCHFLEET_REDIS_URL", DEFAULT_REDIS_URL)
    async with Fleet(redis_url, redis_patience_s=REDIS_PATIENCE_S) as fleet:
        yield {"fleet": fleet}


def get_fleet(request: Request) -> Fleet:
    """Return the app's Fleet; tests replace it with `app.dependency_overrides`."""
    fleet: Fleet = request.state.fleet
    return fleet


FleetDependency = Annotated[Fleet, Depends(get_fleet)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


def get_batch(import_id: str, fleet: FleetDependency) -> Batch:
    """Return the batch of an import; respond with 404 to a malformed ID."""
    try:
        return fleet.batch(import_id)
    except ValueError as error:
        raise HTTPException(404, str(error)) from None


BatchDependency = Annotated[Batch, Depends(get_batch)]
app = FastAPI(title="Imports", lifespan=lifespan)


@app.post("/imports", status_code=202)
async def create(
    order: Order, fleet: FleetDependency, response: Response, idempotency_key: IdempotencyKey = None
) -> Accepted:
    """Check the whole order, then enqueue it. With an Idempotency-Key the request can be repeated."""
    fetches = [
        {"url": url, "meta": {"import": order.name, "place": index}} for index, url in enumerate(order.urls)
    ]
    batch_id = batch_id_for(idempotency_key) if idempotency_key else None  # a batch accepts one order only
    batch = await fleet.submit(fetches, batch_id=batch_id)
    status = response.headers["Location"] = f"/imports/{batch.id}"
    return Accepted(id=batch.id, total=len(fetches), status=status)


@app.get("/imports/{import_id}")
async def show(batch: BatchDependency) -> Progress:
    """Return the progress of the import."""
    counts = await batch.counts()
    return Progress(id=batch.id, done=counts.done, ended=counts.ended, **msgspec.structs.asdict(counts))


@app.delete("/imports/{import_id}", status_code=202)
async def cancel(batch: BatchDependency) -> Progress:
    """Cancel the import; fetches without a result end as cancelled."""
    await batch.cancel()
    return await show(batch)


@app.get("/imports/{import_id}/results")
async def results(batch: BatchDependency, outcome: Outcome | None = None) -> StreamingResponse:
    """Stream the results as JSON lines until the import has ended."""
    await batch.counts()  # respond with 404 to an unknown import before the stream starts
    return StreamingResponse(lines(batch, outcome), media_type=JSON_LINES)


async def lines(batch: Batch, outcome: Outcome | None) -> AsyncIterator[bytes]:
    """Yield the batch's results with this outcome as JSON lines. outcome: None for all results."""
    async for result in batch.results():
        if outcome in {None, result.outcome}:
            yield msgspec.json.encode(result) + b"\n"


@app.exception_handler(BatchExistsError)
@app.exception_handler(InvalidFetchError)
async def bad_order(_: Request, error: Exception) -> JSONResponse:
    """Respond with 422 to an invalid item, or to a key of another order. Nothing was enqueued."""
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(UnknownBatchError)
async def unknown_import(_: Request, error: UnknownBatchError) -> JSONResponse:
    """Respond with 404 to an import that does not exist or has expired."""
    return JSONResponse({"detail": str(error)}, 404)


@app.exception_handler(FullError)
@app.exception_handler(RedisError)
async def unavailable(_: Request, __: Exception) -> JSONResponse:
    """Respond with 503 if Redis is down, loading or full. The error is not shown: it may name hosts."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return JSONResponse({"detail": "the queue is not available; send the request again later"}, 503, headers)
