"""The policy of a fleet for commands elsewhere: that of the workers, with the source of each value."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.inspect.policy_in_force import Origin, Source, policy_in_force
from fetchfleet.worker.inspect.registration import registration_of
from fetchfleet.worker.inspect.snapshot import WorkerReport
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.policy.published import digest_of, published
from fetchfleet.worker.settings import NO_POLICY, Settings

LANE = "api.cdn.example"
FILE = parse_policy(
    """
[default]
concurrency = 8
attempts = 3
[host."*.cdn.example"]
rate_per_s = 5
[host."api.cdn.example"]
concurrency = 2
""",
    "0123456789abcdef",
)
OTHER = parse_policy("[default]\nconcurrency = 4\n", "fedcba9876543210")

Join = Callable[..., Awaitable[None]]


@pytest.fixture
def join(redis: Redis) -> Join:
    """Add a worker to the fleet, as its heartbeat does; without a policy it is of an older version."""

    async def join(name: str, policy: Policy | None = None, *, publishes: bool = True, **more: Any) -> None:
        now_ms = await redis_now_ms(redis)
        settings = Settings(worker_id=name, policy=policy or NO_POLICY)
        registration = registration_of(settings, now_ms) if policy is not None else None
        instance = registration.instance if registration else name
        report = msgspec.json.encode(WorkerReport(registration=registration, **more))
        await redis.zadd(keys.WORKERS, {instance: now_ms})
        await redis.set(keys.worker(instance), report, px=keys.WORKER_TTL_MS)
        if policy is not None and publishes:
            key = keys.policy_file(digest_of(policy))
            await redis.set(key, published(policy), px=keys.POLICY_FILE_TTL_MS)

    return join


async def test_each_value_has_the_table_that_it_comes_from(redis: Redis, fleet: Fleet, join: Join) -> None:
    """Built-in default, file or run time; of the default table, a pattern or the host."""
    await join("worker-1", FILE)
    await overrides.change(redis, fleet.notify, "*.cdn.example", {"rate_per_s": 1, "burst": 3})
    await overrides.change(redis, fleet.notify, "example", {"paused": True})
    await overrides.change(redis, fleet.notify, "default", {"concurrency": 6})
    found = await policy_in_force(redis, NO_POLICY)
    policy, sources = found.policy.for_lane(LANE), found.sources(LANE)
    await overrides.change(redis, fleet.notify, "default", {"paused": True})
    paused = await policy_in_force(redis, NO_POLICY)

    assert (Origin.WORKERS, "0123456789abcdef", []) == (found.origin, found.digest, [*found.notes(LANE)])
    assert (2, 3, 1.0, 3) == (policy.concurrency, policy.attempts, policy.rate_per_s, policy.burst)
    assert sources.keys() == set(policy.__struct_fields__)
    assert {key: source for key, source in sources.items() if source != Source("default")} == {
        "concurrency": Source("file", LANE),
        "attempts": Source("file", "default"),
        "rate_per_s": Source("override", "*.cdn.example"),
        "burst": Source("override", "*.cdn.example"),
    }
    assert Source("override", "default") == paused.sources(LANE)["paused"]
    assert Source("override", "default") == paused.sources("other.example")["concurrency"]


async def test_without_a_worker_that_publishes_its_policy_the_defaults_are_assumed(
    redis: Redis, join: Join
) -> None:
    """The fleet has no worker, or only older ones. The notes name the remedy."""
    nobody = await policy_in_force(redis, NO_POLICY)
    await join("old-1")
    old = await policy_in_force(redis, NO_POLICY)

    assert [Origin.ASSUMED] * 2 == [nobody.origin, old.origin]
    assert ["no worker runs"] == [note[:14] for note in nobody.notes(LANE)]
    assert ["the workers' version publishes"] == [note[:30] for note in old.notes(LANE)]
    assert all("--policy" in note for found in (nobody, old) for note in found.notes(LANE))
    assert {"unknown": ["old-1"]} == old.summary(LANE)["workers"]


async def test_workers_with_other_files_are_named_with_the_differences(redis: Redis, join: Join) -> None:
    """The file of most workers is shown. For a host with equal values none are listed."""
    await join("worker-1", FILE)
    await join("worker-2", FILE)
    await join("worker-3", OTHER)
    await join("worker-4", NO_POLICY)
    await join("old-1")
    found = await policy_in_force(redis, NO_POLICY)
    notes = " | ".join(found.notes(LANE))

    assert "0123456789abcdef" == found.digest
    assert "01234567 on worker-1, worker-2; fedcba98 on worker-3; defaults on worker-4" in notes
    assert "worker-3 (fedcba98): concurrency 4 instead of 2" in notes
    assert "worker-4 (defaults): concurrency 8 instead of 2" in notes
    assert "no policy is published by old-1" in notes
    assert "attempts 5 instead of 3, rate_per_s" not in " | ".join(found.notes("x.example"))


async def test_the_file_of_the_worker_that_holds_a_lane_counts_for_it(redis: Redis, join: Join) -> None:
    """Most workers have another. An owner of an older version publishes none."""
    await join("worker-1", FILE)
    await join("worker-2", FILE)
    await join("worker-3", OTHER)
    [owner] = [name.decode() for name in await redis.zrange(keys.WORKERS, 0, -1) if b"worker-3" in name]
    found = {}
    for lane, holder in (("held.example", owner), ("old.example", "worker-3")):
        await redis.hset(keys.lane(lane), mapping={"owner": holder, "state": "idle"})  # type: ignore[misc]
        await redis.pexpire(keys.lane(lane), 60_000)
        found[lane] = await policy_in_force(redis, NO_POLICY, lane)
    other = await policy_in_force(redis, NO_POLICY, "free.example")

    assert (OTHER.digest, 4) == (
        found["held.example"].digest,
        found["held.example"].policy.for_lane("held.example").concurrency,
    )
    assert "the file shown is that of worker-3, which holds held.example" in [
        *found["held.example"].notes("held.example")
    ]
    assert [FILE.digest] * 2 == [found["old.example"].digest, other.digest]
    assert not any("which holds" in note for note in other.notes("free.example"))


async def test_a_given_file_replaces_that_of_the_workers_and_differences_are_named(
    redis: Redis, join: Join
) -> None:
    """A file that the workers use too has no note."""
    alone = await policy_in_force(redis, FILE)
    await join("worker-1", FILE)
    same = await policy_in_force(redis, FILE)
    await join("worker-2", OTHER)
    given = await policy_in_force(redis, OTHER)

    assert [Origin.GIVEN] * 3 == [alone.origin, same.origin, given.origin]
    assert ([], []) == ([*alone.notes(LANE)], [*same.notes(LANE)])
    assert any("--policy gives file fedcba98" in note for note in given.notes(LANE))
    assert 4 == given.policy.for_lane(LANE).concurrency


@pytest.mark.parametrize("text", [None, b"\xff", b'{"default": {"attempts": 0}}'])
async def test_an_unreadable_published_file_is_reported(redis: Redis, join: Join, text: bytes | None) -> None:
    """The file is not published yet, is foreign, or has values that this version refuses."""
    await join("worker-1", FILE, publishes=False)
    if text is not None:
        await redis.set(keys.policy_file(digest_of(FILE)), text, px=60_000)
    found = await policy_in_force(redis, NO_POLICY)

    assert Origin.ASSUMED == found.origin
    assert ["policy file 01234567 of worker-1: "] == [note[:34] for note in found.notes(LANE)]


async def test_workers_that_do_not_use_the_tables_set_at_run_time_are_named(
    redis: Redis, fleet: Fleet, join: Join
) -> None:
    """They refuse them, or have not read them yet. An older worker does not report it."""
    await overrides.change(redis, fleet.notify, "a.example", {"attempts": 2})
    version = (await redis.get(keys.POLICY_VERSION)).decode()
    await join("worker-1", FILE, policy_version=version)
    await join("worker-2", FILE, policy_version=version, policy_refused="concurrency: 0")
    await join("worker-3", FILE, policy_version="0")
    await join("worker-4", FILE)
    notes = [*(await policy_in_force(redis, NO_POLICY)).notes(LANE)]

    assert [
        "worker-2 refuses the keys set at run time and keeps the earlier ones: concurrency: 0",
        "the last change at run time is not yet in force on worker-3",
    ] == notes


async def test_a_fleet_of_many_files_costs_a_bounded_number_of_reads(redis: Redis, join: Join) -> None:
    """Some are read, all are named by their digests."""
    for i in range(20):
        await join(f"worker-{i}", parse_policy(f"[default]\nattempts = {i + 1}\n", f"{i:016x}"))
    found = await policy_in_force(redis, NO_POLICY)

    assert 16 == len(found.known.files)
    assert 20 == len(found.known.workers)
