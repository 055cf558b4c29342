"""An operator resets lanes that are idle, scheduled or held."""

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts import host_control
from fetchfleet.worker.gate.state import Breaker, GateState
from fetchfleet.worker.inspect.explain import explain_lane
from fetchfleet.worker.lanes.reset import await_applied, lanes_of, reset
from fetchfleet.worker.policy.file import Policy
from tests.support.lanes import HOUR_MS, LANE, LaneHold, fields, later, now_ms, retried, state, url

BY = "alice@ops"


async def broken(redis: Redis) -> GateState:
    """Return the state of a host whose breaker is open for an hour."""
    until_ms = await now_ms(redis) + HOUR_MS
    return GateState(breaker=Breaker.OPEN, failures=5, opens=1, open_until_ms=until_ms, down_since_ms=1)


async def test_a_scheduled_lane_and_its_retries_are_due_at_once(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds with any number of retries. The next owner learns once who reset it."""
    monkeypatch.setattr("fetchfleet.jobs.scripts.host_control.MAX_RESET_RETRIES", 2)
    monkeypatch.setattr("fetchfleet.worker.lanes.reset.MAX_RESET_RETRIES", 2)
    await fleet.submit([url(f"/{i}") for i in range(5)])
    hold = await LaneHold.begin(redis)
    gate = await broken(redis)
    await hold.settle(*(retried(entry, 3600) for entry in (await hold.claim()).serialized))
    await hold.release(shut_until_ms=gate.open_until_ms, why="breaker", gate=gate)
    before = await fields(redis)

    [done] = await reset(redis, fleet.notify, [LANE], BY)
    now = await now_ms(redis)
    assert (LANE, ["breaker"], 5, False, True) == (
        done.lane,
        done.reset,
        done.retries,
        done.held,
        done.pending,
    )
    assert int(before["due_ms"]) > now + 1_000_000 > now >= int((await fields(redis))["due_ms"])
    assert all(due_ms <= now for due_ms in (await later(redis)).values())
    explained = await explain_lane(redis, Policy(), LANE)
    assert "breaker" not in explained.state

    hold = await LaneHold.begin(redis)
    assert BY == hold.held.reset_by
    assert 5 == len((await hold.claim()).serialized)
    await hold.release()
    assert "" == (await LaneHold.begin(redis)).held.reset_by


async def test_an_idle_lane_is_open_for_its_next_fetch(fleet: Fleet, redis: Redis) -> None:
    """It was released while its breaker was open, with the end of that in Redis."""
    await fleet.submit([url("/1")])
    hold = await LaneHold.begin(redis)
    await hold.finish()
    gate = await broken(redis)
    await fleet.submit([url("/2")])
    hold = await LaneHold.begin(redis)
    await hold.claim()
    batch = await fleet.submit([url("/3")])
    await batch.cancel()
    await hold.finish()
    await redis.hset(keys.lane(LANE), "shut_until_ms", str(gate.open_until_ms))  # type: ignore[misc]

    await reset(redis, fleet.notify, [LANE], BY)
    await fleet.submit([url("/4")])
    assert int((await fields(redis))["due_ms"]) <= await now_ms(redis)
    assert BY == (await LaneHold.begin(redis)).held.reset_by


async def test_a_held_lane_is_reset_by_its_owner_or_the_next_one(fleet: Fleet, redis: Redis) -> None:
    """An owner that releases the lane before it receives the reset does not close it again."""
    await fleet.submit([url("/1"), url("/2")])
    hold = await LaneHold.begin(redis)
    resets = int(await redis.get(keys.RESETS) or 0)
    [done] = await reset(redis, fleet.notify, [LANE], BY)
    assert (True, True) == (done.held, done.pending)
    assert resets < int(await redis.get(keys.RESETS))
    await await_applied(redis, [done], 0, 0)
    assert done.pending

    gate = await broken(redis)
    await hold.release(shut_until_ms=gate.open_until_ms, why="breaker", gate=gate)
    assert int((await fields(redis))["due_ms"]) <= await now_ms(redis)
    hold = await LaneHold.begin(redis)
    assert (BY, Breaker.OPEN) == (hold.held.reset_by, hold.held.gate.breaker)

    await reset(redis, fleet.notify, [LANE], BY)
    assert [BY] == await hold.store.take_resets([LANE])
    assert [""] == await hold.store.take_resets([LANE])
    await await_applied(redis, [done], 0, 0)
    assert not done.pending


async def test_an_unknown_lane_is_left_out(fleet: Fleet, redis: Redis) -> None:
    """It is not created."""
    assert [] == await reset(redis, fleet.notify, [LANE], BY)
    assert [None] == await host_control.reset_lanes(redis, [LANE], by=BY)
    assert await state(redis) is None


async def test_a_pattern_finds_its_lanes_idle_ones_too(fleet: Fleet, redis: Redis) -> None:
    """`default` matches all, a host matches itself if it is known."""
    for lane in ("a.example.com", "b.a.example.com", "example.com", "127.0.80.3"):
        await fleet.submit([url("/1", lane)])
    await (await LaneHold.begin(redis, name="a.example.com")).finish()

    assert ["a.example.com", "b.a.example.com"] == await lanes_of(redis, "*.example.com")
    assert 4 == len(await lanes_of(redis, "default"))
    assert 1 == len(await lanes_of(redis, "default", limit=1))
    assert ["127.0.80.3"] == await lanes_of(redis, "127.0.80.3")
    assert [] == await lanes_of(redis, "127.0.80.4")


async def test_retries_that_reach_redis_after_the_reset_are_made_due_too(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were in flight. The owner makes them due, and revives no ended one."""
    await fleet.submit([url(f"/{i}") for i in range(5)])
    hold = await LaneHold.begin(redis)
    await reset(redis, fleet.notify, [LANE], BY)
    await hold.settle(*(retried(entry, 3600) for entry in (await hold.claim()).serialized))
    monkeypatch.setattr(hold.store, "_page_size", 2)
    await hold.store.make_retries_due(LANE, await now_ms(redis))

    due = await later(redis)
    assert 5 == len(due)
    assert max(due.values()) <= await now_ms(redis)
