"""What one submit made: its counters and its stream of results."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from redis.asyncio import Redis

from jobs import keys
from jobs.errors import UnknownBatchError
from jobs.model import Result, decode_result

READ_COUNT = 500
READ_BLOCK_MS = 500
POLL_S = 0.2


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is. `sealed` once all of it is submitted; `bytes` is what was stored."""

    total: int = 0
    sealed: bool = False
    stored: int = 0
    unchanged: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes: int = 0

    @property
    def done(self) -> int:
        """How many fetches have their result."""
        return self.stored + self.unchanged + self.failed + self.cancelled

    @property
    def ended(self) -> bool:
        """Whether every fetch has its result and no more will be submitted."""
        return self.sealed and self.done >= self.total


class Batch:
    """A handle on a batch; any process that knows the id can make one (`Fleet.batch`)."""

    def __init__(self, redis: Redis, batch_id: str) -> None:
        self.id = batch_id
        self._redis = redis

    def __repr__(self) -> str:
        return f"<Batch {self.id}>"

    async def counts(self) -> Counts:
        """How far the batch is; raises UnknownBatchError."""
        fields: dict[bytes, bytes] = await self._redis.hgetall(keys.batch(self.id))  # type: ignore[misc]
        if not fields:
            raise UnknownBatchError(
                f"batch {self.id} is not in Redis: results expire {keys.RESULTS_TTL_MS // 3_600_000} h"
                " after the last one"
            )
        return msgspec.convert({k.decode(): v.decode() for k, v in fields.items()}, Counts, strict=False)

    async def wait(self) -> Counts:
        """Return when every fetch has its result."""
        while not (counts := await self.counts()).ended:  # noqa: ASYNC110 it happens in other processes
            await asyncio.sleep(POLL_S)
        return counts

    async def results(self, *, trim: bool = False) -> AsyncIterator[Result]:
        """Every result of the batch from the first on, each once, until all are there.

        trim: delete what has been yielded, so that a batch of millions does not live in Redis.
        """
        position, ended = "0", False
        while True:
            rows = await self._read(position, wait=not ended)
            for row_id, fields in rows:
                yield decode_result(fields[b"r"])
                position = row_id.decode()
            if trim and rows:
                await self._forget(position)
            if ended and not rows:
                return
            ended = ended or (len(rows) < READ_COUNT and (await self.counts()).ended)

    async def _read(self, after: str, *, wait: bool) -> list[tuple[bytes, dict[bytes, bytes]]]:
        block = READ_BLOCK_MS if wait else None
        reply: list[Any] = await self._redis.xread({keys.results(self.id): after}, READ_COUNT, block)
        return reply[0][1] if reply else []

    async def _forget(self, position: str) -> None:
        ms, _, sequence = position.partition("-")
        await self._redis.xtrim(keys.results(self.id), minid=f"{ms}-{int(sequence) + 1}", approximate=False)
