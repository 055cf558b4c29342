"""A Redis of a test's own that keeps what it was told: to be stopped, killed, frozen, loaded slowly."""

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
    """Started and stopped by the test; `own_redis` sees to its end."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "own.sock"
        self.url = f"unix://{self.socket}"
        place = ("--unixsocket", str(self.socket), "--dir", str(folder))
        self._command = [server_binary(), *ALWAYS, *place, *options]
        self._log = folder / "own.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Start it, on whatever it kept; more: options for this time."""
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [*self._command, *more],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 no threads hold locks here
            )

    def stop(self) -> None:
        """Kill it; what it has answered is kept."""
        self._end(signal.SIGKILL)

    def shut_down(self) -> None:
        """End it as an operator does."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """It answers nobody, and hangs up on nobody."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        self._signal(signal.SIGCONT)

    async def answers(self) -> bool:
        """Whether it is there and has loaded what it kept."""
        async with Redis.from_url(self.url) as client:
            try:
                return bool(await client.ping())
            except Exception:  # noqa: BLE001 - whatever it is, it is no answer
                return False

    async def clean(self) -> None:
        """Return once it holds nothing against jobs/keys.py; the workers must still be there."""
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
    """Such a Redis, started, for the length of a block."""
    with TemporaryDirectory(prefix="ff-") as folder:
        server = OwnRedis(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.stop()
