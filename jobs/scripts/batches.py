"""The scripts that seal, cancel and link a batch, end its lost fetches, and trim the results of all."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call


async def seal(redis: Redis, *, batch_id: str) -> None:
    """Mark the batch as complete: no more fetches will come."""
    names = [keys.batch(batch_id), keys.batch_lanes(batch_id), keys.digests(batch_id), keys.BATCHES]
    await runner.run(redis, "seal", names, [batch_id, keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS])


async def cancel(redis: Redis, *, batch_id: str) -> list[str] | None:
    """Cancel the batch; return the lanes that may hold its fetches, None if there is no such batch."""
    names = [keys.batch(batch_id), keys.batch_lanes(batch_id), keys.digests(batch_id)]
    lanes = await runner.run(redis, "cancel", names, [keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS])
    return None if lanes is None else [text_of(lane) for lane in lanes]


class CancelledPage(NamedTuple):
    """Some of the batches that are cancelled in a lane. cursor: where the next page begins, 0 at the end."""

    cursor: int
    batch_ids: list[str]


async def cancelled_batches(
    redis: Redis, cursors: Mapping[str, int], *, count: int
) -> list[CancelledPage | Exception]:
    """Return a page for each lane from its cursor on (0 to begin), in one round trip.

    Members that are no cancelled batch are removed. A call that Redis refuses is returned as an exception.
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
    """Ask the owners of the lanes to end the batch's fetches, in one round trip; return the lanes to notify.

    Raises the first error that Redis answers, after all calls were made.
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
    """Note in the batch which batches its failed fetches are in now; return whether it is still in Redis."""
    return bool(await runner.run(redis, "link_retry", [keys.batch(batch_id)], list(retried_as)))


class LateBatches(NamedTuple):
    """Batches with open fetches although every deadline is past. looked_at: among how many."""

    looked_at: int
    batch_ids: list[str]


async def late_batches(redis: Redis, *, skip: int, most: int, before_ms: int) -> LateBatches:
    """Look at a stretch of all batches. before_ms: their last deadline was before that (Unix ms)."""
    looked_at, *found = await runner.run(redis, "late_batches", [keys.BATCHES], [skip, most, before_ms])
    return LateBatches(looked_at, [text_of(batch_id) for batch_id in found])


async def end_lost(
    redis: Redis,
    *,
    batch_id: str,
    grace_ms: int,
    most: int,
    result_parts: tuple[bytes, bytes],
    to_all_results: bool,
) -> int:
    """End open fetches of a batch whose last deadline was grace_ms ago; return how many.

    result_parts: the result of a fetch as JSON, before and after its id. to_all_results: add the results to
    the stream of all batches too.
    """
    names = [keys.batch(batch_id), keys.results(batch_id), keys.batch_lanes(batch_id), keys.ALL_RESULTS]
    args: list[Arg] = [
        grace_ms,
        most,
        *result_parts,
        keys.RESULTS_TTL_MS,
        keys.UNFINISHED_TTL_MS,
        int(to_all_results),
    ]
    ended: int = await runner.run(redis, "end_lost", names, args)
    return ended


class Trimming(NamedTuple):
    """Results over the limits, and the consumer groups that have not acknowledged all of these."""

    excess: int
    lagging_groups: list[bytes]


async def trim(redis: Redis, *, oldest_ms: int, keep: int, at_once: int, remove: bool = False) -> Trimming:
    """Count, or remove, what is too old or too much in the stream of all results.

    oldest_ms: Unix ms of the oldest result to keep. keep: how many results to keep. at_once: the most
    results to count or remove.
    """
    args = [oldest_ms, keep, at_once, int(remove)]
    count, *groups = await runner.run(redis, "trim", [keys.ALL_RESULTS], args)
    return Trimming(count, groups)
