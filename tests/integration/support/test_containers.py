"""The lanes on an official Redis image, over TCP."""

from collections.abc import Iterator

import pytest

from fetchfleet.jobs.redis_connection import connect
from tests.support.containers import container_error, redis_in_container
from tests.support.lanes import run_lane_lifecycle


@pytest.fixture
def container_url() -> Iterator[str]:
    """Start a Redis in a container of this test; skip with the reason if that is impossible."""
    if trouble := container_error():
        pytest.skip(f"no container can run: {trouble}")
    with redis_in_container() as url:
        yield url


async def test_a_lane_works_on_the_official_image(container_url: str) -> None:
    """The image runs the same lane lifecycle as the Redis of the test session."""
    async with connect(container_url) as redis:
        await run_lane_lifecycle(container_url, redis)
        assert {"maxmemory-policy": "noeviction"} == await redis.config_get("maxmemory-policy")
        await redis.connection_pool.aclose()
