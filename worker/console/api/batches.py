"""The operations on batches: list, progress, results, cancel."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fetchfleet.jobs.client.batch import FROM_THE_START, Counts, ReadResult, Results
from fetchfleet.jobs.contract.result import Result
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.jobs.errors import UnknownBatchError
from fetchfleet.worker.console.actions import actions_of
from fetchfleet.worker.console.api.operations import NDJSON, Operation, answer, batch_id_of, query_of
from fetchfleet.worker.console.problems import ProblemError
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.inspect.views.batches import BatchDetail, BatchPage, batch_detail, batches
from fetchfleet.worker.observability import redact
from fetchfleet.worker.util import aio

MAX_OFFSET = 1_000_000
MAX_WAIT_S = 300.0
MAX_RESULTS = 1_000_000_000
POSITION = r"^[0-9]{1,19}(-[0-9]{1,19})?$"


class BatchesQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a list of batches."""

    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_OFFSET)] = 0
    """The number of newest batches to skip."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 50
    """The maximum number of batches."""


class ResultsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of the results of a batch."""

    after: Annotated[str, msgspec.Meta(pattern=POSITION)] = FROM_THE_START
    """The position of the last result that was read; only later results follow."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_RESULTS)] = MAX_RESULTS
    """The maximum number of results."""
    wait: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)] = 0.0
    """The seconds to wait for more results, while the batch has not ended."""
    reveal: bool = False
    """Show secrets in URLs and in `meta`. The server refuses it with `--read-only`."""


class PositionedResult(Result, frozen=True, kw_only=True):
    """A result, with its position in the batch."""

    position: str
    """The position, for `after`."""
    redacted: bool = False
    """True if a secret is masked."""


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A cancelled batch. Workers end its fetches within about a second."""

    id: str
    """The ID of the batch."""
    ended: bool
    """True if every fetch has a result."""
    counts: Counts
    """The progress so far."""


async def get_batches(request: Request) -> Response:
    """List the newest batches."""
    query = query_of(request, BatchesQuery)
    return answer(await services_of(request).read(batches, offset=query.offset, limit=query.limit))


async def get_batch(request: Request) -> Response:
    """Show the progress of a batch."""
    batch_id = batch_id_of(request)
    detail = await services_of(request).read(batch_detail, batch_id)
    if detail is None:
        raise UnknownBatchError(f"batch {batch_id} is not in Redis: it never existed, or it expired")
    return answer(detail)


async def get_results(request: Request) -> Response:
    """Stream results of a batch, each as a line."""
    query, services = query_of(request, ResultsQuery), services_of(request)
    if query.reveal and services.read_only:
        raise ProblemError(403, "reveal: the server runs with --read-only", "denied")
    batch = services.fleet.batch(batch_id_of(request))
    await batch.counts()  # raises UnknownBatchError before the response begins
    results = batch.results(after=query.after, follow=query.wait > 0)
    return StreamingResponse(_lines(results, query, services.stopping), 200, media_type=NDJSON)


async def _lines(results: Results, query: ResultsQuery, stopping: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield pages of results as lines, until the limit, the end of the batch or time, or the server stops."""
    ends_s = asyncio.get_running_loop().time() + query.wait if query.wait else None
    left = query.limit
    while left > 0 and (page := (await _page(results, ends_s, stopping))[:left]):
        left -= len(page)
        yield b"".join(_line(of.position, of.text, query) for of in page)


async def _page(results: Results, ends_s: float | None, stopping: asyncio.Event) -> list[ReadResult]:
    """Return the next page; an empty one at the end, after ends_s (of the loop), or if the server stops."""
    reading = asyncio.create_task(results.page(), name="results")
    try:
        async with asyncio.timeout_at(ends_s):
            await aio.wait_for_either(reading, stopping)
    except TimeoutError:
        pass
    else:
        if reading.done():
            return reading.result()
    finally:
        await aio.end(reading)
    return []


def _line(position: str, text: bytes, query: ResultsQuery) -> bytes:
    """Return a result as a line. Secrets are masked unless they are to be revealed."""
    result: dict[str, Any] = msgspec.json.decode(text)
    shown = result if query.reveal else redact.result(result)
    return safe_json(msgspec.json.encode({"position": position, **shown})) + b"\n"


async def delete_batch(request: Request) -> Response:
    """Cancel a batch."""
    batch_id = batch_id_of(request)
    counts = await actions_of(request).cancel(batch_id)
    return answer(Cancelled(id=batch_id, ended=counts.ended, counts=counts))


OPERATIONS = [
    Operation("GET", "/v1/batches", get_batches, "List the newest batches.", BatchPage, query=BatchesQuery),
    Operation("GET", "/v1/batches/{batch}", get_batch, "Show the progress of a batch.", BatchDetail),
    Operation(
        "GET",
        "/v1/batches/{batch}/results",
        get_results,
        "Stream the results of a batch, one a line.",
        PositionedResult,
        query=ResultsQuery,
        media_type=NDJSON,
    ),
    Operation("DELETE", "/v1/batches/{batch}", delete_batch, "Cancel a batch.", Cancelled),
]
