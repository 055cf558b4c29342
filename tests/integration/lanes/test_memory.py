"""The memory of Redis that fetches and results take."""

import asyncio

import msgspec
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import READ_COUNT
from fetchfleet.worker.util import aio
from tests.support.lanes import LaneHold, ask, stored, url
from tests.support.waiting import wait_until

COUNT = 50_000
AT_ONCE = 1000
MOST_BYTES = 5_000_000
"""All of these results untrimmed would take five times as much; a million of them a hundred times."""

SHORTEST_JSON = 70
"""Bytes. What is kept beside a fetch, its id and deadline above all, outweighs less JSON than that."""

MOST_BESIDE_BYTES = 80


def fetches() -> list[Fetch]:
    """Return typical fetches of a service: a long path, a query, a header, a size limit."""
    return [
        Fetch(
            url=url(f"/archive/2024/documents/{i:08d}/attachments/original.pdf?version={i % 7}&lang=en"),
            headers={"accept": "application/pdf"},
            max_bytes=50_000_000,
            meta={"document": i},
        )
        for i in range(COUNT)
    ]


async def used_bytes(redis: Redis) -> int:
    """Return the memory of all keys in Redis."""
    found = await redis.info("memory")
    return int(found["used_memory_dataset"])


async def test_i13_a_waiting_fetch_takes_no_more_than_twice_its_json(fleet: Fleet, redis: Redis) -> None:
    """The measure includes the keys of the lane and the batch, for fifty thousand waiting fetches."""
    waiting = fetches()
    before = await used_bytes(redis)
    await fleet.submit(waiting)
    took = await used_bytes(redis) - before
    in_json = sum(len(msgspec.json.encode(fetch)) for fetch in waiting)
    assert took <= 2 * in_json
    await redis.flushall()


async def test_i13_a_short_fetch_takes_little_beyond_its_json(fleet: Fleet, redis: Redis) -> None:
    """A bare URL takes its JSON and a few dozen bytes, which from 70 bytes on is less than twice its JSON."""
    bare = len(msgspec.json.encode(Fetch(url=url("/"))))
    for path in ("/x", "/files/2024/{i:08d}.bin", "/" + "x" * (SHORTEST_JSON - bare)):
        waiting = [Fetch(url=url(path.format(i=i))) for i in range(COUNT // 4)]
        in_json = sum(len(msgspec.json.encode(fetch)) for fetch in waiting)
        before = await used_bytes(redis)
        await fleet.submit(waiting)
        took = await used_bytes(redis) - before
        assert took <= in_json + MOST_BESIDE_BYTES * len(waiting), path
        assert took <= 2 * in_json or in_json < SHORTEST_JSON * len(waiting), path
        await redis.flushall()


async def test_i13_a_trimming_reader_keeps_the_results_of_a_batch_short(fleet: Fleet, redis: Redis) -> None:
    """With any number of results, only unread ones are in Redis."""
    batch = await fleet.submit([url("/x") for _ in range(COUNT)])
    hold = await LaneHold.begin(redis)
    seen = 0

    async def read() -> None:
        nonlocal seen
        async for _ in batch.results(trim=True):
            seen += 1

    reading = asyncio.create_task(read())
    settled, largest = 0, 0
    try:
        while elements := (await hold.claim(AT_ONCE)).serialized:
            await hold.settle(*(stored(element) for element in elements))
            settled += len(elements)
            most = settled - seen + 2 * READ_COUNT  # results of one read are trimmed once all are yielded
            assert await redis.xlen(keys.results(batch.id)) <= most
            await wait_until(lambda: seen >= settled - 2 * READ_COUNT, "the reader to keep up", every_s=0.001)  # noqa: B023
            largest = max(largest, await ask(redis, "MEMORY", "USAGE", keys.results(batch.id)) or 0)
        await reading
    finally:
        await aio.end(reading)
    assert seen == COUNT
    assert largest <= MOST_BYTES
    assert await redis.xlen(keys.results(batch.id)) == 0
    assert await hold.release() is None
