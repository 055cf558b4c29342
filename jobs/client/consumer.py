"""`Consumer`: hands the results of all batches to a function, as one consumer of a Redis consumer group."""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import READ_BLOCK_MS, Row
from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.contract.result import Result, decode_result
from fetchfleet.jobs.contract.webhooks import is_webhook
from fetchfleet.jobs.patience import RedisCaller

Handler = Callable[[Result], Awaitable[object]]
OnFailure = Callable[[Result, Exception], Awaitable[object]]

CLAIM_EVERY_S = 5.0
"""The maximum time between two searches for results of consumers that have died."""
RETRY_PAUSE_S = 1.0
"""The pause after the first failure of a handler. It doubles after each."""
MAX_GROUP_CHARS = 200

_log = logging.getLogger("fetchfleet")


class Consumer:
    """One consumer of a group. `run` hands over results until it is cancelled."""

    def __init__(
        self,
        redis: Redis,
        call: RedisCaller,
        handler: Handler,
        group: str,
        *,
        concurrency: int,
        attempts: int,
        claim_after_s: float,
        on_failure: OnFailure | None,
    ) -> None:
        """Check the arguments, which are those of `Fleet.each`. Raises ValueError."""
        if not 0 < len(group) <= MAX_GROUP_CHARS:
            raise ValueError(f"group: must have 1 to {MAX_GROUP_CHARS} characters, got {len(group)}")
        for name, value in (("concurrency", concurrency), ("attempts", attempts)):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if claim_after_s <= 0:
            raise ValueError(f"claim_after_s: must be more than 0, got {claim_after_s}")
        self._redis = redis
        self._call = call
        self._handler = handler
        self._group = group
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._concurrency = concurrency
        self._attempts = attempts
        self._claim_after_s = claim_after_s
        self._on_failure = on_failure
        self._running: dict[bytes, asyncio.Task[None]] = {}
        """The results that are being handled, by position."""
        self._claim_cursor = b"0-0"
        self._claim_at_s = 0.0
        """The monotonic time of the next search."""

    async def run(self) -> None:
        """Hand over results until cancelled. Then handlers are cancelled, and their results stay pending.

        Raises FleetUnreachableError, or the error of `on_failure`.
        """
        await self._create_group()
        try:
            while True:
                for position, fields in await self._next(self._concurrency - len(self._running)):
                    work = self._handle(position, fields)
                    self._running[position] = asyncio.create_task(work, name="each")
                if len(self._running) >= self._concurrency:
                    await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)
                self._remove_ended()
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _remove_ended(self) -> None:
        """Forget the results that were handled. Raises the error of a task that failed."""
        for position in [position for position, task in self._running.items() if task.done()]:
            self._running.pop(position).result()

    async def _next(self, count: int) -> list[Row]:
        """Return up to `count` results to handle; an empty list if none arrives in half a second."""
        if time.monotonic() >= self._claim_at_s and (rows := await self._claim(count)):
            return rows
        new: dict[Any, Any] = {keys.ALL_RESULTS: ">"}
        try:
            reply = await self._call(
                self._redis.xreadgroup, self._group, self._name, new, count, READ_BLOCK_MS
            )
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            await self._create_group()  # Redis has lost its data
            return []
        return reply[0][1] if reply else []

    async def _claim(self, count: int) -> list[Row]:
        """Take over results that a consumer has held for claim_after_s, and return those not in progress."""
        min_idle_ms = int(self._claim_after_s * 1000)
        try:
            self._claim_cursor, rows, *_ = await self._call(
                self._redis.xautoclaim,
                *(keys.ALL_RESULTS, self._group, self._name, min_idle_ms, self._claim_cursor, count),
            )
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            return []
        if self._claim_cursor == b"0-0":
            self._claim_at_s = time.monotonic() + min(CLAIM_EVERY_S, self._claim_after_s / 2)
        return [row for row in rows if row[0] not in self._running]

    async def _handle(self, position: bytes, fields: dict[bytes, bytes]) -> None:
        """Hand a result over, and acknowledge it unless the handler has failed."""
        result = _result_of(fields)
        if result is None or await self._is_handled(result):
            await self._call(self._redis.xack, keys.ALL_RESULTS, self._group, position)

    async def _is_handled(self, result: Result) -> bool:
        """Return whether the handler, or on_failure, has returned."""
        for attempt in range(1, self._attempts + 1):
            try:
                await _called(self._handler, result)
            except Exception as error:  # noqa: BLE001 the user's function
                if attempt == self._attempts:
                    return await self._has_failed(result, error)
                await asyncio.sleep(RETRY_PAUSE_S * 2 ** (attempt - 1))
            else:
                return True
        raise AssertionError(self._attempts)

    async def _has_failed(self, result: Result, error: Exception) -> bool:
        if self._on_failure is not None:
            await _called(self._on_failure, result, error)
            return True
        _log.error(
            "the handler of group %s failed %d times for the result of %s; it is called again in %g s",
            *(self._group, self._attempts, result.id, self._claim_after_s),
            exc_info=error,
        )
        return False

    async def _create_group(self) -> None:
        """Create the group, from the oldest result on, unless it exists."""
        try:
            await self._call(self._redis.xgroup_create, keys.ALL_RESULTS, self._group, "0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


async def _called(function: Callable[..., Awaitable[object]], *args: object) -> None:
    """Call a user's function. A cancellation that it causes itself is an error as any other."""
    try:
        await function(*args)
    except asyncio.CancelledError as cancelled:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("the function waited for a task or a future that was cancelled") from cancelled


def _result_of(fields: dict[bytes, bytes]) -> Result | None:
    """Return the result of a stream record; None for that of a webhook, or one of another program."""
    try:
        result = decode_result(fields[b"r"])
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if is_webhook(batch_of(result.id)) else result
