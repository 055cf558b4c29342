"""The memory that Redis needs: the figures of the operations page hold."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fetchfleet import Fetch, Fleet, Outcome, Result, Timings
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import serialize_new_entry, with_deadline
from fetchfleet.jobs.contract.fetch import encode

SIZING = (Path(__file__).parents[3] / "docs" / "operations.md").read_text().partition("\n## Capacity\n")[2]
COUNT = 5000
LEEWAY = 1.1
"""Allocators round up, and versions of a server differ."""


async def figure(redis: Redis, row: str) -> int:
    """Return the first number of bytes in a row of the table: of Valkey, or of Redis if it has its own."""
    found = re.search(rf"^\| {re.escape(row)} \| (\d+) bytes?(.*)", SIZING, re.MULTILINE)
    assert found, row
    is_valkey = (await redis.info("server")).get("server_name") == "valkey"
    of_redis = re.search(r"(\d+) with Redis", found[2])
    return int(of_redis[1] if of_redis and not is_valkey else found[1])


def url(place: int, host: str = "a.example") -> str:
    """Return a URL of about 60 characters."""
    return f"http://{host}/images/2026/{place:08d}/picture-original.jpg"


async def used(redis: Redis) -> int:
    """Return the memory of the server, without client buffers and uncollected Lua objects."""
    await redis.script_flush("SYNC")
    memory = await redis.info("memory")
    return int(memory["used_memory"] - memory["mem_clients_normal"])


async def bytes_each(redis: Redis, fleet: Fleet, fetches: Iterable[Any]) -> float:
    """Return the memory that each of COUNT fetches adds."""
    before = await used(redis)
    await fleet.submit(fetches)
    return (await used(redis) - before) / COUNT


async def test_the_memory_of_a_fetch_a_key_and_a_host_is_as_documented(fleet: Fleet, redis: Redis) -> None:
    """Other fields cost a byte for each byte of JSON. A host costs once, for any number of fetches."""
    await bytes_each(redis, fleet, (url(place) for place in range(COUNT)))  # what Redis needs once
    plain = await bytes_each(redis, fleet, (url(place) for place in range(COUNT)))
    headers = {"Authorization": "Bearer " + "x" * 100}
    more = len(serialize_new_entry("", Fetch(url=url(0), headers=headers)))
    more -= len(serialize_new_entry("", Fetch(url=url(0))))
    larger = await bytes_each(redis, fleet, (Fetch(url=url(n), headers=headers) for n in range(COUNT)))
    named = [Fetch(url=url(place), key=f"picture-{place:08d}") for place in range(COUNT)]
    keyed = await bytes_each(redis, fleet, iter(named))
    hosts = await bytes_each(redis, fleet, (url(place, f"h{place}.example") for place in range(COUNT)))
    await redis.flushdb()

    waiting, key, host = [
        await figure(redis, f"Redis, {what}") for what in ("a waiting fetch", "a `key`", "a host with work")
    ]
    assert plain <= waiting * LEEWAY
    assert larger <= (waiting + more) * LEEWAY
    assert keyed <= (waiting + len(',"key":"picture-00000000"') + key) * LEEWAY
    assert hosts <= (waiting + host) * LEEWAY


@pytest.mark.parametrize("what", ["a result", "a dead letter"])
async def test_the_memory_of_a_result_and_a_dead_letter_is_as_documented(redis: Redis, what: str) -> None:
    """The documented figures are the bytes beyond their JSON."""
    of = "0123456789abcdef"
    result = Result(
        id=f"{of}-00000000",
        url=url(0),
        final_url=url(0),
        outcome=Outcome.STORED,
        worker="worker-1",
        status=200,
        bytes=10240,
        sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        path=f"{of}/000000/{of}-00000000",
        timings=Timings(queue_ms=12.5, connect_ms=30.1, ttfb_ms=84.2, total_ms=103.0),
    )
    element = with_deadline(serialize_new_entry(result.id, Fetch(url=url(0))), 0)
    letter = {"door": "lane", "reason": "http_status", "note": "404", "lane": "a.example", "id": result.id}
    fields: dict[Any, Any] = {"r": encode(result)} if what == "a result" else {**letter, "element": element}
    key = keys.results(of) if what == "a result" else keys.DEAD
    before = await used(redis)
    for _ in range(COUNT // 500):
        async with redis.pipeline(transaction=False) as pipe:
            for _ in range(500):
                pipe.xadd(key, fields)
            await pipe.execute()
    each = (await used(redis) - before) / COUNT
    await redis.delete(key)
    json = encode(result) if what == "a result" else element

    assert each <= (len(json) + await figure(redis, f"Redis, {what}")) * LEEWAY
