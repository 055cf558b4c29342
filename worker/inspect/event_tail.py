"""The live log lines of a fleet, as its workers publish them while this process watches.

Another program may publish to the channel too. Only lines that a worker could have written are passed on.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.safe_text import safe_json
from fetchfleet.jobs.patience import RedisCaller, call_once
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.policy.names import covers
from fetchfleet.worker.redis_support.event_tap import LINES_AT_ONCE, MAX_LINE_BYTES, SKIPPED
from fetchfleet.worker.util.clock import mono_s

WAIT_S = 1.0
"""The time that a read waits for a message; less than the interval at which the watch is renewed."""

LEVELS = ("debug", "info", "warning", "error", "critical")
"""The levels of log lines, the lowest first."""

MAX_MESSAGE_BYTES = LINES_AT_ONCE * (MAX_LINE_BYTES + 1)

_MAX_TEXT_CHARS = 300
"""The maximum length of a worker name, timestamp, level or event."""
_EVENTS = frozenset({*Event, SKIPPED})
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class EventFilter(NamedTuple):
    """Selects log lines. A line must match every part that is given."""

    event: str | None = None
    """An event or a pattern, such as `lane.*`."""
    host: str | None = None
    """A lane, or a pattern such as `*.cdn.net`."""
    level: str | None = None
    """The lowest level, one of LEVELS."""

    def admits(self, fields: Mapping[str, Any]) -> bool:
        """Return whether a line with these fields is selected. Lines that count omitted ones always are."""
        if fields["event"] == SKIPPED:
            return True
        if self.event is not None and not fnmatchcase(fields["event"], self.event):
            return False
        if self.level is not None and LEVELS.index(fields["level"]) < LEVELS.index(self.level):
            return False
        lane = fields.get("lane")
        return self.host is None or (isinstance(lane, str) and (lane == self.host or covers(self.host, lane)))


def lines_in(message: object) -> Iterator[bytes]:
    """Yield the lines of a message that are log lines, each as JSON that is safe for a terminal. Pure."""
    if not isinstance(message, bytes) or len(message) > MAX_MESSAGE_BYTES:
        return
    for text in message.split(b"\n")[:LINES_AT_ONCE]:
        if len(text) <= MAX_LINE_BYTES and (fields := fields_of(text)) is not None:
            yield safe_json(msgspec.json.encode(fields))


def fields_of(text: bytes) -> dict[str, Any] | None:
    """Return the fields of a log line; None if no worker of a known version writes such a line. Pure."""
    try:
        fields = _decode(text)
        msgspec.json.encode(fields)  # refuses numbers beyond 64 bits
    except (ValueError, RecursionError, OverflowError):  # msgspec's errors are ValueErrors
        return None
    texts = [fields.get("event"), fields.get("level"), fields.get("timestamp"), fields.get("worker", "")]
    if not all(isinstance(text, str) and len(text) <= _MAX_TEXT_CHARS for text in texts):
        return None
    return fields if texts[0] in _EVENTS and texts[1] in LEVELS else None


class _EventTail:
    """A subscription to the log lines. It opens with the first read, and again after an error."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pubsub: Any = None
        self._renewal_s = 0.0
        """The time at which the watch must be renewed."""

    async def read(self) -> list[bytes]:
        """Return the next lines; none if no message came in time. Safe to repeat after an error."""
        try:
            if self._pubsub is None:
                self._pubsub, self._renewal_s = self._redis.pubsub(ignore_subscribe_messages=True), 0.0
                await self._pubsub.subscribe(keys.EVENTS)
            if mono_s() >= self._renewal_s:
                await self._redis.set(keys.WATCHED, 1, px=keys.WATCHED_TTL_MS)
                self._renewal_s = mono_s() + keys.WATCH_EVERY_MS / 1000
            message = await self._pubsub.get_message(timeout=WAIT_S)
            await asyncio.sleep(0)  # a message that was received before is returned without a pause
        except BaseException:
            await self.aclose()
            raise
        return list(lines_in(message["data"])) if message else []

    async def aclose(self) -> None:
        """Close the subscription. The workers notice when their key has expired."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            await pubsub.aclose()


async def events(redis: Redis, call: RedisCaller = call_once) -> AsyncGenerator[bytes]:
    """Yield log lines of the fleet as they are written, each as one JSON object. Close the iterator.

    Workers publish them within a second after the first read. call: makes each read from Redis.
    """
    async with aclosing(_EventTail(redis)) as tail:
        while True:
            for line in await call(tail.read):
                yield line
