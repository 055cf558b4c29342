"""A worker publishes its policy file once, and keeps it in Redis while it runs."""

from dataclasses import replace

import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.worker.inspect.fleet_status import fleet_status
from fetchfleet.worker.policy.published import NO_FILE, digest_of
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.settings import NO_POLICY, Settings
from tests.component.conftest import QUICK, Start
from tools.redis_leftovers import leftovers


@pytest.fixture
def timings() -> WorkerTimings:
    """Send no heartbeats but those of the test."""
    return replace(QUICK, heartbeat_s=3600)


async def test_a_policy_is_written_once_and_again_if_redis_has_lost_it(
    start: Start, redis: Redis, redis_url: str
) -> None:
    """A heartbeat only renews its time to live, for a policy of any size."""
    hosts = {f"h{i}.example": {"attempts": 2} for i in range(2000)}
    worker = await start(policy={"attempts": 7}, hosts=hosts)
    digest = digest_of(worker.settings.policy)
    key = keys.policy_file(digest)
    text = await redis.get(key)
    found = msgspec.json.decode(text)
    await redis.set(key, b"marked", px=keys.POLICY_FILE_TTL_MS // 4)
    await worker.runtime.heartbeat.send()
    renewed, ttl_ms = await redis.get(key), await redis.pttl(key)
    await redis.delete(key)
    await worker.runtime.heartbeat.send()
    (status,) = (await fleet_status(redis)).workers

    assert (7, 2000) == (found["default"]["attempts"], len(found["host"]))
    assert (b"marked", True) == (renewed, ttl_ms > keys.POLICY_FILE_TTL_MS / 2)
    assert text == await redis.get(key)
    assert digest == status.policy
    assert [] == leftovers(redis_url)


async def test_a_worker_without_a_policy_file_publishes_none(redis: Redis) -> None:
    """Its digest says that it has no file, so the defaults apply."""
    assert NO_FILE == digest_of(Settings(worker_id="w").policy) == digest_of(NO_POLICY)
    assert [] == await redis.keys(keys.policy_file("*"))
