"""The scripts that quarantine values of a conflicting type and restore the lanes that they blocked."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg, Call


class ConflictingKey(NamedTuple):
    """A key that held a value of the wrong type: the type found, and the kind that belongs there."""

    key: str
    type: str
    kind: str


async def quarantine(redis: Redis, kinds: Mapping[str, str], *, kept_bytes: int) -> list[ConflictingKey]:
    """Move every value that is not of its key's kind to the dead letters.

    kinds: keys with their kinds, as `keys.FIXED` and `keys.kinds_of_lane` give them. The stream of dead
    letters is always checked. kept_bytes: how much of a string is copied.
    """
    names = [name for name in kinds if name != keys.DEAD]
    args: list[Arg] = [keys.DEAD_LENGTH, kept_bytes, *(kinds[name] for name in names)]
    reply = await runner.run(redis, "quarantine", [keys.DEAD, *names], args)
    return [ConflictingKey(*map(text_of, row)) for row in reply]


async def unscheduled(redis: Redis, lanes: Iterable[str], with_fetches: Collection[str]) -> list[str]:
    """Return those of the lanes that another program may have taken out of the schedule.

    with_fetches: lanes of which a key that holds fetches was seen.
    """
    others = [lane for lane in lanes if lane not in with_fetches]
    looked_at = [*with_fetches, *others]
    names = [keys.ATTENTION, *map(keys.lane, looked_at)]
    reply = await runner.run(redis, "unscheduled", names, [len(with_fetches), *looked_at])
    return [text_of(name) for name in reply]


async def repair_lanes(redis: Redis, lanes: Iterable[str], *, lease_ms: int) -> None:
    """Schedule lanes again whose hash or place in the schedule was lost, in one round trip.

    Calls that Redis refuses are skipped.
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
    """Count the fleet's backlog again from its lanes."""
    backlog: int = await runner.run(redis, "recount", [keys.BACKLOG, *map(keys.lane, lanes)], [])
    return backlog
