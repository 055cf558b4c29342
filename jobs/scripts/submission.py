"""submit.lua and undo.lua: append one chunk of a batch to its lanes, and take it back."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import placed
from fetchfleet.jobs.notifications import GRACE_MS, LaneNotification
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg

Groups = Mapping[tuple[str, str], Sequence[bytes]]
"""The entries of a chunk by lane and priority."""

Fingerprints = Mapping[tuple[str, str], Sequence[int]]
"""The fingerprints of the fetches of a chunk, in the order of its groups and entries."""


class KeyedFetch(NamedTuple):
    """A fetch with a `key`, and how long the key stands for it."""

    fetch_id: str
    key: str
    ttl_ms: int


class Backlog(NamedTuple):
    """The limits that a chunk must find room under.

    fleet, lane: the most fetches without a result, 0 for no limit. to_come: how many fetches the fleet needs
    room for. lanes: how many each lane needs room for; only these lanes are checked.
    """

    fleet: int
    lane: int
    to_come: int
    lanes: Mapping[str, int]


class ChunkTaken(NamedTuple):
    """The chunk is in, since taken_ms by Redis's clock.

    repeats: the id of each fetch whose key is taken, with the id of the fetch that has it.
    notifications: of the lanes that are due.
    """

    taken_ms: int
    repeats: dict[str, str]
    notifications: list[LaneNotification]


class NoRoom(NamedTuple):
    """A limit is reached. lane: None for the limit of the fleet. holds: fetches without a result there."""

    lane: str | None
    holds: int


class BatchRefusal(StrEnum):
    """The reason for which a batch takes no chunk."""

    CANCELLED = "cancelled"
    OTHER_FETCHES = "other"
    EARLIER_LOST = "gap"


HINTS = 16
"""How many of the lanes that come due together are notified of."""


def hints(notifications: Sequence[LaneNotification]) -> list[LaneNotification]:
    """Return those due later, and HINTS of those due now: a worker that acquires one looks for the others."""
    now = [item for item in notifications if item.due_in_ms <= 0]
    return now[:HINTS] + [item for item in notifications if item.due_in_ms > 0]


async def submit(
    redis: Redis,
    *,
    batch_id: str,
    number: int,
    count: int,
    groups: Groups,
    fingerprints: Fingerprints,
    keyed: Sequence[KeyedFetch],
    backlog: Backlog,
    digest: str = "",
    last: bool = False,
) -> ChunkTaken | NoRoom | BatchRefusal:
    """Append a chunk to its lanes, all of it or nothing; sending it again changes nothing.

    number: from 1. digest: of the chunk, for a batch with an id of the producer's own. last: seal the batch.
    """
    names = [
        *(keys.batch(batch_id), keys.batch_lanes(batch_id), keys.digests(batch_id), keys.BATCHES),
        *(keys.ATTENTION, keys.SERIAL, keys.BACKLOG, *map(keys.lane, backlog.lanes)),
        *_group_keys(groups),
        *(keys.key(item.key) for item in keyed),
    ]
    args: list[Arg] = [batch_id, number, count, digest, int(last)]
    args += [keys.RESULTS_TTL_MS, keys.UNFINISHED_TTL_MS, GRACE_MS]
    args += [backlog.fleet, backlog.lane, backlog.to_come, len(backlog.lanes), *backlog.lanes.values()]
    args.append(len(groups))
    for (lane, _), serialized in groups.items():
        args += [lane, len(serialized), *serialized]
    args.append(len(keyed))
    for item in keyed:
        args += [item.fetch_id, item.ttl_ms]
    args += ["".join(f"{value:012x}" for value in values) for values in fingerprints.values()]
    match await runner.run(redis, "submit", names, args):
        case [b"taken", taken_ms, repeats, notifications]:
            return ChunkTaken(
                taken_ms,
                {of.decode(): has.decode() for of, has in repeats},
                [LaneNotification(lane.decode(), *due) for lane, *due in notifications],
            )
        case [b"full", which, lane_key, holds]:
            full_lane = lane_key.decode().removeprefix(keys.lane(""))
            return NoRoom(full_lane if which == b"lane" else None, holds)
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
    """Take a chunk back that was submitted at taken_ms; return how many fetches of the batch are left.

    A fetch stays if it does not wait any more, or if another batch counts on it for its key.
    """
    keyed = list(keyed)
    names = [
        *(keys.batch(batch_id), keys.batch_lanes(batch_id), keys.digests(batch_id), keys.BATCHES),
        *(keys.BACKLOG, *_group_keys(groups)),
        *(keys.key(item.key) for item in keyed),
    ]
    args: list[Arg] = [batch_id, len(groups)]
    for serialized in groups.values():
        args += [len(serialized), *(placed(entry, taken_ms) for entry in serialized)]
    args += [item.fetch_id for item in keyed]
    left: int = await runner.run(redis, "undo", names, args)
    return left


def _group_keys(groups: Groups) -> list[str]:
    return [key for lane, at in groups for key in (keys.lane(lane), keys.waiting_at(lane, at))]
