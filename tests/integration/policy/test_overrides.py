"""Concurrent changes of the policy tables in Redis, and their effect on lanes."""

import asyncio

from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from tests.support.lanes import LANE, LaneHold, fields, now_ms, state, url


async def test_concurrent_changes_of_operators_are_all_kept(fleet: Fleet, redis: Redis) -> None:
    """A pause is not lost to another key of the same table."""
    async with asyncio.TaskGroup() as group:
        for burst in range(1, 6):
            group.create_task(overrides.change(redis, fleet.notify, LANE, {"burst": burst}))
            group.create_task(overrides.change(redis, fleet.notify, f"h{burst}", {"attempts": 2}))
        group.create_task(overrides.pause(redis, fleet.notify, LANE, Policy()))
        group.create_task(overrides.pause(redis, fleet.notify, "default", Policy()))
    found = await overrides.read(redis)

    assert found.tables[LANE]["paused"] is True
    assert {LANE, "default", "h1", "h2", "h3", "h4", "h5"} == found.tables.keys()
    assert b"12" == await redis.get(keys.POLICY_VERSION)


async def test_a_change_moves_a_table_to_the_canonical_name_of_its_host(fleet: Fleet, redis: Redis) -> None:
    """A key of an older version's table can be unset. A malformed field stays."""
    old = {"::ffff:127.0.0.1": b'{"burst":1,"attempts":2}', "torn": b"{"}
    await redis.hset(keys.POLICY, mapping=old)  # type: ignore[misc]

    await overrides.change(redis, fleet.notify, "::ffff:7f00:1", {"burst": None})

    assert await redis.hgetall(keys.POLICY) == {b"127.0.0.1": b'{"attempts":2}', b"torn": b"{"}  # type: ignore[misc]


async def test_a_paused_lane_is_checked_when_it_gets_a_fetch(fleet: Fleet, redis: Redis) -> None:
    """Its release records the end of its closure, which applies only while a fetch waits."""
    batch = await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    await batch.cancel()
    await hold.withdraw(batch)
    await hold.release(shut_until_ms=await now_ms(redis) + 600_000, why="paused")
    assert "idle" == await state(redis)

    await fleet.submit([url("/2")])
    assert int((await fields(redis))["due_ms"]) <= await now_ms(redis)
