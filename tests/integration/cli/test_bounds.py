"""Numbers out of range, from an operator and in Redis."""

import asyncio
import json

import pytest

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from tests.support.commands import Commands

FAR = 10**17
BATCH = "0123456789abcdef"


async def enqueue_for_hosts_of_foreign_state(redis_url: str) -> None:
    """Let a fetch wait for each of two hosts, one with impossible numbers in its lane."""
    async with Fleet(redis_url) as fleet, connect(redis_url) as redis:
        await fleet.submit(["http://a.example/", "http://b.example/"])
        state = {"state": "scheduled", "due_ms": FAR, "shut_until_ms": FAR, "why": "pacing"}
        state["gate"] = f'{{"paced_ms":1e303,"cool_until_ms":{FAR},"answers":[[{FAR},"429"]]}}'
        await redis.hset(keys.lane("b.example"), mapping=state)  # type: ignore[misc]


def test_a_number_out_of_range_is_refused_and_one_in_redis_stops_no_command(redis_url: str) -> None:
    """An older version may have set it. A pause works, and unsetting the key removes it."""
    asyncio.run(enqueue_for_hosts_of_foreign_state(redis_url))
    commands = Commands(redis_url)
    refusals = [
        commands.invoke("policy", "set", "a.example", "rate_per_s=1e-300"),
        commands.invoke("results", "0" * 16, "--after", f"{10**30}-0"),
        commands.invoke("results", "0" * 16, "--after", f"{1 << 64}-0"),
        commands.invoke("dead", "show", "²-0"),
        commands.invoke("batches", "--limit", f"{10**20}"),
    ]

    async def set_by_an_older_version() -> None:
        async with connect(redis_url) as redis:
            await redis.hset(keys.POLICY, "a.example", '{"rate_per_s":1e-300,"burst":5}')  # type: ignore[misc]
            await redis.hset(keys.POLICY, "c.example", '{"attempts":0}')  # type: ignore[misc]

    asyncio.run(set_by_an_older_version())
    explained = commands.json("explain", "a.example")
    far = commands.run("explain", "b.example")
    shown = [
        commands.run(*words) for words in (["status"], ["policy", "show", "a.example"], ["policy", "show"])
    ]
    paused = commands.run("pause", "a.example")
    other = commands.invoke("policy", "set", "b.example", "burst=2")
    commands.run("policy", "unset", "a.example", "rate_per_s")
    commands.run("policy", "unset", "c.example", "attempts")
    commands.run("policy", "set", "b.example", "burst=2")

    assert [refused.exit_code for refused in refusals] == [2] * 5
    assert "rate_per_s: must be 0 or between 0.00001 and 100000, got 1e-300" in refusals[0].output
    assert ["is not a position" in refused.output for refused in refusals[1:4]] == [True] * 3
    assert "rate_per_s" in " ".join(explained["policy"]["notes"])
    assert explained["policy"]["sources"]["burst"]["source"] == "default"
    assert "b.example: cooling until" in far
    assert all(shown)
    assert "is paused" in paused
    assert (other.exit_code, "rate_per_s" in other.output or "attempts" in other.output) == (2, True)
    assert commands.json("explain", "a.example")["policy"]["sources"]["burst"]["source"] == "override"


@pytest.mark.parametrize(
    ("number", "score"), [("x", float("inf")), ("9" * 30, float("-inf")), ("-1", 1e308), (str(FAR), -1.0)]
)
def test_no_number_in_redis_stops_a_command(redis_url: str, number: str, score: float) -> None:
    """It holds with any text in place of counts, times and scores."""

    async def fill() -> None:
        async with connect(redis_url) as redis:
            report = {"finished_per_s": 1e308, "lanes": {"a.example": {"until_ms": FAR, "in_flight": -FAR}}}
            await redis.set(keys.worker("w"), json.dumps(report))
            for key, member in ((keys.WORKERS, "w"), (keys.BATCHES, BATCH), (keys.ATTENTION, "a.example")):
                await redis.zadd(key, {member: score})
            await redis.zadd(keys.QUEUE, {"job": score})
            counts = ("total", "sealed", "stored", "failed", "bytes", "created_ms", "cancel_ms")
            await redis.hset(keys.batch(BATCH), mapping=dict.fromkeys(counts, number))  # type: ignore[misc]
            lane = dict.fromkeys(("due_ms", "shut_until_ms", "open"), number) | {"state": "scheduled"}
            await redis.hset(keys.lane("a.example"), mapping=lane)  # type: ignore[misc]
            await redis.set(keys.BACKLOG, number)
            await redis.hset(keys.POLICY, "!a.example", f'["pause",{FAR}]')  # type: ignore[misc]
            await redis.hset(keys.POLICY, "a.example", '{"paused":true}')  # type: ignore[misc]

    async def clear() -> None:
        async with connect(redis_url) as redis:
            await redis.flushdb()

    asyncio.run(fill())
    commands = Commands(redis_url)
    results = [
        commands.invoke(*words, *as_json)
        for words in (["status"], ["batches"], ["results", BATCH], ["explain", "a.example"], ["pause"])
        for as_json in ([], ["--json"])
    ]
    asyncio.run(clear())

    assert [one.exit_code for one in results] == [0] * 10
