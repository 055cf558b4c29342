"""Redis commands per fetch: few, and constant in the size of the fleet and of its backlog."""

import asyncio
import signal
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
SUBMITTED = 12_000
"""Fetches of which FETCHES are counted; enough that some are left when every lane has its worker."""
BACKLOG = 20_000
IDLE_S = 1.5
MOST = 4.0
GROWTH = 1.0


class Moment(NamedTuple):
    """The commands of Redis and the settled fetches at one time."""

    at_s: float
    commands: int
    settled: int


async def moment(redis: Redis) -> Moment:
    """Return the current moment. Commands of scripts count, those of this function do not."""
    found = await redis.info("commandstats")
    ours = {"cmdstat_info", "cmdstat_xlen"}
    commands = sum(stats["calls"] for name, stats in found.items() if name not in ours)
    return Moment(mono_s(), commands, int(await redis.xlen(keys.ALL_RESULTS)))


async def until_settled(redis: Redis, since: Moment) -> Moment:
    """Return the moment at which FETCHES more are settled, or the backlog is empty."""

    async def enough() -> bool:
        settled = int(await redis.xlen(keys.ALL_RESULTS)) - since.settled
        return settled >= FETCHES or not await backlog(redis)

    await wait_until(enough, "the results", 60)
    return await moment(redis)


async def idle_per_s(redis: Redis) -> float:
    """Return how many commands a second the workers send without any fetch."""
    before = await moment(redis)
    await asyncio.sleep(IDLE_S)  # no synchronisation: the commands of this time are counted
    after = await moment(redis)
    return (after.commands - before.commands) / (after.at_s - before.at_s)


async def all_held(redis: Redis) -> bool:
    """Return whether every lane is held or idle."""
    states = [await state(redis, host) for host in HOSTS]
    return all(found in {"held", "idle"} for found in states)


async def costs(redis: Redis, fleet: Fleet, started: Workers, urls: list[str]) -> list[float]:
    """Return the commands per settled fetch, less those of idle workers: without a backlog, then with one.

    The workers are stopped during a submit, or they would settle most of it before the count begins.
    """
    idle = await idle_per_s(redis)
    found = []
    for waiting in (0, BACKLOG):
        signal_workers(started, signal.SIGSTOP)
        await fleet.submit([f"{urls[i % len(urls)]}/{i}" for i in range(waiting + SUBMITTED)])
        signal_workers(started, signal.SIGCONT)
        await wait_until(partial(all_held, redis), "every lane to have its worker", 60)
        before = await moment(redis)
        after = await until_settled(redis, before)
        commands = after.commands - before.commands - idle * (after.at_s - before.at_s)
        found.append(commands / (after.settled - before.settled))
    return found


def signal_workers(started: Workers, number: signal.Signals) -> None:
    """Send a signal to every worker."""
    for process in started.processes:
        process.send_signal(number)


def kill(fleet: Workers) -> None:
    """Kill the workers, and leave the rest of the backlog unserved."""
    for process in fleet.processes:
        process.kill()
        process.wait()


@pytest.mark.timeout(240)
async def test_i13_redis_commands_per_fetch_are_few_and_flat(
    redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settled fetch costs at most four: with 64 in flight per lane, 1 or 8 workers, and 20,000 waiting.

    The count begins when every lane has its worker, because acquisitions cost commands per lane and time.
    The commands of idle workers (arq's polls, heartbeats) depend on time too, so they are subtracted. More
    workers may cost fewer commands: fetches that end together are settled together.
    """
    monkeypatch.setenv("FETCHFLEET_MAX_IN_FLIGHT", "512")
    found: dict[int, list[float]] = {}
    with tiny_server(HOSTS) as urls:
        for count in (1, 8):
            with workers(count, redis_url, tmp_path / str(count), POLICY) as started:
                await wait_until(started.started, "the workers", 60)
                found[count] = await costs(redis, fleet, started, urls)
                kill(started)
            await redis.flushall()

    figures = [figure for pair in found.values() for figure in pair]
    alone, *_ = found[1]
    assert max(figures) <= MOST, found
    assert max(figures) <= alone + GROWTH, found
