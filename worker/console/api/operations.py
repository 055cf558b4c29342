"""An operation of the API: its route, and all that its OpenAPI description needs."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchfleet.jobs.contract.ids import is_batch_id
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.worker.console.bodies import media_type_of, read_body
from fetchfleet.worker.console.problems import ProblemError

T = TypeVar("T")

JSON, NDJSON = "application/json", "application/x-ndjson"
MAX_ORDER_BYTES = 1 << 18
"""The maximum size of a body that is not a submit."""


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An operation without query parameters."""


class Operation(NamedTuple):
    """An operation of the API."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    answer: Any
    """The type of the response, or of each line of NDJSON; None without a body."""
    status: int = 200
    query: type[msgspec.Struct] = NoQuery
    """The query parameters."""
    body: Any = None
    """The type of the request body; None without one."""
    schema: Mapping[str, Mapping[str, Any]] = {}
    """The schema of the request body by media type, in place of `body`."""
    fields: Mapping[str, str] = {}
    """The optional header fields of the request, with their descriptions."""
    media_type: str = JSON
    """The media type of the response."""

    @property
    def route(self) -> Route:
        """The route of the operation."""
        return Route(self.path, self.handler, methods=[self.method], name=self.handler.__name__)


def query_of(request: Request, kind: type[T]) -> T:
    """Return the query parameters of a request. Raises ProblemError, which names the parameter."""
    values = dict(request.query_params)
    if len(values) != len(request.query_params.multi_items()):
        raise ProblemError(400, "each query parameter may be given once")
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ProblemError(400, f"query: {_with_path(error)}") from None


async def body_of(request: Request, kind: type[T]) -> T:
    """Return the JSON body of a request. Raises ProblemError, which names the field."""
    if media_type_of(request) != JSON:
        raise ProblemError(415, f"Content-Type: must be {JSON}")
    body = await read_body(request, MAX_ORDER_BYTES)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise ProblemError(422, _with_path(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(body, error) from None


def not_json(body: bytes, error: Exception) -> ProblemError:
    """Return the problem of a body that is not JSON. error: that of the decoder."""
    fault = str(error)
    if not body.strip():
        fault = "it is empty"
    elif isinstance(error, msgspec.DecodeError) and "truncated" in fault:
        fault = f"it ends within a value, after {len(body):,} bytes"
    return ProblemError(400, f"the body is not JSON: {fault}")


def batch_id_of(request: Request) -> str:
    """Return the batch ID in the path. Raises ProblemError."""
    batch_id = request.path_params["batch"]
    if not is_batch_id(batch_id):
        raise ProblemError(404, f"batch: {batch_id!r} is not a batch ID, which has 16 lower-case hex digits")
    return str(batch_id)


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a value as the JSON response. It is safe for a terminal: `curl` may print it."""
    return Response(safe_json(msgspec.json.encode(value)), status, dict(headers or {}), JSON)


def _with_path(error: msgspec.ValidationError) -> str:
    """Return the message of an error, which begins with the path of the field: `hosts[0]: expected …`."""
    text, _, path = str(error).partition(" - at `")
    path = path.removesuffix("`").removeprefix("$").removeprefix(".")
    return f"{path}: {text}" if path else text
