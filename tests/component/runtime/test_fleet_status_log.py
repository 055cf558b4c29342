"""The state of the fleet in the log."""

from dataclasses import replace

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts.sweep import take_turn
from fetchfleet.worker.inspect.overview import LANE_STATES
from fetchfleet.worker.runtime.stats import LOGGED
from tests.component.conftest import QUICK, Lines, Start
from tests.support.lanes import ask
from tests.support.waiting import wait_until
from tools.origin.server import Origin

OFTEN = replace(QUICK, fleet_status_s=0.05)


def statuses(lines: Lines) -> Lines:
    """Return the lines about the fleet."""
    return [line for line in lines if line["event"] == "fleet.status"]


async def test_one_worker_logs_the_state_of_the_fleet(origin: Origin, start: Start, lines: Lines) -> None:
    """It counts what the workers have finished."""
    worker = await start(timings=OFTEN)
    await worker.results([origin.url("/a"), origin.url("/b")])

    await wait_until(lambda: any(line["finished"] for line in statuses(lines)), "a line with the results")
    line = statuses(lines)[-1]

    assert {*LOGGED} <= line.keys()
    assert {"stored": {"none": 2}} == line["finished"]
    assert (1, 0, 0) == (line["workers"], line["draining"], line["lacking"])
    assert [*LANE_STATES] == [*line["lanes"]]


async def test_workers_take_turns(redis: Redis) -> None:
    """Within the interval no second worker logs the state. A foreign value at the key does no harm."""
    for found in ("", "soon", "9" * 30, b"\xff"):
        await redis.set(keys.STATUS_LOGGED, found)
        turns = [await take_turn(redis, keys.STATUS_LOGGED, every_ms=60_000) for _ in range(3)]

        assert [True, False, False] == turns
    assert 0 < await redis.pttl(keys.STATUS_LOGGED) <= keys.TURN_TTL_MS


async def test_trouble_with_the_status_is_reported_and_ends(start: Start, lines: Lines, redis: Redis) -> None:
    """A key of another type is repaired like any other, and the next line is complete."""
    await start(timings=OFTEN)
    await wait_until(lambda: statuses(lines), "a line")
    before = len(statuses(lines))
    await ask(redis, "DEL", keys.DEAD)
    await ask(redis, "RPUSH", keys.DEAD, "x")
    await wait_until(lambda: any(line["event"] == "redis.foreign" for line in lines), "the repair")

    await wait_until(lambda: len(statuses(lines)) > before + 1, "another line")
