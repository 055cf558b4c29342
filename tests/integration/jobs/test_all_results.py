"""The stream of all results: each result once, to whole consumer groups, bounded; no silent loss."""

from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fleet, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.result import decode_result
from fetchfleet.worker.lanes.settler import Settler
from fetchfleet.worker.observability.log import get_logger
from fetchfleet.worker.redis_support.foreign_members import ForeignMembers
from fetchfleet.worker.scheduler.sweep import Housekeeping
from tests.support.lanes import LaneHold, ask, now_ms, results, stored, url
from tests.support.log_lines import capture_logs

GROUP = "billing"
DAY_MS = keys.RESULTS_TTL_MS


async def finished(fleet: Fleet, redis: Redis, count: int) -> Batch:
    """Return a batch with all its results."""
    batch = await fleet.submit([url(f"/{place}") for place in range(count)])
    await (await LaneHold.begin(redis)).finish(count)
    return batch


async def stream(redis: Redis) -> list[Result]:
    """Return everything in the stream."""
    return [decode_result(fields[b"r"]) for _, fields in await redis.xrange(keys.ALL_RESULTS)]


async def read(redis: Redis, consumer: str, count: int = 100) -> list[tuple[bytes, Result]]:
    """Return the results that were delivered to this consumer and are not acknowledged."""
    reply: Any = await redis.xreadgroup(GROUP, consumer, {keys.ALL_RESULTS: ">"}, count)
    rows = reply[0][1] if reply else []
    return [(row_id, decode_result(fields[b"r"])) for row_id, fields in rows]


async def acknowledge(redis: Redis, rows: list[tuple[bytes, Result]]) -> None:
    """Acknowledge these results."""
    await redis.xack(keys.ALL_RESULTS, GROUP, *(row_id for row_id, _ in rows))


async def old(redis: Redis, count: int, age_ms: int, first: int = 0) -> None:
    """Add that many results with an old time."""
    ms = await now_ms(redis) - age_ms
    for place in range(first, first + count):
        await ask(redis, "XADD", keys.ALL_RESULTS, f"{ms}-{place}", "r", b"{}")


async def kept(redis: Redis, length: int, times: int = 1) -> list[Any]:
    """Trim the stream; return the log lines, each as event, groups and number of results."""
    house = Housekeeping(redis, length, get_logger())
    with capture_logs() as lines:
        for _ in range(times):
            await house.run()
    assert all("warning" == line["log_level"] for line in lines)
    assert all(length == line["most"] for line in lines)
    return [(str(line["event"]), line["groups"], line["results"]) for line in lines]


# Every result


async def test_every_result_of_every_batch_is_in_the_stream_once(fleet: Fleet, redis: Redis) -> None:
    """Repeated settlements add no second entry."""
    batches = [await finished(fleet, redis, count) for count in (3, 1, 5)]
    batch = await fleet.submit([url("/twice")])
    hold = await LaneHold.begin(redis)
    (element,) = (await hold.claim()).serialized
    for _ in range(2):
        await hold.settle(stored(element))
    await hold.release()
    expected = [of for each in (*batches, batch) for of in await results(redis, each)]

    assert expected == await stream(redis)
    assert {1} == set(Counter(of.id for of in expected).values())


async def test_a_group_hands_each_result_to_one_consumer(fleet: Fleet, redis: Redis) -> None:
    """A second group gets all of them again."""
    await redis.xgroup_create(keys.ALL_RESULTS, GROUP, "$", mkstream=True)
    await redis.xgroup_create(keys.ALL_RESULTS, "audit", "0")
    batch = await finished(fleet, redis, 6)
    one, two = await read(redis, "one", 4), await read(redis, "two")

    assert (4, 2) == (len(one), len(two))
    assert await results(redis, batch) == [of for _, of in (*one, *two)]
    reply: Any = await redis.xreadgroup("audit", "x", {keys.ALL_RESULTS: ">"})
    assert 6 == len(reply[0][1])


async def test_results_of_a_dead_consumer_are_claimed_by_another(fleet: Fleet, redis: Redis) -> None:
    """A result without XACK stays pending, and XAUTOCLAIM gives it to another consumer."""
    await redis.xgroup_create(keys.ALL_RESULTS, GROUP, "0", mkstream=True)
    await finished(fleet, redis, 5)
    got = await read(redis, "dies")
    await acknowledge(redis, got[:2])
    reply: Any = await redis.xautoclaim(keys.ALL_RESULTS, GROUP, "heir", 0, "0")

    assert [row_id for row_id, _ in got[2:]] == [row_id for row_id, _ in reply[1]]
    await acknowledge(redis, got[2:])
    assert 0 == (await redis.xpending(keys.ALL_RESULTS, GROUP))["pending"]


async def test_the_stream_can_be_disabled(fleet: Fleet, redis: Redis) -> None:
    """The batch has its results nevertheless."""
    batch = await fleet.submit([url("/x")])
    hold = await LaneHold.begin(redis)
    hold._settler = Settler(redis, lambda _: None, for_all=False)
    await hold.finish()

    assert [1, 0] == [len(await results(redis, batch)), await redis.exists(keys.ALL_RESULTS)]


# Bounds


async def test_nothing_is_trimmed_within_the_bounds(fleet: Fleet, redis: Redis) -> None:
    """Length and age are within their bounds, so housekeeping logs nothing, for any readers."""
    await old(redis, 3, DAY_MS // 2)
    await finished(fleet, redis, 4)
    await redis.xgroup_create(keys.ALL_RESULTS, GROUP, "0")

    assert [] == await kept(redis, 10)
    assert 7 == await redis.xlen(keys.ALL_RESULTS)


@pytest.mark.parametrize("length", [0, 1, 9, 10])
async def test_the_oldest_results_above_the_length_are_trimmed(
    fleet: Fleet, redis: Redis, length: int
) -> None:
    """Exactly the newest ones remain."""
    batch = await finished(fleet, redis, 10)
    assert [] == await kept(redis, length)

    assert (await results(redis, batch))[10 - length :] == await stream(redis)


async def test_results_older_than_a_day_are_trimmed(fleet: Fleet, redis: Redis) -> None:
    """It holds for any length."""
    await old(redis, 4, DAY_MS + 60_000)
    await old(redis, 2, DAY_MS - 60_000)
    batch = await finished(fleet, redis, 1)
    assert [] == await kept(redis, 100)
    rows = await redis.xrange(keys.ALL_RESULTS)

    assert 3 == len(rows)
    assert await results(redis, batch) == [decode_result(rows[-1][1][b"r"])]


async def test_a_long_stream_is_trimmed_in_pieces(fleet: Fleet, redis: Redis) -> None:
    """Housekeeping trims seven results at a time until the stream is within its bounds."""
    await old(redis, 30, DAY_MS + 60_000)
    await finished(fleet, redis, 30)
    await Housekeeping(redis, 20, get_logger(), trim_at_once=7).run()

    assert 20 == await redis.xlen(keys.ALL_RESULTS)


async def test_a_reader_without_a_group_causes_no_warning(redis: Redis) -> None:
    """It keeps its own position."""
    await old(redis, 10, 0)
    await redis.xread({keys.ALL_RESULTS: "0"})

    assert [] == await kept(redis, 5)


# Consumer groups that lose results


async def test_a_lagging_group_is_named_before_it_loses_results(redis: Redis) -> None:
    """Housekeeping names it when its unread results are within a fifth of the maximum length."""
    await old(redis, 9, 0)
    await redis.xgroup_create(keys.ALL_RESULTS, GROUP, "0")

    assert [("results.lagging", [GROUP], 1)] == await kept(redis, 10)
    assert 9 == await redis.xlen(keys.ALL_RESULTS)


async def test_a_group_that_lags_by_age_is_named_too(redis: Redis) -> None:
    """Housekeeping names it when its oldest unread result is in the last fifth of its day."""
    await old(redis, 3, int(0.9 * DAY_MS))
    await old(redis, 3, DAY_MS // 2)
    await redis.xgroup_create(keys.ALL_RESULTS, GROUP, "0")

    assert [("results.lagging", [GROUP], 3)] == await kept(redis, 100)


@pytest.mark.parametrize("how", ["never read", "not acknowledged", "half read"])
async def test_a_group_that_loses_results_is_named_first(redis: Redis, how: str) -> None:
    """Results that it has not read, or not acknowledged."""
    await old(redis, 20, 0)
    for group in (GROUP, "audit"):
        await redis.xgroup_create(keys.ALL_RESULTS, group, "0")
    reply: Any = await redis.xreadgroup("audit", "x", {keys.ALL_RESULTS: ">"})
    await redis.xack(keys.ALL_RESULTS, "audit", *(row_id for row_id, _ in reply[0][1]))
    if how != "never read":
        rows: Any = await redis.xreadgroup(
            GROUP, "x", {keys.ALL_RESULTS: ">"}, 5 if how == "half read" else 20
        )
        done = rows[0][1] if how == "half read" else rows[0][1][1:]
        await redis.xack(keys.ALL_RESULTS, GROUP, *(row_id for row_id, _ in done))
    trimmed = await kept(redis, 10)

    assert ("results.trimmed", [GROUP], 10) == trimmed[0]
    assert {(GROUP,)} == {tuple(groups) for _, groups, _ in trimmed}
    assert 10 == await redis.xlen(keys.ALL_RESULTS)


async def test_groups_that_have_read_all_are_not_named(redis: Redis) -> None:
    """Unacknowledged newer results are kept."""
    await old(redis, 20, 0)
    await redis.xgroup_create(keys.ALL_RESULTS, GROUP, "0")
    rows: Any = await redis.xreadgroup(GROUP, "x", {keys.ALL_RESULTS: ">"})
    await redis.xack(keys.ALL_RESULTS, GROUP, *(row_id for row_id, _ in rows[0][1][:12]))

    assert [] == await kept(redis, 10)
    assert 8 == (await redis.xpending(keys.ALL_RESULTS, GROUP))["pending"]


async def test_a_warning_is_logged_once_a_minute(redis: Redis) -> None:
    """The sweep runs every other second."""
    await old(redis, 9, 0)
    await redis.xgroup_create(keys.ALL_RESULTS, GROUP, "0")

    assert 1 == len(await kept(redis, 10, times=5))


async def test_an_empty_stream_is_not_trimmed(redis: Redis) -> None:
    """Housekeeping logs nothing, even with a group that waits for its first result."""
    assert [] == await kept(redis, 10)
    assert [] == await redis.keys("*")
    await redis.xgroup_create(keys.ALL_RESULTS, GROUP, "0", mkstream=True)
    assert [] == await kept(redis, 10)


# Batches


async def test_expired_batches_leave_the_list(fleet: Fleet, redis: Redis) -> None:
    """The others stay, newest first."""
    batches = [await finished(fleet, redis, 1) for _ in range(5)]
    for batch in batches[::2]:
        await redis.delete(keys.batch(batch.id))
    await ForeignMembers(redis, get_logger()).remove_batches()

    assert {batches[1].id.encode(), batches[3].id.encode()} == set(await redis.zrange(keys.BATCHES, 0, -1))
    assert {batches[1].id, batches[3].id} == {of.id for of in await fleet.batches()}


async def test_many_expired_batches_leave_at_once(fleet: Fleet, redis: Redis) -> None:
    """The live batches among them stay."""
    lives = await finished(fleet, redis, 1)
    await redis.zadd(keys.BATCHES, {f"{number:016x}": number for number in range(1000)})
    await ForeignMembers(redis, get_logger()).remove_batches()

    assert [lives.id.encode()] == await redis.zrange(keys.BATCHES, 0, -1)
