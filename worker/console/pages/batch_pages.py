"""The pages of batches: the list, one batch, and its results."""

from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from fetchfleet.jobs.client.batch import FROM_THE_START
from fetchfleet.jobs.contract.ids import is_batch_id, is_position
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.console.actions import actions_of
from fetchfleet.worker.console.forms import Form, form_route
from fetchfleet.worker.console.html import Notice, redirect_with
from fetchfleet.worker.console.pages.live import Context, live_route, page_route
from fetchfleet.worker.console.problems import ProblemError
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.inspect.views.batches import BatchDetail, batch_detail, batches
from fetchfleet.worker.inspect.views.results import ResultQuery, result_lines, results_of

PAGE_ROWS = 50
MAX_OFFSET_CHARS = 9


async def read_batches(request: Request) -> Context:
    """Read the list of batches."""
    text = request.query_params.get("offset", "")
    offset = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_OFFSET_CHARS else 0
    found = await services_of(request).read(batches, offset=offset, limit=PAGE_ROWS)
    return {"section": "batches", "now_ms": found.now_ms, "page": found, "offset": offset}


async def find_batch(request: Request) -> Response:
    """Go to the page of the batch with an ID, or of a fetch with one."""
    batch_id = request.query_params.get("id", "").strip().lower()[:16]
    if not is_batch_id(batch_id):
        raise ProblemError(404, "a batch ID has 16 hex digits")
    return RedirectResponse(f"/batches/{batch_id}", 303)


async def read_batch(request: Request) -> Context:
    """Read one batch."""
    detail = await _detail(request)
    return {"section": "batches", "now_ms": detail.now_ms, "batch": detail.batch, "detail": detail}


async def _detail(request: Request) -> BatchDetail:
    """Return the batch of a request. Raises ProblemError."""
    batch_id = _batch_id(request)
    detail = await services_of(request).read(batch_detail, batch_id)
    if detail is None:
        raise ProblemError(404, f"batch {batch_id} is not in Redis: it never existed, or it expired")
    return detail


def _batch_id(request: Request) -> str:
    batch_id: str = request.path_params["batch"]
    if not is_batch_id(batch_id):
        raise ProblemError(404, "a batch ID has 16 hex digits")
    return batch_id


async def ask_to_cancel(request: Request) -> Context:
    """Read what a cancellation of a batch would end."""
    batch = (await _detail(request)).batch
    left, path = batch.left, f"/batches/{batch.id}"
    is_over = batch.state in {"ended", "cancelled"}
    text = (
        f"Every fetch of {batch.id} has its result."
        if is_over
        else f"{left:,} of its {batch.counts.total:,} fetches have no result yet."
        " They end as cancelled. Those in flight are stopped."
    )
    return {
        "section": "batches",
        "title": f"Cancel batch {batch.id}?",
        "texts": [text],
        "parts": [],
        "action": f"{path}/cancel",
        "fields": [],
        "button": "" if is_over else f"Cancel {left:,} {'fetch' if left == 1 else 'fetches'}",
        "is_danger": True,
        "back": path,
        "back_text": "Back" if is_over else "Keep the batch",
    }


async def cancel_batch(request: Request, _: Form) -> Response:
    """Cancel a batch."""
    batch_id = _batch_id(request)
    counts = await actions_of(request).cancel(batch_id)
    left = counts.total - counts.done
    ends = "fetch ends" if left == 1 else "fetches end"
    notice = Notice("done", f"Batch {batch_id} is cancelled. {left:,} {ends} within about a second.")
    return redirect_with(request, f"/batches/{batch_id}", notice)


def result_query(parameters: Mapping[str, str]) -> ResultQuery:
    """Return the selection of a request. Values that are not known are left out."""
    outcome, reason = parameters.get("outcome", ""), parameters.get("reason", "")
    after = parameters.get("after", "")
    return ResultQuery(
        outcome=outcome if outcome in set(Outcome) else "",
        reason=reason if reason in set(Reason) else "",
        host=parameters.get("host", "").strip().lower()[:300],
        after=after if is_position(after) else FROM_THE_START,
        limit=PAGE_ROWS,
    )


async def read_results(request: Request) -> Context:
    """Read a page of the results of a batch."""
    batch_id, query = _batch_id(request), result_query(request.query_params)
    found = await results_of(services_of(request).fleet.batch(batch_id), query)
    given = {"outcome": query.outcome, "reason": query.reason, "host": query.host}
    fields = {name: value for name, value in given.items() if value}
    path = f"/batches/{batch_id}/results"
    return {
        "section": "batches",
        "batch": batch_id,
        "page": found,
        "query": query,
        "is_first": query.after == FROM_THE_START,
        "outcomes": list(Outcome),
        "reasons": list(Reason),
        "download": f"{path}.jsonl?{urlencode(fields)}",
        "first": f"{path}?{urlencode(fields)}",
        "next": f"{path}?{urlencode({**fields, 'after': found.next})}" if found.next else "",
    }


async def download_results(request: Request) -> Response:
    """Send the results that match as JSON Lines, without secrets."""
    batch_id, query = _batch_id(request), result_query(request.query_params)
    batch = services_of(request).fleet.batch(batch_id)
    await batch.counts()  # raises UnknownBatchError

    async def lines() -> AsyncIterator[bytes]:
        async for text in result_lines(batch, query):
            yield text

    name = "-".join(part for part in (batch_id, query.outcome, query.reason) if part)
    headers = {"Content-Disposition": f'attachment; filename="{name}.jsonl"'}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


ROUTES = [
    live_route("/batches", "batches.html", read_batches),
    Route("/batches/find", find_batch, methods=["GET"]),
    live_route("/batches/{batch}", "batch.html", read_batch),
    page_route("/batches/{batch}/cancel", "confirm.html", ask_to_cancel),
    form_route("/batches/{batch}/cancel", cancel_batch),
    page_route("/batches/{batch}/results", "results.html", read_results),
    Route("/batches/{batch}/results.jsonl", download_results, methods=["GET"]),
]
