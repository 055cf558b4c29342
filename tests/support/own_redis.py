"""A persistent Redis for one test, which can stop, kill, freeze and restart it."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from redis.asyncio import Redis

from fetchfleet.worker.local.process import die_with_parent
from tests.support.redis import server_binary
from tests.support.waiting import wait_until
from tools.redis_leftovers import leftovers

ALWAYS = ("--port", "0", "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction")


class OwnRedis:
    """A redis-server that the test starts and stops."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "own.sock"
        self.url = f"unix://{self.socket}"
        place = ("--unixsocket", str(self.socket), "--dir", str(folder))
        self._command = [server_binary(), *ALWAYS, *place, *options]
        self._log = folder / "own.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Start the server with the data on disk. more: options of this start."""
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [*self._command, *more],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 no thread of a test holds a lock
            )

    def kill(self) -> None:
        """Kill the server with SIGKILL; the kernel writes acknowledged writes to disk."""
        self._end(signal.SIGKILL)

    def shut_down(self) -> None:
        """Stop the server with SIGTERM."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Freeze the server: it does not respond, and its connections stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the frozen server."""
        self._signal(signal.SIGCONT)

    async def responds(self) -> bool:
        """Return whether the server responds and has loaded its data."""
        async with Redis.from_url(self.url) as client:
            try:
                return bool(await client.ping())
            except Exception:  # noqa: BLE001 - any error means no response
                return False

    async def wait_until_clean(self) -> None:
        """Wait until running workers have removed every key that an idle fleet does not have."""
        await wait_until(lambda: not leftovers(self.url), "nothing to be left in Redis", every_s=0.1)

    def _signal(self, number: int) -> None:
        assert self._child is not None
        self._child.send_signal(number)

    def _end(self, number: int) -> None:
        if self._child is not None:
            self._child.send_signal(number)
            self._child.wait()
            self._child = None


@contextmanager
def own_redis(*options: str) -> Iterator[OwnRedis]:
    """Yield a running server; kill it at the end of the block."""
    with TemporaryDirectory(prefix="ff-") as folder:
        server = OwnRedis(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
