"""Run a Redis in a container for tests, if this machine can."""

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
    *("--protected-mode", "no"),  # as in the official image, since no password is set
]


@cache
def container_error() -> str | None:
    """Try to run a Redis container; return the error, or None if it ran."""
    with _leaks_ignored():
        try:
            with closing(docker.from_env()) as engine:
                engine.containers.run(IMAGE, ["redis-server", "--version"], remove=True)
        except (DockerException, OSError) as error:
            # Caught inside the block: the traceback references the leaked sockets.
            return str(error).strip()
        return None


@contextmanager
def redis_in_container() -> Iterator[str]:
    """Yield the URL of a Redis in a container, which is removed at the end of the block."""
    with _leaks_ignored():
        # Ryuk removes the containers of a killed test run. If its image is not available, disable it.
        if not testcontainers_config.ryuk_disabled:
            testcontainers_config.ryuk_disabled = not _is_available(testcontainers_config.ryuk_image)
        container = DockerContainer(IMAGE).with_command(COMMAND).with_exposed_ports(PORT)
        container.waiting_for(LogMessageWaitStrategy("Ready to accept connections"))
    try:
        with _leaks_ignored():
            container.start()
            url = f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(PORT)}/0"
        yield url
    finally:
        with _leaks_ignored():
            container.stop()


def _is_available(image: str) -> bool:
    """Return whether the image is present or can be pulled."""
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
def _leaks_ignored() -> Iterator[None]:
    """Collect the sockets that Docker's client leaks, without a ResourceWarning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()
