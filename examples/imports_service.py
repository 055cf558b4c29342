"""An import service on top of a fleet: `uvicorn examples.imports_service:app`.

Its clients post lists of URLs and come back for the results; the workers run elsewhere. What it
needs of the fleet is `jobs` alone.
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
RETRY_AFTER_S = 5
JSON_LINES = "application/jsonl"


class Order(BaseModel):
    """What a client wants fetched; the name comes back in the `meta` of every result."""

    urls: list[str] = Field(min_length=1, max_length=10_000)
    name: str | None = None


class Accepted(BaseModel):
    """Where the client will find its import."""

    id: str
    total: int
    status: str


class Progress(BaseModel):
    """How far an import is; nothing changes any more once it has ended."""

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
    """One Fleet for the life of the app: its connections are shared by all requests."""
    async with Fleet(os.environ.get("FETCHFLEET_REDIS_URL", DEFAULT_REDIS_URL)) as fleet:
        yield {"fleet": fleet}


def the_fleet(request: Request) -> Fleet:
    """The app's Fleet; a test of a route puts its own in place with `app.dependency_overrides`."""
    fleet: Fleet = request.state.fleet
    return fleet


TheFleet = Annotated[Fleet, Depends(the_fleet)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


def the_batch(import_id: str, fleet: TheFleet) -> Batch:
    """The batch behind the id of an import."""
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
    """Enqueue the order, once all of it is checked. With an Idempotency-Key it is safe to send again."""
    fetches = [
        {"url": url, "meta": {"import": order.name, "place": place}} for place, url in enumerate(order.urls)
    ]
    batch_id = batch_id_for(idempotency_key) if idempotency_key else None  # which takes one order only
    batch = await fleet.submit(fetches, batch_id=batch_id)
    status = response.headers["Location"] = f"/imports/{batch.id}"
    return Accepted(id=batch.id, total=len(fetches), status=status)


@app.get("/imports/{import_id}")
async def show(batch: TheBatch) -> Progress:
    """How far the import is."""
    counts = await batch.counts()
    return Progress(id=batch.id, done=counts.done, ended=counts.ended, **msgspec.structs.asdict(counts))


@app.delete("/imports/{import_id}", status_code=202)
async def cancel(batch: TheBatch) -> Progress:
    """Stop the import; what has not come yet ends as cancelled."""
    await batch.cancel()
    return await show(batch)


@app.get("/imports/{import_id}/results")
async def results(batch: TheBatch, outcome: Outcome | None = None) -> StreamingResponse:
    """The results there are, then each as it comes, until the import has ended; one JSON a line."""
    await batch.counts()  # an unknown import is a 404; once the stream has begun there is no status left
    return StreamingResponse(lines(batch, outcome), media_type=JSON_LINES)


async def lines(batch: Batch, outcome: Outcome | None) -> AsyncIterator[bytes]:
    """The batch's results as JSON lines: all of them, or those with that outcome."""
    async for result in batch.results():
        if outcome in {None, result.outcome}:
            yield msgspec.json.encode(result) + b"\n"


@app.exception_handler(BatchExistsError)
@app.exception_handler(InvalidFetchError)
async def bad_order(_: Request, error: Exception) -> JSONResponse:
    """The client's fault: a bad item, or a key used for another order. Nothing was enqueued."""
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(UnknownBatchError)
async def unknown_import(_: Request, error: UnknownBatchError) -> JSONResponse:
    """Never made, or its results have expired."""
    return JSONResponse({"detail": str(error)}, 404)


@app.exception_handler(FullError)
@app.exception_handler(RedisError)
async def no_room(_: Request, __: Exception) -> JSONResponse:
    """Away, loading or full: nobody's fault here. The details stay here, for they may name hosts."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return JSONResponse({"detail": "the queue takes nothing now; ask again"}, 503, headers)
