"""The scripts that quarantine values of a conflicting type, and restore the lanes that they blocked."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call


class ConflictingKey(NamedTuple):
    """A key that had a value of another type."""

    key: str
    type: str
    """Type that was found."""
    kind: str
    """Type that fetchfleet needs, or "counter"."""


async def quarantine(redis: Redis, kinds: Mapping[str, str], *, kept_bytes: int) -> list[ConflictingKey]:
    """Move each value that does not have its key's kind to the dead letters.

    kinds: keys with their kinds, as in `keys.FIXED` and `keys.kinds_of_lane`. The stream of dead letters is
    always checked. kept_bytes: bytes of a string that its dead letter keeps.
    """
    names = [name for name in kinds if name != keys.DEAD]
    args: list[Arg] = [keys.DEAD_LENGTH, kept_bytes, *(kinds[name] for name in names)]
    reply = await runner.run(redis, "quarantine", [keys.DEAD, *names], args)
    return [ConflictingKey(*map(text_of, row)) for row in reply]


async def unscheduled(redis: Redis, lanes: Iterable[str], with_fetches: Collection[str]) -> list[str]:
    """Return the lanes that are missing in the schedule, because another program removed them.

    with_fetches: lanes that have a key with fetches.
    """
    others = [lane for lane in lanes if lane not in with_fetches]
    checked = [*with_fetches, *others]
    names = [keys.ATTENTION, *map(keys.lane, checked)]
    reply = await runner.run(redis, "unscheduled", names, [len(with_fetches), *checked])
    return [text_of(name) for name in reply]


async def repair_lanes(redis: Redis, lanes: Iterable[str], *, lease_ms: int) -> None:
    """Reschedule lanes whose hash or place in the schedule was lost, in one round trip.

    Failed calls are skipped.
    """
    calls = [
        Call(
            "repair_lane",
            [
                *(keys.lane(lane), keys.claimed(lane), keys.later(lane), *keys.waiting(lane)),
                *(keys.ATTENTION, keys.SERIAL),
            ],
            [lane, lease_ms],
        )
        for lane in lanes
    ]
    if calls:
        await runner.run_many(redis, calls)


async def recount(redis: Redis, lanes: Iterable[str]) -> int:
    """Recompute the fleet's backlog from its lanes, store and return it."""
    backlog: int = await runner.run(redis, "recount", [keys.BACKLOG, *map(keys.lane, lanes)], [])
    return backlog
