"""Foreign things at our keys: loud, and nobody else's trouble."""

from redis.asyncio import Redis

from jobs import Outcome, keys
from tests.shell.conftest import Lines, Start
from tests.support.origin import Origin
from tests.support.waiting import wait_until


async def test_a_foreign_type_at_one_batchs_key_does_not_hold_up_another(
    origin: Origin, other: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """The lane that cannot settle is let go of, with a line; every other lane settles."""
    worker = await start()
    dirty = "0" * 16
    await redis.set(keys.results(dirty), "not a stream", ex=60)
    await worker.fleet.submit([origin.url("/dirty")], batch_id=dirty)
    await wait_until(lambda: [line for line in lines if line["event"] == "lane.lost"], "the lane to be lost")
    results = await worker.results([other.url("/clean")])

    assert [Outcome.STORED] == [result.outcome for result in results]
    assert any("WRONGTYPE" in line["error"] for line in lines if line["event"] == "redis.trouble")
    await redis.flushall()
