"""The scripts that seal, cancel and link batches, end lost fetches, and trim the stream of all results."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.redis_connection import number_of, text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call


async def seal(redis: Redis, *, batch_id: str, notify: str = "") -> None:
    """Mark the batch as complete: it accepts no more fetches. notify: URL of its webhook."""
    names = [keys.batch(batch_id), keys.batch_lanes(batch_id), keys.digests(batch_id), keys.BATCHES]
    await runner.run(redis, "seal", names, [batch_id, keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS, notify])


async def cancel(redis: Redis, *, batch_id: str) -> list[str] | None:
    """Cancel the batch; return the lanes that may hold its fetches. None if the batch does not exist."""
    names = [keys.batch(batch_id), keys.batch_lanes(batch_id), keys.digests(batch_id)]
    lanes = await runner.run(redis, "cancel", names, [keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS])
    return None if lanes is None else [text_of(lane) for lane in lanes]


class CancelledPage(NamedTuple):
    """Some of the batches that are cancelled in a lane."""

    cursor: int
    """Cursor of the next page; 0 at the end."""
    batch_ids: list[str]


async def cancelled_batches(
    redis: Redis, cursors: Mapping[str, int], *, count: int
) -> list[CancelledPage | Exception]:
    """Return a page for each lane from its cursor, 0 for the first, in one round trip.

    Members that are not cancelled batches are removed. A failed call returns its exception.
    """
    calls = [
        Call("cancelled_batches", [keys.cancelled(lane)], [cursor, count, keys.batch("")])
        for lane, cursor in cursors.items()
    ]
    replies = await runner.run_many(redis, calls) if calls else []
    return [
        reply
        if isinstance(reply, Exception)
        else CancelledPage(reply[0], [text_of(batch) for batch in reply[1]])
        for reply in replies
    ]


async def cancel_in_lanes(redis: Redis, lanes: Sequence[str], *, batch_id: str) -> list[LaneNotification]:
    """Request that the owners of the lanes end the fetches of a batch, in one round trip.

    Returns the lanes to notify. Raises the first error, after all calls were made.
    """
    calls = [
        Call(
            "cancel_in_lane",
            [keys.lane(lane), keys.cancelled(lane), keys.CANCELS, keys.ATTENTION, keys.SERIAL],
            [lane, batch_id, keys.UNFINISHED_TTL_MS, GRACE_MS],
        )
        for lane in lanes
    ]
    notifications = []
    for lane, reply in zip(lanes, await runner.run_many(redis, calls), strict=True):
        if isinstance(reply, Exception):
            raise reply
        if reply:
            generation, due_in_ms = reply
            notifications.append(LaneNotification(lane, generation, due_in_ms))
    return notifications


async def link_retry(redis: Redis, *, batch_id: str, retried_as: Sequence[str]) -> bool:
    """Add to the batch the IDs of batches with its retried fetches; return whether the batch exists."""
    return bool(await runner.run(redis, "link_retry", [keys.batch(batch_id)], list(retried_as)))


class EndedBatch(NamedTuple):
    """A batch that has ended and has a webhook."""

    batch_id: str
    notify: str
    """URL of the webhook."""
    ended_ms: int
    """Unix ms when it was first found to have ended."""
    counts: Mapping[str, int]
    """Its counters by name."""


class WebhookCheck(NamedTuple):
    """Some of the batches with a webhook."""

    checked: int
    """Number of batches that were checked."""
    ended: list[EndedBatch]


_COUNTERS = ("total", "stored", "unchanged", "failed", "cancelled", "bytes")


async def ended_batches(redis: Redis, *, limit: int, every_ms: int) -> WebhookCheck:
    """Check up to `limit` batches with a webhook, none twice within every_ms. Expired ones are removed."""
    args: list[Arg] = [limit, every_ms, *_COUNTERS]
    checked, *rows = await runner.run(redis, "ended_batches", [keys.WEBHOOKS], args)
    ended = []
    for batch_id, notify, ended_ms, *values in rows:
        counts = {name: number_of(value) or 0 for name, value in zip(_COUNTERS, values, strict=True)}
        ended.append(EndedBatch(text_of(batch_id), text_of(notify), ended_ms, counts))
    return WebhookCheck(checked, ended)


class LateBatches(NamedTuple):
    """Batches with open fetches although every deadline has passed."""

    checked: int
    """Number of batches that were checked."""
    batch_ids: list[str]


async def late_batches(redis: Redis, *, skip: int, limit: int, before_ms: int) -> LateBatches:
    """Check up to `limit` batches, after the first `skip`, for open fetches.

    before_ms: Unix ms before which the last deadline of a late batch is.
    """
    checked, *late = await runner.run(redis, "late_batches", [keys.BATCHES], [skip, limit, before_ms])
    return LateBatches(checked, [text_of(batch_id) for batch_id in late])


async def end_lost(
    redis: Redis,
    *,
    batch_id: str,
    grace_ms: int,
    limit: int,
    result_parts: tuple[bytes, bytes],
    to_all_results: bool,
) -> int:
    """End up to `limit` open fetches of a batch whose last deadline was grace_ms ago; return their number.

    result_parts: the result of a fetch as JSON, before and after the fetch ID. to_all_results: add the
    results to the stream of all batches too.
    """
    names = [keys.batch(batch_id), keys.results(batch_id), keys.batch_lanes(batch_id), keys.ALL_RESULTS]
    args: list[Arg] = [
        grace_ms,
        limit,
        *result_parts,
        keys.RESULTS_TTL_MS,
        keys.UNFINISHED_TTL_MS,
        int(to_all_results),
    ]
    ended: int = await runner.run(redis, "end_lost", names, args)
    return ended


class Trimming(NamedTuple):
    """Results beyond the limits of the stream of all results."""

    excess: int
    """Number of these results."""
    lagging_groups: list[bytes]
    """Names of consumer groups that have not acknowledged all of them."""


async def trim(redis: Redis, *, oldest_ms: int, keep: int, limit: int, remove: bool = False) -> Trimming:
    """Count, or remove, results that are too old or too many in the stream of all results.

    oldest_ms: Unix ms of the oldest result to keep. keep: number of results to keep. limit: most results to
    count or remove.
    """
    args = [oldest_ms, keep, limit, int(remove)]
    count, *groups = await runner.run(redis, "trim", [keys.ALL_RESULTS], args)
    return Trimming(count, groups)
