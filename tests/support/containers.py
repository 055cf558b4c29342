"""A Redis in a container, for tests: whether this machine can run one, and one that runs."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache

import docker  # type: ignore[import-untyped]
from docker.errors import DockerException  # type: ignore[import-untyped]
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

IMAGE = "redis:8"
PORT = 6379
COMMAND = [
    "redis-server",
    *("--save", ""),
    *("--appendonly", "no"),
    *("--maxmemory-policy", "noeviction"),
    *("--protected-mode", "no"),  # as in the official image: without a password only loopback would do
]


@cache
def docker_trouble() -> str | None:
    """Why no Redis can run in a container here; None when one can, because one has just done so."""
    with _leaks_forgiven():
        try:
            with closing(docker.from_env()) as engine:
                engine.containers.run(IMAGE, ["redis-server", "--version"], remove=True)
        except (DockerException, OSError) as error:  # caught in here: its traceback holds what leaks
            return str(error).strip()
        return None


@contextmanager
def redis_in_container() -> Iterator[str]:
    """The URL of a Redis in a container that is gone when the block is left."""
    with _leaks_forgiven():
        # The reaper removes what a killed test run leaves; where its image is not to be had we do without.
        if not testcontainers_config.ryuk_disabled:
            testcontainers_config.ryuk_disabled = not _can_be_had(testcontainers_config.ryuk_image)
        container = DockerContainer(IMAGE).with_command(COMMAND).with_exposed_ports(PORT)
        container.waiting_for(LogMessageWaitStrategy("Ready to accept connections"))
    try:
        with _leaks_forgiven():
            container.start()
            url = f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(PORT)}/0"
        yield url
    finally:
        with _leaks_forgiven():
            container.stop()


def _can_be_had(image: str) -> bool:
    """Whether the image is here, or can be pulled."""
    with closing(docker.from_env()) as engine:
        try:
            engine.images.get(image)
        except docker.errors.ImageNotFound:
            try:
                engine.images.pull(image)
            except DockerException:
                return False
        return True


@contextmanager
def _leaks_forgiven() -> Iterator[None]:
    """Docker's client forgets to close sockets; they are collected here, where that is no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()
