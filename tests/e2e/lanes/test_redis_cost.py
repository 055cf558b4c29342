"""What a fetch costs Redis: few commands, and as many however large the fleet and its backlog are."""

import asyncio
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.worker.util.clock import mono_s
from tests.support.lanes import backlog, state
from tests.support.tiny_server import tiny_server
from tests.support.waiting import wait_until
from tests.support.workers import Workers, workers

HOSTS = [f"127.0.9.{i}" for i in range(1, 9)]
POLICY = "[default]\nconcurrency = 64\n"
FETCHES = 1_000
BACKLOG = 20_000
IDLE_S = 1.5
MOST = 4.0
GROWTH = 1.0


class Moment(NamedTuple):
    """How far Redis and the fleet are."""

    at_s: float
    commands: int
    settled: int


async def moment(redis: Redis) -> Moment:
    """All commands until now, those that scripts call too, but those that ask for this."""
    found = await redis.info("commandstats")
    ours = {"cmdstat_info", "cmdstat_xlen"}
    commands = sum(said["calls"] for name, said in found.items() if name not in ours)
    return Moment(mono_s(), commands, int(await redis.xlen(keys.ALL_RESULTS)))


async def until_settled(redis: Redis, since: Moment) -> Moment:
    """The moment when enough are settled since then, or all."""

    async def enough() -> bool:
        settled = int(await redis.xlen(keys.ALL_RESULTS)) - since.settled
        return settled >= FETCHES or not await backlog(redis)

    await wait_until(enough, "the results", 60)
    return await moment(redis)


async def idle_per_s(redis: Redis) -> float:
    """What the workers ask of Redis in a second when there is nothing to do."""
    before = await moment(redis)
    await asyncio.sleep(IDLE_S)  # not to synchronise: this stretch of time is what is measured
    after = await moment(redis)
    return (after.commands - before.commands) / (after.at_s - before.at_s)


async def all_held(redis: Redis) -> bool:
    """Whether every lane is some worker's, or has nothing left to do."""
    states = [await state(redis, host) for host in HOSTS]
    return all(found in {"held", "idle"} for found in states)


async def costs(redis: Redis, fleet: Fleet, urls: list[str]) -> list[float]:
    """Commands a settled fetch, beside those of idle workers: without a backlog, and with one."""
    idle = await idle_per_s(redis)
    found = []
    for waiting in (0, BACKLOG):
        await fleet.submit([f"{urls[i % len(urls)]}/{i}" for i in range(waiting + 4 * FETCHES)])
        await wait_until(partial(all_held, redis), "every lane to have its worker", 60)
        before = await moment(redis)
        after = await until_settled(redis, before)
        commands = after.commands - before.commands - idle * (after.at_s - before.at_s)
        found.append(commands / (after.settled - before.settled))
    return found


def kill(fleet: Workers) -> None:
    """What is left of the backlog is nobody's."""
    for process in fleet.processes:
        process.kill()
        process.wait()


@pytest.mark.timeout(240)
async def test_i13_redis_commands_per_fetch_are_few_and_flat(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most four a settled fetch at 64 in flight a lane, and no more with 8 workers or 20,000 waiting.

    Counted once every lane has its worker: handing them out goes by lanes, and by time where workers leave
    them to others. What the workers ask while there is nothing to do (arq's polls, signs of life) is measured
    apart and taken off, for it goes by time too. The origin answers at once. Fewer with more workers is no
    fault: what ends together is settled together, and the busier the machine, the more of it does.
    """
    monkeypatch.setenv("FETCHFLEET_MAX_IN_FLIGHT", "512")
    found: dict[int, list[float]] = {}
    with tiny_server(HOSTS) as urls:
        for count in (1, 8):
            with workers(count, redis_url, tmp_path / str(count), POLICY) as started:
                await wait_until(started.started, "the workers", 60)
                found[count] = await costs(redis, fleet, urls)
                kill(started)
            await redis.flushall()

    figures = [figure for pair in found.values() for figure in pair]
    alone, *_ = found[1]
    assert max(figures) <= MOST, found
    assert max(figures) <= alone + GROWTH, found
