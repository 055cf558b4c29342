"""The lanes on the Redis that a fleet would run: an official image, over TCP."""

from collections.abc import Iterator

import pytest

from fetchfleet.jobs.redis_connection import connect
from tests.support.containers import docker_trouble, redis_in_container
from tests.support.lanes import run_lane_lifecycle


@pytest.fixture
def container_url() -> Iterator[str]:
    """A Redis in a container of this test's own; skips where none can be run, and says why."""
    if trouble := docker_trouble():
        pytest.skip(f"no container can be run: {trouble}")
    with redis_in_container() as url:
        yield url


async def test_a_lane_lives_its_life_in_a_containers_redis(container_url: str) -> None:
    """What holds on the test session's Redis holds on the official image."""
    async with connect(container_url) as redis:
        await run_lane_lifecycle(container_url, redis)
        assert {"maxmemory-policy": "noeviction"} == await redis.config_get("maxmemory-policy")
        await redis.connection_pool.aclose()
