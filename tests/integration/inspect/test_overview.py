"""The state of a fleet in numbers."""

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import serialize_entry
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.jobs.scripts import views
from fetchfleet.worker.inspect import snapshot as snapshots
from fetchfleet.worker.inspect.overview import LANE_STATES, overview
from fetchfleet.worker.inspect.snapshot import LaneReport
from fetchfleet.worker.observability.totals import WorkerTotals
from tests.support.conflicting_keys import TYPES, plant_value
from tests.support.fleet_reports import publish_report
from tests.support.lanes import LaneHold, ask, entry, put

HOUR_MS = 3600 * 1000


async def test_lanes_are_counted_by_state_and_the_runnable_ones_apart(redis: Redis, fleet: Fleet) -> None:
    """A lane at its concurrency limit, or closed, is not runnable. One without a holder is."""
    closed = ["cooling", "quota", "paused", "robots", "breaker"]
    hosts = ["busy", "full", "held", "free", "pacing", "late", *closed]
    await fleet.submit([f"http://{host}.example/{i}" for host in hosts for i in range(3)])
    now_ms = await redis_now_ms(redis)
    lanes = {
        "busy.example": LaneReport(in_flight=2),
        "full.example": LaneReport(in_flight=2, full=True),
        "held.example": LaneReport(),
        "pacing.example": LaneReport(in_flight=1, why="pacing", until_ms=now_ms + 5000),
    }
    instance = await publish_report(redis, "one", lanes=lanes)
    for name in lanes:
        await LaneHold.begin(redis, instance, name)
    for why in closed:
        hold = await LaneHold.begin(redis, "two", f"{why}.example")
        await hold.release(shut_until_ms=now_ms + HOUR_MS, why=why)
    await ask(redis, "HSET", keys.lane("late.example"), "due_ms", now_ms + HOUR_MS)
    seen = await overview(redis)

    assert [*seen.lanes] == [*LANE_STATES]
    assert {"busy": 2, "waiting": 2} | dict.fromkeys(LANE_STATES[2:], 1) == seen.lanes
    assert (3, 11, 11) == (seen.runnable, seen.lanes_read, seen.lanes_in_all)
    assert (33, 5, 28) == (seen.backlog, seen.in_flight, seen.waiting)


async def test_workers_and_what_they_have_finished_are_counted(redis: Redis) -> None:
    """A drained worker and one without disk space are counted apart. Unknown reasons are `other`."""
    totals = WorkerTotals(finished={"stored": {"none": 5}, "failed": {"read_timeout": 2, "new_reason": 1}})
    await publish_report(redis, "one", totals=totals, finished_per_s=1.5)
    await publish_report(redis, "two", totals=totals)
    await publish_report(redis, "drained", draining=True, lacking="bytes")
    await publish_report(redis, "full", lacking="bytes")
    seen = await overview(redis)

    assert (2, 1, 1) == (seen.workers, seen.draining, seen.lacking)
    expected = {"stored": {"none": 10}, "failed": {"read_timeout": 4, "other": 2}}
    assert (expected, 1.5) == (seen.finished, seen.finished_per_s)


async def test_the_oldest_fetch_is_found_in_every_queue(redis: Redis, fleet: Fleet) -> None:
    """Its age counts from the submit, which is its deadline less the time that it was allowed."""
    await fleet.submit(["http://a.example/", Fetch(url="http://b.example/", deadline_s=7200.0)])
    now_ms = await redis_now_ms(redis)
    for where in ("low", "returned", "high"):
        old = entry(1, lane="b.example", deadline_ms=now_ms + 24 * HOUR_MS - HOUR_MS)
        await put(redis, serialize_entry(old), where=where, lane="b.example")
        seen = await overview(redis)

        assert seen.oldest_s == pytest.approx(3600, abs=60)
        await redis.delete(keys.waiting_at("b.example", where))
    await ask(redis, "ZADD", keys.later("a.example"), now_ms, serialize_entry(old))
    later = await overview(redis)
    await redis.delete(keys.later("a.example"))
    young = await overview(redis)

    assert later.oldest_s == pytest.approx(3600, abs=60)
    assert young.oldest_s == pytest.approx(0, abs=60)


async def test_unread_results_are_those_not_acknowledged_by_a_group(redis: Redis) -> None:
    """Delivered results count until they are acknowledged. A moved group is counted up to a limit."""
    none = (await overview(redis)).unread
    for i in range(5):
        await redis.xadd(keys.ALL_RESULTS, {"r": str(i)})
    await redis.xgroup_create(keys.ALL_RESULTS, "new", "$")
    await redis.xgroup_create(keys.ALL_RESULTS, "reading", "0")
    rows = (await redis.xreadgroup("reading", "me", {keys.ALL_RESULTS: ">"}, count=3))[0][1]
    await redis.xack(keys.ALL_RESULTS, "reading", rows[0][0])
    await redis.xgroup_create(keys.ALL_RESULTS, "moved", rows[0][0])
    seen = await overview(redis)

    assert ({}, {"new": 0, "reading": 4, "moved": 4}) == (none, seen.unread)


async def test_few_of_many_lanes_are_read_and_their_number_is_stated(
    redis: Redis, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that need attention first are read, each once, in several calls."""
    monkeypatch.setattr(views, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(snapshots, "ROWS_AT_ONCE", 7)
    await fleet.submit([f"http://host-{i}.example/" for i in range(30)])
    all_lanes = await snapshots.snapshot(redis)
    some = await snapshots.snapshot(redis, 14)

    assert (30, 30) == (len({lane.name for lane in all_lanes.lanes}), all_lanes.lanes_in_all)
    assert (14, 30) == (len({lane.name for lane in some.lanes}), some.lanes_in_all)


@pytest.mark.parametrize("kind", TYPES)
async def test_values_of_another_program_count_as_none(
    redis: Redis, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    """A key of a lane with another type does not hide the other lanes, and long names are left out."""
    canary = tmp_path_factory.mktemp("canary") / "loaded"
    await fleet.submit([f"http://{host}.example/{i}" for host in "abcdefgh" for i in range(2)])
    for number, key in enumerate(keys.kinds_of_lane("a.example")):
        name = "abcdefgh"[number]
        await plant_value(redis, key.replace("a.example", f"{name}.example"), kind, canary)
    await redis.zadd(keys.ATTENTION, {"x" * 301: 1})
    await redis.zadd(keys.ATTENTION, {b"\xff\xfe": 2})
    await plant_value(redis, keys.ALL_RESULTS, kind, canary)
    seen = await overview(redis)

    assert (9, 10) == (seen.lanes_read, seen.lanes_in_all)
    assert sum(seen.lanes.values()) == 9
    assert not canary.exists()
    await redis.flushdb()
