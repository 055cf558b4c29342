"""The operations on dead letters: list, show, retry, purge."""

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fetchfleet.jobs.client.dead_letters import ANY, DeadLetterFilter
from fetchfleet.jobs.contract.ids import is_position
from fetchfleet.worker.console.actions import DeadLetterChange, actions_of
from fetchfleet.worker.console.api.batches import POSITION
from fetchfleet.worker.console.api.operations import Operation, answer, body_of, query_of
from fetchfleet.worker.console.problems import ProblemError
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.inspect.views.dead_letters import (
    DeadLetterDetail,
    DeadLetterPage,
    dead_letter,
    dead_letters,
    known_reason,
)
from fetchfleet.worker.policy.names import host_named

MAX_POSITIONS = 1000

Position = Annotated[str, msgspec.Meta(pattern=POSITION)]
Batch = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
ShortText = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class DeadQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a list of dead letters."""

    batch: Batch | None = None
    """Show only letters of this batch."""
    host: ShortText | None = None
    """Show only letters of this host."""
    reason: ShortText | None = None
    """Show only letters with this reason."""
    before: Position | None = None
    """The `next` of the page before this one."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    """The maximum number of letters."""


class DeadSelection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A selection of dead letters: by positions, by a filter whose fields must all match, or all."""

    batch: Batch | None = None
    """Select those of this batch."""
    host: ShortText | None = None
    """Select those of this host."""
    reason: ShortText | None = None
    """Select those with this reason."""
    positions: Annotated[list[Position], msgspec.Meta(min_length=1, max_length=MAX_POSITIONS)] | None = None
    """Select those at these positions."""
    all: bool = False
    """Select every letter."""

    @property
    def filters(self) -> list[DeadLetterFilter]:
        """The filters that select the letters. Raises ProblemError if it is unclear which are meant."""
        by_field = _filter(self.batch, self.host, self.reason)
        given = [any(by_field), self.positions is not None, self.all]
        if given.count(True) != 1:
            raise ProblemError(
                422, "which dead letters? give batch, host or reason (all must match), or positions, or all"
            )
        if self.positions is not None:
            return [DeadLetterFilter(position=position) for position in dict.fromkeys(self.positions)]
        return [ANY if self.all else by_field]


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of a purge."""

    purged: int
    """The number of letters that were deleted."""


async def get_dead(request: Request) -> Response:
    """List dead letters, newest first."""
    query = query_of(request, DeadQuery)
    which = _filter(query.batch, query.host, query.reason)
    page = await services_of(request).read(dead_letters, which, before=query.before, limit=query.limit)
    return answer(page)


async def get_letter(request: Request) -> Response:
    """Show a dead letter."""
    position = request.path_params["position"]
    detail = await services_of(request).read(dead_letter, position) if is_position(position) else None
    if detail is None:
        raise ProblemError(404, f"position: no dead letter is at {position!r}", "unknown_letter")
    return answer(detail)


async def post_retry(request: Request) -> Response:
    """Enqueue the fetches of dead letters again."""
    selection = await body_of(request, DeadSelection)
    return answer(await actions_of(request).retry_dead(selection.filters))


async def post_purge(request: Request) -> Response:
    """Delete dead letters."""
    selection = await body_of(request, DeadSelection)
    return answer(Purged(purged=await actions_of(request).purge_dead(selection.filters)))


def _filter(batch: str | None, host: str | None, reason: str | None) -> DeadLetterFilter:
    """Return the filter. Raises ProblemError for a reason that does not exist."""
    try:
        reason = None if reason is None else known_reason(reason)
    except ValueError as error:
        raise ProblemError(422, str(error)) from None
    return DeadLetterFilter(batch, None if host is None else host_named(host), reason)


OPERATIONS = [
    Operation(
        "GET", "/v1/dead", get_dead, "List dead letters, newest first.", DeadLetterPage, query=DeadQuery
    ),
    Operation(
        "GET", "/v1/dead/{position}", get_letter, "Show a dead letter, with secrets masked.", DeadLetterDetail
    ),
    Operation(
        "POST",
        "/v1/dead/retry",
        post_retry,
        "Enqueue the fetches of dead letters again, as new batches.",
        DeadLetterChange,
        body=DeadSelection,
    ),
    Operation("POST", "/v1/dead/purge", post_purge, "Delete dead letters.", Purged, body=DeadSelection),
]
