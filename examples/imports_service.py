"""An import service on top of a fleet: `uvicorn examples.imports_service:app`.

Clients post lists of URLs and fetch the results later. The workers run elsewhere; the service needs only the
public API of `fetchfleet`.
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
"""A request waits no longer for Redis: its client gets a 503 and comes again."""

RETRY_AFTER_S = 5
JSON_LINES = "application/jsonl"


class Order(BaseModel):
    """The URLs to fetch. name: returned in the `meta` of every result."""

    urls: list[str] = Field(min_length=1, max_length=10_000)
    name: str | None = None


class Accepted(BaseModel):
    """The id of an import, and the address of its status."""

    id: str
    total: int
    status: str


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
    """Open one Fleet for the life of the app; all requests share its connections."""
    redis_url = os.environ.get("FETCHFLEET_REDIS_URL", DEFAULT_REDIS_URL)
    async with Fleet(redis_url, redis_patience_s=REDIS_PATIENCE_S) as fleet:
        yield {"fleet": fleet}


def the_fleet(request: Request) -> Fleet:
    """Return the app's Fleet; tests replace it with `app.dependency_overrides`."""
    fleet: Fleet = request.state.fleet
    return fleet


TheFleet = Annotated[Fleet, Depends(the_fleet)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


def the_batch(import_id: str, fleet: TheFleet) -> Batch:
    """Return the batch of an import."""
    try:
        return fleet.batch(import_id)
    except ValueError as error:
        raise HTTPException(404, str(error)) from None


TheBatch = Annotated[Batch, Depends(the_batch)]
app = FastAPI(title="Imports", lifespan=lifespan)


@app.post("/imports", status_code=202)
async def create(
    order: Order, fleet: TheFleet, response: Response, idempotency_key: IdempotencyKey = None
) -> Accepted:
    """Enqueue the order after checking all of it. With an Idempotency-Key it is safe to send again."""
    fetches = [
        {"url": url, "meta": {"import": order.name, "place": place}} for place, url in enumerate(order.urls)
    ]
    batch_id = batch_id_for(idempotency_key) if idempotency_key else None  # accepts one order only
    batch = await fleet.submit(fetches, batch_id=batch_id)
    status = response.headers["Location"] = f"/imports/{batch.id}"
    return Accepted(id=batch.id, total=len(fetches), status=status)


@app.get("/imports/{import_id}")
async def show(batch: TheBatch) -> Progress:
    """Return the progress of the import."""
    counts = await batch.counts()
    return Progress(id=batch.id, done=counts.done, ended=counts.ended, **msgspec.structs.asdict(counts))


@app.delete("/imports/{import_id}", status_code=202)
async def cancel(batch: TheBatch) -> Progress:
    """Stop the import; fetches without a result end as cancelled."""
    await batch.cancel()
    return await show(batch)


@app.get("/imports/{import_id}/results")
async def results(batch: TheBatch, outcome: Outcome | None = None) -> StreamingResponse:
    """Stream the results as JSON lines until the import has ended."""
    await batch.counts()  # respond with 404 to an unknown import before the stream starts
    return StreamingResponse(lines(batch, outcome), media_type=JSON_LINES)


async def lines(batch: Batch, outcome: Outcome | None) -> AsyncIterator[bytes]:
    """Yield the batch's results as JSON lines. outcome: None for all of them."""
    async for result in batch.results():
        if outcome in {None, result.outcome}:
            yield msgspec.json.encode(result) + b"\n"


@app.exception_handler(BatchExistsError)
@app.exception_handler(InvalidFetchError)
async def bad_order(_: Request, error: Exception) -> JSONResponse:
    """Respond to an invalid item, or a key used for another order. Nothing was enqueued."""
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(UnknownBatchError)
async def unknown_import(_: Request, error: UnknownBatchError) -> JSONResponse:
    """Respond to an import that does not exist or has expired."""
    return JSONResponse({"detail": str(error)}, 404)


@app.exception_handler(FullError)
@app.exception_handler(RedisError)
async def no_room(_: Request, __: Exception) -> JSONResponse:
    """Respond when Redis is unreachable, loading or full. The error is not shown: it may name hosts."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return JSONResponse({"detail": "the queue is not available; send the request again later"}, 503, headers)
