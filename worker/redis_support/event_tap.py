"""The event tap: publishes the log lines of a worker to Redis while a command or page watches them."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.worker.observability import events, log
from fetchfleet.worker.redis_support.health import RedisHealth

PUBLISH_EVERY_S = 0.1
LINES_AT_ONCE = 20
"""The maximum number of lines in a message: 200 lines a second."""

QUEUE_LINES = 200
"""The maximum number of lines that wait."""
INFO_LINES = 150
"""The number of waiting lines from which lines of level info are left out, so that warnings have room."""

MAX_LINE_BYTES = 16 << 10

DENIED_PAUSE_S = 60.0
"""The pause after Redis has denied a message: the worker's user may be one of an earlier version."""

SKIPPED = "skipped"
"""The event of a line that counts the lines left out (`lines`). It is not in the log."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


class LineQueue:
    """The lines that wait to be published, with native names whatever FETCHFLEET_LOG_SCHEMA is.

    Any thread may add lines.
    """

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=QUEUE_LINES)
        self._skipped = 0

    def add(self, level: str, lines: Sequence[Mapping[str, Any] | msgspec.Struct]) -> None:
        """Add lines of a level, or count them if the queue is full. Lines of level debug are ignored."""
        if level == "debug":
            return
        room = (INFO_LINES if level == "info" else QUEUE_LINES) - len(self._lines)
        for line in lines[: max(0, room)]:
            encoded = safe_json(_encode(line))
            if len(encoded) <= MAX_LINE_BYTES:
                self._lines.append(encoded)
            else:
                self._skipped += 1
        self._skipped += max(0, len(lines) - max(0, room))

    def take(self, worker: str) -> list[bytes]:
        """Remove and return LINES_AT_ONCE lines at most. The last one may count the lines left out."""
        lines = [self._lines.popleft() for _ in range(min(len(self._lines), LINES_AT_ONCE - 1))]
        if self._skipped:
            fields = {"event": SKIPPED, "level": "warning", "lines": self._skipped, "worker": worker}
            self._skipped = 0
            lines.append(_encode({**fields, "timestamp": log.timestamp()}))
        return lines

    def clear(self) -> None:
        """Forget all lines and the count."""
        self._lines.clear()
        self._skipped = 0


class EventTap:
    """Publishes the log lines of this process while they are watched. `run` is its task.

    It delays no work: lines wait in a bounded queue, and those for which it has no place are counted.
    """

    def __init__(
        self,
        redis: Redis,
        worker: str,
        health: RedisHealth,
        log: FilteringBoundLogger,
        every_s: float = PUBLISH_EVERY_S,
    ) -> None:
        self._redis = redis
        self._worker = worker
        self._health = health
        self._log = log
        self._every_s = every_s
        self._queue = LineQueue()
        self._watched = asyncio.Event()

    def watch(self, *, watched: bool) -> None:
        """Begin or end the tap, as the heartbeat reads it from Redis."""
        if watched == self._watched.is_set():
            return
        if watched:
            log.TAPS.append(self._queue.add)
            self._watched.set()
        else:
            log.TAPS.remove(self._queue.add)
            self._watched.clear()
            self._queue.clear()

    async def run(self) -> None:
        """Publish waiting lines at intervals while they are watched, until cancelled."""
        try:
            while True:
                await self._watched.wait()
                await asyncio.sleep(self._every_s)
                if lines := self._queue.take(self._worker):
                    await self._publish(b"\n".join(lines))
        finally:
            self.watch(watched=False)

    async def _publish(self, message: bytes) -> None:
        try:
            await self._redis.publish(keys.EVENTS, message)
        except NoPermissionError as error:  # only watchers need the right
            events.redis_refusal(error, 0, self._log)
            await asyncio.sleep(DENIED_PAUSE_S)
            self._queue.clear()
        except (RedisError, OSError) as error:
            self._health.report(error)
