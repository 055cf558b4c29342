"""Foreign values at the fleet's keys are reported and repaired, and delay fetches only briefly."""

import pickle
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Batch, Fetch, KeyTypeConflictError, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import HEAD_CHARS, serialize_entry
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.runtime.timings import WorkerTimings
from tests.component.conftest import QUICK, Lines, Start
from tests.support.conflicting_keys import Canary, other_type, plant_value
from tests.support.lanes import ask, entry, put
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker, results_of
from tools.origin import behaviours as o
from tools.origin.server import Origin

TURNS = range(5)
COUNT = 10_000


@pytest.fixture
def timings() -> WorkerTimings:
    """Check the keys many times a second."""
    return replace(QUICK, key_check_s=0.1)


async def submitted(worker: OneWorker, *urls: str) -> Batch:
    """Submit the fetches; retry while a key has a foreign type."""
    batches: list[Batch] = []

    async def taken() -> bool:
        try:
            batches.append(await worker.submit([Fetch(url=url) for url in urls]))
        except KeyTypeConflictError:
            return False
        return True

    await wait_until(taken, "the fetches to be accepted")
    return batches[0]


async def ended(batch: Batch) -> bool:
    """Return whether every fetch has a result."""
    return (await batch.counts()).ended


def saw_more(origin: Origin, than: int) -> bool:
    """Return whether the origin has received more requests than this number."""
    return len(origin.requests) > than


async def all_quarantined_at(redis: Redis, kinds: Mapping[str, str]) -> bool:
    """Return whether these keys are free of foreign values."""
    for key, wanted in kinds.items():
        found = (await redis.type(key)).decode()
        if found not in {wanted, "none"} and (wanted, found) != ("counter", "string"):
            return False
    return True


async def letters(redis: Redis) -> set[str]:
    """Return the keys named by dead letters."""
    rows = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    return {row[b"note"].decode().partition(" was a ")[0] for _, row in rows if row.get(b"door") == b"key"}


async def test_a_key_conflict_of_one_batch_does_not_delay_another(
    origin: Origin, other: Origin, start: Start, redis: Redis, lines: Lines
) -> None:
    """The value is moved to the dead letters with a log line, and both batches have their results."""
    worker = await start()
    dirty = "0" * 16
    await redis.set(keys.results(dirty), "not a stream", ex=60)
    batch = await worker.fleet.submit([origin.url("/dirty")], batch_id=dirty)
    await wait_until(partial(ended, batch), "the result")
    assert [Outcome.STORED] == [result.outcome for result in await results_of(batch)]
    assert [Outcome.STORED] == [result.outcome for result in await worker.results([other.url("/clean")])]
    assert [keys.results(dirty)] == [line["key"] for line in lines if line["event"] == "redis.foreign"]
    assert {keys.results(dirty)} == await letters(redis)


@pytest.mark.parametrize("turn", TURNS)
async def test_i26_the_fleet_recovers_from_foreign_types_at_its_keys(
    origin: Origin, start: Start, redis: Redis, tmp_path: Path, turn: int
) -> None:
    """Every fixed key of the fleet is overwritten. Fetches submitted then have their results."""
    worker = await start(lease_s=2.0)
    await worker.one(origin.url("/before"))
    # The dead letters first: a value planted there would overwrite the letters about the other keys.
    for key in sorted(keys.FIXED, key=lambda key: key != keys.DEAD):
        await plant_value(redis, key, other_type(keys.FIXED[key], turn), tmp_path / "canary")
    await wait_until(partial(all_quarantined_at, redis, keys.FIXED), "all to be quarantined")

    batch = await submitted(worker, origin.url("/after"))
    assert [Outcome.STORED] == [result.outcome for result in await results_of(batch)]
    await plant_value(redis, keys.key("k"), other_type("string", turn), tmp_path / "canary")
    await ask(redis, "RPUSH", keys.INBOX, msgspec.json.encode({"url": origin.url("/inbox"), "key": "k"}))
    await wait_until(lambda: "/inbox" in [seen.target for seen in origin.requests], "the message's fetch")
    assert not (tmp_path / "canary").exists()
    assert set(keys.FIXED) - {keys.DEAD} <= await letters(redis)
    await worker.stop()
    await redis.flushall()


@pytest.mark.parametrize("key", [keys.WORKERS, keys.HANDED, keys.DEATHS])
async def test_i26_a_worker_starts_although_a_key_has_a_foreign_type(
    origin: Origin, start: Start, redis: Redis, key: str
) -> None:
    """It may be the only worker of the fleet: no other one moves the value away."""
    await ask(redis, "RPUSH", key, "foreign")
    worker = await start()
    assert [Outcome.STORED] == [result.outcome for result in await worker.results([origin.url("/")])]
    await wait_until(partial(all_quarantined_at, redis, {key: keys.FIXED[key]}), "the key to be quarantined")


@pytest.mark.parametrize("turn", [0, 2])
async def test_i26_a_held_lane_recovers_from_foreign_types_at_its_keys(
    origin: Origin, other: Origin, start: Start, redis: Redis, tmp_path: Path, turn: int
) -> None:
    """Every key of the lane and of its batch is overwritten. Fetches submitted then have their results."""
    origin.behaviour = o.by_path({"/slow": o.latency(0.3, o.OK), "/": o.OK})
    worker = await start(lease_s=2.0)
    lane = origin.url("/").split("/")[2].partition(":")[0]
    for key, wanted in keys.kinds_of_lane(lane).items():
        seen = len(origin.requests)
        await worker.submit([origin.url(f"/slow{i}") for i in range(3)])
        await wait_until(partial(saw_more, origin, seen), "a request")
        await plant_value(redis, key, other_type(wanted, turn), tmp_path / "canary")
        batch = await submitted(worker, origin.url("/after"), other.url("/after"))
        assert [Outcome.STORED] * 2 == [result.outcome for result in await results_of(batch)], key
        await wait_until(partial(all_quarantined_at, redis, {key: wanted}), "the key to be quarantined")
    assert not (tmp_path / "canary").exists()
    await worker.stop()
    await redis.flushall()


NO_TEXT = b"\xff\xfe"


def of_the_right_type(lane: str) -> list[tuple[str | bytes, ...]]:
    """Return commands that write foreign values into the fleet's keys, but keep the keys' types."""
    return [
        ("ZADD", keys.QUEUE, "1", NO_TEXT),
        ("ZADD", keys.ATTENTION, "1", NO_TEXT),
        ("ZADD", keys.BATCHES, "1", NO_TEXT),
        ("ZADD", keys.WORKERS, "9999999999999", NO_TEXT),
        ("HSET", keys.POLICY, NO_TEXT, NO_TEXT),
        ("HSET", keys.INTAKE, "token", NO_TEXT, "until_ms", NO_TEXT, "batch", NO_TEXT),
        ("RPUSH", keys.TAKEN, '{"url": "http://127.0.0.1:9/taken"}'),
        ("RPUSH", keys.INBOX, NO_TEXT),
        ("SADD", keys.cancelled(lane), NO_TEXT),
        ("HSET", keys.lane(lane), "open", NO_TEXT, "earliest_ms", NO_TEXT, "shut_until_ms", NO_TEXT),
        ("HSET", keys.lane(lane), "why", NO_TEXT, "due_ms", NO_TEXT, "gate", NO_TEXT),
    ]


@pytest.mark.parametrize("while_held", [False, True], ids=["idle", "held"])
async def test_i26_the_fleet_recovers_from_foreign_members_in_its_keys(
    origin: Origin, start: Start, redis: Redis, *, while_held: bool
) -> None:
    """Values of the right type with invalid content neither end a loop of a worker nor delay a lane."""
    origin.behaviour = o.by_path({"/slow": o.latency(0.5, o.OK), "/": o.OK})
    worker = await start(lease_s=2.0)
    lane = origin.url("/").split("/")[2].partition(":")[0]
    before = await worker.submit([origin.url("/slow")] if while_held else [])
    if while_held:
        await wait_until(lambda: origin.in_progress, "a request")
    for command in of_the_right_type(lane):
        await ask(redis, *command)

    batch = await submitted(worker, origin.url("/after"))
    await ask(redis, "RPUSH", keys.INBOX, msgspec.json.encode({"url": origin.url("/inbox")}))
    assert [Outcome.STORED] == [result.outcome for result in await results_of(batch)]
    await wait_until(lambda: "/inbox" in [seen.target for seen in origin.requests], "the message's fetch")
    await wait_until(partial(ended, before), "what was in flight")
    again = await worker.submit([origin.url("/again")])
    assert [Outcome.STORED] == [result.outcome for result in await results_of(again)]
    assert (await fleet_status(redis)).workers
    for key in (keys.QUEUE, keys.ATTENTION, keys.BATCHES):
        await wait_until(partial(is_clean, redis, key), f"{key} to be clean")
    assert not await redis.exists(keys.cancelled(lane))
    await redis.delete(keys.POLICY)
    await redis.zrem(keys.WORKERS, NO_TEXT)


async def is_clean(redis: Redis, key: str) -> bool:
    """Return whether the member that is not text is gone."""
    return await redis.zscore(key, NO_TEXT) is None


def garbage(chance: random.Random, place: int, canary: Path) -> bytes:
    """Return an invalid entry: noise, a pickle, half an entry, or a bad payload after a valid head."""
    whole = serialize_entry(entry(place))
    noise = chance.randbytes(chance.randrange(1, 200))
    return chance.choice(
        (
            noise,
            chance.randbytes(8) + pickle.dumps(Canary(canary)),
            pickle.dumps((place, Canary(canary))),
            whole[: chance.randrange(1, len(whole))],
            whole[:HEAD_CHARS] + noise,
            whole[:HEAD_CHARS] + pickle.dumps(Canary(canary)),
            whole[:HEAD_CHARS] + b'{"v":1,"fetch":' + b"[" * chance.randrange(1, 2000),
        )
    )


async def test_i26_ten_thousand_garbled_entries_become_dead_letters(
    origin: Origin, start: Start, redis: Redis, tmp_path: Path
) -> None:
    """Each has its reason, none is run or requested, and the fetches among them have their results."""
    chance = random.Random(26)
    bad = [garbage(chance, place, tmp_path / "canary") for place in range(COUNT)]
    worker = await start(policy={"concurrency": 1000})
    lane = origin.url("/").split("/")[2].partition(":")[0]
    await put(redis, *bad[: COUNT // 2], where="high", lane=lane)
    batch = await worker.submit([origin.url(f"/{i}") for i in range(20)])
    await put(redis, *bad[COUNT // 2 :], where="high", lane=lane)
    assert [Outcome.STORED] * 20 == [result.outcome for result in await results_of(batch)]
    await wait_until(partial(buried, redis), "the dead letters", 60)
    rows = await ask(redis, "XRANGE", keys.DEAD, "-", "+")
    assert sorted(bad) == sorted(row[b"element"] for _, row in rows)
    assert {(b"lane", b"invalid")} == {(row[b"door"], row[b"reason"]) for _, row in rows}
    assert len(origin.requests) == 20
    assert not (tmp_path / "canary").exists()


async def buried(redis: Redis) -> bool:
    """Return whether every garbled entry is a dead letter."""
    return int(await redis.xlen(keys.DEAD)) == COUNT
