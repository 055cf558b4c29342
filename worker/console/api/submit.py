"""POST /v1/batches: enqueue a message, or a stream of fetches as lines."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fetchfleet.jobs.client.submit import Receipt, new_batch_id
from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES, Fetch
from fetchfleet.jobs.contract.fetch_list import SPACE, read_fetch
from fetchfleet.jobs.contract.ids import batch_id_for, fetch_id
from fetchfleet.jobs.contract.messages import MAX_INPUT_BYTES, Order, read_message
from fetchfleet.jobs.errors import BatchExistsError, InvalidFetchError, UnknownBatchError
from fetchfleet.worker.console.actions import actions_of
from fetchfleet.worker.console.api.operations import JSON, NDJSON, Operation, not_json, query_of
from fetchfleet.worker.console.bodies import lines, media_type_of, read_body
from fetchfleet.worker.console.problems import PartlyEnqueuedError, ProblemError
from fetchfleet.worker.console.services import services_of

IDS_AT_ONCE = 1000
MAX_LINE_BYTES = MAX_FETCH_BYTES + 1024
"""The maximum length of a line. Its fetch has a limit of its own."""

KEY_FIELD = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


class SubmitReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was enqueued."""

    batch: str
    """The batch to follow: an earlier one, if that has every fetch of this submit."""
    count: int
    """The number of fetches of the submit."""
    ids: list[str]
    """The IDs of the fetches, in order; for a `key` that was taken, the ID of the earlier fetch."""


class SubmitQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a submit."""

    notify: str | None = None
    """URL that receives a signed POST when the batch has ended; or `notify` of the message."""


async def post_batches(request: Request) -> Response:
    """Enqueue the fetches of the body. A repeat with the same Idempotency-Key changes nothing."""
    key, batch_id = _idempotency_key(request), None
    notify = query_of(request, SubmitQuery).notify
    fetches: list[Fetch] | AsyncIterator[Fetch]
    match media_type_of(request):
        case "application/x-ndjson":
            fetches = _read_lines(request)
        case "application/json":
            order = await _read_order(request)
            fetches, batch_id = order.fetches, order.batch
            if notify is not None and order.notify:
                raise InvalidFetchError("notify: give it once, in the message or in the query")
            notify = order.notify or notify
        case _:
            raise ProblemError(415, f"Content-Type: must be {JSON} or {NDJSON}")
    if key is not None and batch_id is not None:
        raise InvalidFetchError(f"batch: leave it out with an {KEY_FIELD}")
    if key is not None:
        batch_id = batch_id_for(f"{KEY_FIELD} {key}")
    batch_id = batch_id or new_batch_id()
    try:
        submitted = await actions_of(request).submit(fetches, batch_id, notify)
    except BatchExistsError:
        if key is None:
            raise
        raise ProblemError(
            422, f"{KEY_FIELD}: an earlier request with this key had another body", "batch_exists"
        ) from None
    except (InvalidFetchError, ProblemError) as error:
        if isinstance(fetches, list) or not (enqueued := await _enqueued(request, batch_id)):
            raise
        raise PartlyEnqueuedError(error, batch_id, enqueued) from None
    return StreamingResponse(
        _encoded(submitted.receipt), 202, {"Location": f"/v1/batches/{submitted.id}"}, JSON
    )


def _idempotency_key(request: Request) -> str | None:
    """Return the key of the request; None without one. Raises InvalidFetchError."""
    keys = request.headers.getlist(KEY_FIELD)
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidFetchError(f"{KEY_FIELD}: must be 1 to 255 printable ASCII characters")
    return keys[0]


async def _read_order(request: Request) -> Order:
    """Return the message in a body. Raises ProblemError, InvalidFetchError or NewerMessageError."""
    # In a thread: a message with 100,000 fetches would delay other requests.
    return await asyncio.to_thread(_order_in, await read_body(request, MAX_INPUT_BYTES))


def _order_in(message: bytes) -> Order:
    """Return the order of a message. Raises ProblemError if it is not JSON, else as `read_message` does."""
    if not message.lstrip(SPACE.encode()).startswith(b"{"):
        _check_json(message)
        raise InvalidFetchError('the body must be an object: a fetch, or {"fetches": [...]}')
    try:
        return read_message(message)
    except InvalidFetchError:
        _check_json(message)
        raise


def _check_json(message: bytes) -> None:
    """Raise ProblemError if a message is not JSON. One that is nested too deeply may be JSON."""
    try:
        msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(message, error) from None
    except RecursionError:
        pass


async def _read_lines(request: Request) -> AsyncIterator[Fetch]:
    """Yield the fetches of a body with one on each line. Raises InvalidFetchError, which names the line."""
    number = 0
    async for line in lines(request, MAX_LINE_BYTES):
        number += 1
        try:
            text = line.decode().strip(SPACE)
            if text:
                yield read_fetch(text)
        except UnicodeDecodeError:
            raise InvalidFetchError(f"line {number}: is not UTF-8") from None
        except InvalidFetchError as error:
            raise InvalidFetchError(f"line {number}: {error}") from None


async def _enqueued(request: Request, batch_id: str) -> int:
    """Return the number of fetches of a batch that are enqueued."""
    with suppress(UnknownBatchError):
        return (await services_of(request).fleet.batch(batch_id).counts()).total
    return 0


def _encoded(receipt: Receipt) -> Iterator[str]:
    """Yield a SubmitReceipt as JSON. The IDs of a large batch are never in memory together."""
    yield f'{{"batch":"{receipt.batch_to_follow}","count":{receipt.count},"ids":['
    new_ids = (fetch_id(receipt.batch_id, place) for place in range(receipt.count))
    ids = (receipt.repeats.get(new_id, new_id) for new_id in new_ids)
    separator = ""
    while some := list(itertools.islice(ids, IDS_AT_ONCE)):
        yield separator + ",".join(f'"{one}"' for one in some)
        separator = ","
    yield "]}"


def _submit_schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas of the body by media type."""
    message = {"anyOf": [{"$ref": "#/$defs/FetchMessage"}, {"$ref": "#/$defs/Envelope"}]}
    return {JSON: message, NDJSON: {"$ref": "#/$defs/Fetch"}}


OPERATIONS = [
    Operation(
        "POST",
        "/v1/batches",
        post_batches,
        "Enqueue fetches: a message as in the inbox, or a fetch on each line.",
        SubmitReceipt,
        status=202,
        query=SubmitQuery,
        schema=_submit_schemas(),
        fields={KEY_FIELD: "A repeat with this key, 1 to 255 characters, enqueues nothing twice."},
    )
]
