"""The lanes on the Redis that a fleet would run: an official image, over TCP."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import ExitStack

import docker  # type: ignore[import-untyped]
import pytest
from docker.errors import DockerException  # type: ignore[import-untyped]
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from jobs.connect import connect
from tests.support.lanes import live_a_lane_life

IMAGE = "redis:7-alpine"
PORT = 6379


@pytest.fixture
def container_url() -> Iterator[str]:
    """A Redis in a container; skips where no Docker engine answers or it cannot run the image."""
    if trouble := _docker_trouble():
        pytest.skip(f"no Docker engine: {trouble}")
    with ExitStack() as stack:
        try:
            container = DockerContainer(IMAGE).with_exposed_ports(PORT)
            stack.enter_context(container.waiting_for(LogMessageWaitStrategy("Ready to accept connections")))
        except DockerException as error:
            pytest.skip(f"the Docker engine cannot run {IMAGE}: {error}")
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(PORT)}/0"


def _docker_trouble() -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker leaves its socket open when it fails
        try:
            engine = docker.from_env()
            engine.ping()
            engine.close()
        except (DockerException, OSError) as error:
            return str(error)
        finally:
            gc.collect()
    return None


async def test_a_lane_lives_its_life_in_a_containers_redis(container_url: str) -> None:
    """What holds on the test session's Redis holds on the official image."""
    async with connect(container_url) as redis:
        await live_a_lane_life(container_url, redis)
        await redis.connection_pool.aclose()
