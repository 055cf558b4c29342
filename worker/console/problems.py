"""Errors as responses: problem+json (RFC 9457) for programs, a page for browsers."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fetchfleet.jobs.contract.messages import MessageRefusal
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.jobs.errors import (
    BatchCancelledError,
    BatchExistsError,
    BatchLostError,
    FleetFullError,
    FleetUnreachableError,
    FullError,
    InvalidFetchError,
    JobsError,
    NewerMessageError,
    RedisFullError,
    UnknownBatchError,
)
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.redis_support import permissions

RETRY_AFTER_S = 5
"""The Retry-After of responses to requests that may succeed later."""
MEDIA_TYPE = "application/problem+json"


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error, as problem details of RFC 9457."""

    type: str = "about:blank"
    """Always `about:blank`: `title` is the phrase of the status."""
    title: str
    """The phrase of the status."""
    status: int
    """The status code."""
    detail: str
    """The exact error, with the field that it concerns and the remedy."""
    reason: str
    """The kind of error in one word, for programs."""
    batch: str | None = None
    """The batch that was being submitted, if some of its fetches may be enqueued."""
    enqueued: int | None = None
    """The number of its fetches that are certainly enqueued."""


class ProblemError(Exception):
    """A request cannot be served. The message is the detail of the problem."""

    def __init__(self, status: int, detail: str, reason: str = "invalid") -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason


class PartlyEnqueuedError(ProblemError):
    """A stream of fetches has an error, after some of its fetches were enqueued."""

    def __init__(self, error: Exception, batch_id: str, enqueued: int) -> None:
        of = problem_of(error)
        detail = (
            f"{of.detail}; the first {enqueued} fetches are enqueued as batch {batch_id}. Correct the rest"
            " and repeat the request with its Idempotency-Key, or delete the batch"
        )
        super().__init__(of.status, detail, of.reason)
        self.batch_id = batch_id
        self.enqueued = enqueued


_RENAMED = {413: "Content Too Large", 422: "Unprocessable Content"}
"""The phrases of RFC 9110 that Python before 3.13 does not have."""

_KINDS: tuple[tuple[type[Exception], int, str], ...] = (
    (InvalidFetchError, 422, MessageRefusal.INVALID),
    (NewerMessageError, 422, MessageRefusal.INVALID),
    (PolicyError, 422, MessageRefusal.INVALID),
    (BatchExistsError, 409, MessageRefusal.BATCH_EXISTS),
    (BatchCancelledError, 409, MessageRefusal.BATCH_CANCELLED),
    (BatchLostError, 409, MessageRefusal.BATCH_LOST),
    (UnknownBatchError, 404, MessageRefusal.UNKNOWN_BATCH),
    (FleetFullError, 429, MessageRefusal.FLEET_FULL),
    (RedisFullError, 503, MessageRefusal.REDIS_FULL),
    (FleetUnreachableError, 503, "redis_unreachable"),
    (JobsError, 503, "redis_refuses"),
    (RedisError, 503, "redis_refuses"),
)
"""The status and the reason of each error, the most special first."""


def problem_of(error: Exception) -> Problem:
    """Return the problem of an expected error."""
    if isinstance(error, HTTPException):
        return problem(error.status_code, error.detail, reason="request")
    if isinstance(error, ProblemError):
        found = problem(error.status, str(error), reason=error.reason)
    else:
        status, reason = next(of[1:] for of in _KINDS if isinstance(error, of[0]))
        denial = permissions.denial_in(error)
        detail = permissions.explained("serve", denial) if denial else redact.text(error)
        found = problem(status, detail, reason=reason)
    if isinstance(error, FullError | FleetUnreachableError | PartlyEnqueuedError) and error.batch_id:
        found.batch, found.enqueued = error.batch_id, error.enqueued
    return found


def problem(status: int, detail: str, *, reason: str) -> Problem:
    """Return a problem."""
    return Problem(
        title=_RENAMED.get(status) or HTTPStatus(status).phrase, status=status, detail=detail, reason=reason
    )


def response_of(of: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for a problem."""
    fields = dict(headers or {})
    if of.status in {429, 503}:
        fields.setdefault("Retry-After", str(RETRY_AFTER_S))
    return Response(safe_json(msgspec.json.encode(of)), of.status, fields, MEDIA_TYPE)


PageOf = Callable[[Request, Problem], Response]
"""Renders a problem as a page."""


def handlers(page: PageOf, is_for_programs: Callable[[str], bool]) -> dict[Any, Any]:
    """Return the exception handlers of the app. page: renders a problem for browsers."""

    async def handle(request: Request, error: Exception) -> Response:
        of = problem_of(error)
        headers = error.headers if isinstance(error, HTTPException) else None
        if is_for_programs(request.url.path):
            return response_of(of, headers)
        return page(request, of)

    kinds = [HTTPException, ProblemError, *(kind for kind, *_ in _KINDS)]
    handler: Callable[[Request, Exception], Awaitable[Response]] = handle
    return dict.fromkeys(kinds, handler)
