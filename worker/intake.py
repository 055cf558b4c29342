"""Empties the inbox: one worker of the fleet at a time, many messages at once, none lost by a crash.

Messages are moved to where only that worker takes them from, enqueued under a batch id that is kept
with them, and dropped once they are in. Whoever finds them there after a crash enqueues them again under
the same id, which changes nothing for those that were in.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from jobs import keys, scripts
from jobs.connect import connect
from jobs.doors import MAX_DOOR_BYTES, Order, read_message
from jobs.errors import BatchError, FullError, InvalidFetchError
from jobs.model import Fetch
from jobs.submit import Submitter, new_batch_id
from worker import lines, redact
from worker.log import Event

MESSAGES_AT_ONCE = 500
BYTES_AT_ONCE = 4 << 20
LEASE_MS = 5_000
WAIT_S = 1
"""How long the inbox is listened at before its lease is renewed."""
OTHERS_S = 1.0
"""How often a worker looks whether the one that empties the inbox is still there."""
FULL_PAUSE_S = 0.5
TROUBLE_PAUSE_S = 0.5


class Refused(NamedTuple):
    """A message that is no order, and why."""

    note: str
    message: bytes


class Intake:
    """One for a worker process; `run` is its task."""

    def __init__(self, redis_url: str, worker_id: str, submitter: Submitter, log: Any) -> None:
        self._redis: Redis = connect(redis_url)
        self._token = f"{worker_id} {new_batch_id()}"
        self._submitter = submitter
        self._log = log

    async def run(self) -> None:
        """Empty the inbox whenever something is in it and nobody else does, until cancelled."""
        while True:
            try:
                await self._once()
            except (RedisError, OSError) as error:
                lines.redis_trouble(error, self._log)
                await asyncio.sleep(TROUBLE_PAUSE_S)

    async def leave(self) -> None:
        """Let another worker have the inbox at once."""
        with contextlib.suppress(RedisError, OSError):
            await scripts.run(self._redis, "leave_inbox", [keys.INTAKE], [self._token])

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    async def _once(self) -> None:
        match await self._take():
            case [b"taken", batch_id, *messages]:
                await self._enqueue(batch_id.decode(), messages)
            case [b"empty"]:
                # From the head to the head: nothing moves, but it returns as soon as a message is there.
                await self._redis.blmove(keys.INBOX, keys.INBOX, WAIT_S, "LEFT", "LEFT")
            case _:
                await asyncio.sleep(OTHERS_S)

    async def _take(self) -> Any:
        names = [keys.INBOX, keys.TAKEN, keys.INTAKE, keys.DEAD]
        args: list[scripts.Arg] = [self._token, LEASE_MS, keys.INTAKE_TTL_MS]
        args += [MESSAGES_AT_ONCE, BYTES_AT_ONCE, MAX_DOOR_BYTES, new_batch_id(), keys.DEAD_LENGTH]
        return await scripts.run(self._redis, "take_in", names, args)

    async def _enqueue(self, batch_id: str, messages: Sequence[bytes]) -> None:
        """Under one batch what came without one; a batch of its own for what came with its id."""
        orders, refused = read_all(messages)
        loose = [fetch for order, _ in orders if order.batch is None for fetch in order.fetches]
        try:
            if loose:
                await self._submitter.submit(loose, batch_id=batch_id)
            for order, message in orders:
                if order.batch is not None:
                    refused += await self._enqueue_named(order.fetches, order.batch, message)
        except FullError as error:
            self._log.warning(Event.INTAKE_FULL, error=str(error))
            await asyncio.sleep(FULL_PAUSE_S)
            return
        await self._took(batch_id, len(messages), refused)

    async def _enqueue_named(self, fetches: list[Fetch], batch_id: str, message: bytes) -> list[Refused]:
        try:
            await self._submitter.submit(fetches, batch_id=batch_id)
        except BatchError as error:
            return [Refused(str(error), message)]
        return []

    async def _took(self, batch_id: str, count: int, refused: list[Refused]) -> None:
        args: list[scripts.Arg] = [self._token, keys.DEAD_LENGTH]
        for item in refused:
            args += [item.note, item.message]
        if not await scripts.run(self._redis, "took_in", [keys.TAKEN, keys.INTAKE, keys.DEAD], args):
            return  # we were away for too long: another worker has them, and says so
        self._log.info(Event.INTAKE_TAKEN, batch=batch_id, messages=count, refused=len(refused))
        for item in refused:
            self._log.warning(Event.INTAKE_REFUSED, door="inbox", error=redact.text(item.note))


def read_all(messages: Sequence[bytes]) -> tuple[list[tuple[Order, bytes]], list[Refused]]:
    """The orders, each with the message that it was, and the messages that are none."""
    orders: list[tuple[Order, bytes]] = []
    refused: list[Refused] = []
    for message in messages:
        try:
            orders.append((read_message(message), message))
        except InvalidFetchError as error:
            refused.append(Refused(str(error), message))
    return orders, refused
