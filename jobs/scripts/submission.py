"""submit.lua and undo.lua: append a chunk of a batch to its lanes, and remove it again."""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import with_deadline
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg

Groups = Mapping[tuple[str, str], Sequence[bytes]]
"""Serialized entries of a chunk, by lane and priority."""

Fingerprints = Mapping[tuple[str, str], Sequence[int]]
"""Fingerprints of the fetches of a chunk, in the order of its groups and entries."""


class KeyedFetch(NamedTuple):
    """A fetch with a `key`."""

    fetch_id: str
    key: str
    ttl_ms: int
    """Time for which the key belongs to the fetch."""


class BacklogCheck(NamedTuple):
    """Backlog limits, and the room that a submit needs under them."""

    fleet_limit: int
    """The maximum number of fetches without a result in the fleet; 0 for no limit."""
    lane_limit: int
    """The maximum number of fetches without a result in each lane; 0 for no limit."""
    fleet_needs: int
    """Number of fetches that must fit under the limit of the fleet."""
    lane_needs: Mapping[str, int]
    """Number of fetches that must fit in each lane; other lanes are not checked."""


class ChunkAccepted(NamedTuple):
    """The chunk is enqueued."""

    taken_ms: int
    """Unix ms at which it was enqueued, by Redis's clock; the present time if later chunks have followed."""
    repeats: dict[str, str]
    """IDs of fetches whose key was taken, each with the ID of the earlier fetch."""
    notifications: list[LaneNotification]
    """Notifications of its lanes that became due."""


class BacklogFull(NamedTuple):
    """A backlog limit is reached; nothing was enqueued."""

    lane: str | None
    """Lane at its limit; None: the fleet is at its limit."""
    open_fetches: int
    """Fetches without a result, in the lane or fleet."""


class BatchRefusal(StrEnum):
    """The reason a batch accepts no chunk."""

    CANCELLED = "cancelled"
    OTHER_FETCHES = "other"
    """The batch is sealed, or has another chunk of this number."""
    EARLIER_LOST = "gap"
    """An earlier chunk is missing, for example after a failover."""


MAX_DUE_NOTIFICATIONS = 16
"""Maximum number of due lanes of a chunk that get a notification."""

WORKERS_LOOK_EVERY_S = 1.0
"""The interval at which each worker looks for due lanes without a notification: that of its heartbeat."""


class DueNotifications:
    """Chooses the notifications to send for the chunks of a submit.

    A worker that acquires a lane looks for the other due lanes, so some of many notifications are enough.
    Soon after them one is enough for another chunk.
    """

    def __init__(self) -> None:
        self._many_at_s = -math.inf
        """The time at which a chunk last got MAX_DUE_NOTIFICATIONS."""

    def chosen(self, notifications: Sequence[LaneNotification], now_s: float) -> list[LaneNotification]:
        """Return notifications of all lanes due later, and of some of those due now."""
        now = [item for item in notifications if item.due_in_ms <= 0]
        if now_s - self._many_at_s < WORKERS_LOOK_EVERY_S:
            now = now[:1]
        elif len(now) >= MAX_DUE_NOTIFICATIONS:
            now, self._many_at_s = now[:MAX_DUE_NOTIFICATIONS], now_s
        return now + [item for item in notifications if item.due_in_ms > 0]


async def submit(
    redis: Redis,
    *,
    batch_id: str,
    number: int,
    count: int,
    groups: Groups,
    fingerprints: Fingerprints,
    keyed: Sequence[KeyedFetch],
    backlog: BacklogCheck,
    digest: str = "",
    last: bool = False,
    notify: str = "",
) -> ChunkAccepted | BacklogFull | BatchRefusal:
    """Append a chunk to its lanes, completely or not at all. Sending it again changes nothing.

    number: of the chunk in its batch, from 1. digest: of the chunk, to recognise it if it is sent again.
    last: seal the batch. notify: URL of the batch's webhook.
    """
    names = [
        *(keys.batch(batch_id), keys.batch_lanes(batch_id), keys.digests(batch_id), keys.BATCHES),
        *(keys.ATTENTION, keys.SERIAL, keys.BACKLOG, *map(keys.lane, backlog.lane_needs)),
        *_group_keys(groups),
        *(keys.key(item.key) for item in keyed),
    ]
    args: list[Arg] = [batch_id, number, count, digest, int(last)]
    args += [keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS, GRACE_MS]
    args += [backlog.fleet_limit, backlog.lane_limit, backlog.fleet_needs]
    args += [len(backlog.lane_needs), *backlog.lane_needs.values()]
    args.append(len(groups))
    for (lane, _), serialized in groups.items():
        args += [lane, len(serialized), *serialized]
    args.append(len(keyed))
    for item in keyed:
        args += [item.fetch_id, item.ttl_ms]
    args += ["".join(f"{value:012x}" for value in values) for values in fingerprints.values()]
    args += [notify] if notify else []
    match await runner.run(redis, "submit", names, args):
        case [b"taken", taken_ms, repeats, notifications]:
            return ChunkAccepted(
                taken_ms,
                {fetch_id.decode(): earlier_id.decode() for fetch_id, earlier_id in repeats},
                [LaneNotification(lane.decode(), *due) for lane, *due in notifications],
            )
        case [b"full", limit, lane_key, open_fetches]:
            full_lane = lane_key.decode().removeprefix(keys.lane(""))
            return BacklogFull(full_lane if limit == b"lane" else None, open_fetches)
        case [refusal]:
            return BatchRefusal(refusal.decode())
        case reply:
            raise AssertionError(reply)


async def undo(
    redis: Redis,
    *,
    batch_id: str,
    groups: Groups,
    keyed: Iterable[KeyedFetch],
    taken_ms: int,
) -> int:
    """Remove a chunk that was submitted at taken_ms; return the number of fetches left in the batch.

    A fetch stays if it no longer waits, or if another batch refers to its key.
    """
    keyed = list(keyed)
    names = [
        *(keys.batch(batch_id), keys.batch_lanes(batch_id), keys.digests(batch_id), keys.BATCHES),
        *(keys.BACKLOG, *_group_keys(groups)),
        *(keys.key(item.key) for item in keyed),
    ]
    args: list[Arg] = [batch_id, len(groups)]
    for serialized in groups.values():
        args += [len(serialized), *(with_deadline(entry, taken_ms) for entry in serialized)]
    args += [item.fetch_id for item in keyed]
    left: int = await runner.run(redis, "undo", names, args)
    return left


def _group_keys(groups: Groups) -> list[str]:
    return [key for lane, priority in groups for key in (keys.lane(lane), keys.waiting_at(lane, priority))]
