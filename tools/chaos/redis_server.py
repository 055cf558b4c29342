"""A Redis that acknowledges only writes synced to disk, and that can be stopped, killed and frozen."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import redis.asyncio
from redis.exceptions import RedisError

from fetchfleet.worker.local.embedded_redis import find_server
from fetchfleet.worker.local.process import die_with_parent

READY_WITHIN_S = 30.0
EXITS_WITHIN_S = 20.0
PING_EVERY_S = 0.05


class Server:
    """A redis-server with its append-only file in `folder`; its `url` does not change with a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator["Server"]:
        """Yield a running server."""
        server = cls(folder)
        await server.start()
        try:
            yield server
        finally:
            await server.end(signal.SIGKILL)

    async def start(self) -> None:
        """Start from the data on disk; return when the server responds."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.folder / "redis.log"),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(  # noqa: ASYNC220
            [find_server(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 the caller has no threads that hold locks
        )
        async with asyncio.timeout(READY_WITHIN_S):
            while not await self._responds():  # noqa: ASYNC110 another process changes it
                await asyncio.sleep(PING_EVERY_S)

    async def end(self, number: signal.Signals) -> None:
        """Send SIGTERM or SIGKILL; return when the process has exited."""
        process = self._process
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(EXITS_WITHIN_S):
            while process.poll() is None:  # noqa: ASYNC110 another process changes it
                await asyncio.sleep(PING_EVERY_S)

    def send(self, number: signal.Signals) -> None:
        """Send SIGSTOP or SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    async def _responds(self) -> bool:
        async with redis.asyncio.Redis.from_url(self.url) as client:
            with suppress(RedisError, OSError):
                return bool(await client.ping())
        return False
