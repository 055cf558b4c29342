"""Empties the inbox: one worker of the fleet at a time, many messages at once, none lost by a crash.

Messages are moved to where only that worker takes them from, enqueued under a batch id that is kept
with them, and dropped once they are in. Whoever finds them there after a crash enqueues them again under
the same id, which changes nothing for those that were in.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter, new_batch_id
from fetchfleet.jobs.contract.messages import MAX_DOOR_BYTES, Order, read_message
from fetchfleet.jobs.errors import BatchError, FullError, InvalidFetchError, NewerMessageError
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.jobs.scripts import inbox as scripts
from fetchfleet.jobs.scripts.inbox import InboxMessages, InboxReturn, NothingTaken, RefusedMessage
from fetchfleet.worker.intake.version_skew import Newer
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.util import aio

MESSAGES_AT_ONCE = 500
BYTES_AT_ONCE = 4 << 20
RENEWALS_A_LEASE = 3
WAIT_S = 1
"""How long to block on an empty inbox before its lease is renewed."""
NEWER_IN_A_ROW = 10_000
"""So many messages for newer workers are looked through at a time for others behind them."""
MAX_NOTE_CHARS = 1000
KEPT_BYTES = 64 << 10
"""So much of a refused message is kept: enough to know it by, and Redis is not its archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxTimings:
    """How long the inbox is held, and how long to wait before looking again."""

    lease_ms: int = 5_000
    other_owner_s: float = 1.0
    """While another worker holds the inbox."""
    full_s: float = 0.5
    """While the backlog limit or Redis's memory is reached."""
    failed_s: float = 0.5
    """After a Redis error."""
    unsupported_s: float = 3.0
    """After giving the inbox up because only newer workers can read what is in it."""


class Asked(NamedTuple):
    """A message that is an order."""

    order: Order
    message: bytes


class Read(NamedTuple):
    """Messages that were read; newer: those that a newer worker must read."""

    asked: list[Asked]
    refused: list[RefusedMessage]
    newer: list[bytes]


class Intake:
    """One for a worker process; `run` is its task."""

    def __init__(
        self,
        redis_url: str,
        worker_id: str,
        submitter: Submitter,
        on_trouble: Callable[[BaseException], None],
        log: Any,
        timings: InboxTimings | None = None,
    ) -> None:
        self._redis: Redis = connect(redis_url)
        self._token = f"{worker_id} {new_batch_id()}"
        self._submitter = submitter
        self._trouble = on_trouble
        self._log = log
        self._timings = timings or InboxTimings()
        self._full = False
        self._newer = Newer("inbox", log)
        self._newer_in_a_row = 0
        self._makes_way = False

    async def run(self) -> None:
        """Empty the inbox whenever something is in it and nobody else does, until cancelled."""
        while True:
            try:
                await self._once()
            except OutOfMemoryError as error:
                await self._wait_for_room(error)
            except Exception as error:  # noqa: BLE001 whatever is wrong, nobody else would take up the inbox
                self._trouble(error)
                await asyncio.sleep(self._timings.failed_s)

    async def leave(self) -> None:
        """Let another worker have the inbox at once."""
        with contextlib.suppress(RedisError, OSError):
            await self._hold(0)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    async def _once(self) -> None:
        match await self._take():
            case InboxMessages(batch_id, messages):
                await self._enqueue(batch_id, messages)
                if self._makes_way:
                    await self._make_way()
            case NothingTaken.EMPTY:
                self._full = False
                self._newer_in_a_row = 0
                # From the head to the head: nothing moves, but it returns as soon as a message is there.
                await self._redis.blmove(keys.INBOX, keys.INBOX, WAIT_S, "LEFT", "LEFT")
            case NothingTaken.OTHER_WORKER:
                await asyncio.sleep(self._timings.other_owner_s)

    async def _take(self) -> InboxMessages | NothingTaken:
        return await scripts.inbox_take(
            self._redis,
            token=self._token,
            lease_ms=self._timings.lease_ms,
            max_messages=MESSAGES_AT_ONCE,
            max_bytes=BYTES_AT_ONCE,
            max_message_bytes=MAX_DOOR_BYTES,
            new_batch_id=new_batch_id(),
        )

    async def _hold(self, lease_ms: int) -> bool:
        """Keep the inbox for so long; whether it is still ours."""
        return await scripts.inbox_renew(self._redis, token=self._token, lease_ms=lease_ms)

    async def _keep_holding(self) -> None:
        """Renew the lease until the inbox is another worker's."""
        ours = True
        while ours:
            await asyncio.sleep(self._timings.lease_ms / 1000 / RENEWALS_A_LEASE)
            with contextlib.suppress(RedisError, OSError):
                ours = await self._hold(self._timings.lease_ms)

    async def _enqueue(self, batch_id: str, messages: Sequence[bytes]) -> None:
        """The inbox stays ours however long that takes; if it does not, another worker has the messages."""
        holding = asyncio.create_task(self._keep_holding(), name="hold the inbox")
        try:
            # In a thread: a message may hold fetches by the hundred thousand, and lanes want their leases.
            asked, refused, newer = read = await asyncio.to_thread(read_all, messages)
            if newer and not await self._hand_back(batch_id, read):
                return
            while not holding.done():
                try:
                    refused += await self._submit(batch_id, asked)
                except FullError as error:
                    await self._wait_for_room(error)
                else:
                    await self._took(batch_id, len(messages) - len(newer), refused)
                    return
        finally:
            await aio.end(holding)

    async def _hand_back(self, batch_id: str, read: Read) -> bool:
        """Back to the inbox with what is for newer workers, before anything is enqueued; whether it went.

        So the batch is always made of the same messages, whichever worker goes on after a crash.
        """
        self._newer.tell(f"{len(read.newer)} messages are for a newer worker")
        reply = await scripts.inbox_return(
            self._redis, token=self._token, batch_id=batch_id, messages=read.newer
        )
        match reply:
            case int(waiting):
                nothing_else = not read.asked and not read.refused
                self._newer_in_a_row = self._newer_in_a_row + len(read.newer) if nothing_else else 0
                self._makes_way = nothing_else and self._newer_in_a_row >= min(waiting, NEWER_IN_A_ROW)
                return True
            case InboxReturn.BATCH_BEGUN:
                self._makes_way = True
        return False

    async def _make_way(self) -> None:
        """A newer worker may have the inbox, if there is one."""
        self._makes_way, self._newer_in_a_row = False, 0
        await self.leave()
        await asyncio.sleep(self._timings.unsupported_s)

    async def _submit(self, batch_id: str, asked: Sequence[Asked]) -> list[RefusedMessage]:
        """Under one batch what came without one; a batch of its own for what came with its id."""
        loose = [item for item in asked if item.order.batch is None]
        refused = await self._submit_as(batch_id, loose)
        for item in asked:
            if item.order.batch is not None:
                refused += await self._submit_as(item.order.batch, [item])
        return refused

    async def _submit_as(self, batch_id: str, asked: Sequence[Asked]) -> list[RefusedMessage]:
        """What cannot go into that batch: it holds other fetches, or was cancelled."""
        if not asked:
            return []
        fetches = [fetch for item in asked for fetch in item.order.fetches]
        try:
            await self._submitter.submit(fetches, batch_id=batch_id)
        except BatchError as error:
            return [RefusedMessage(str(error), item.message) for item in asked]
        return []

    async def _took(self, batch_id: str, count: int, refused: list[RefusedMessage]) -> None:
        kept = [RefusedMessage(item.note, item.message[:KEPT_BYTES]) for item in refused]
        if not await scripts.inbox_ack(self._redis, token=self._token, refused=kept):
            return  # we were away for too long: another worker has them, and says so
        self._full = False
        if count:
            self._log.info(Event.INTAKE_TAKEN, batch=batch_id, messages=count, refused=len(refused))
        for item in refused:
            self._log.warning(Event.INTAKE_REFUSED, door="inbox", error=redact.text(item.note))

    async def _wait_for_room(self, error: Exception) -> None:
        """Told once, however long it lasts."""
        if not self._full:
            self._log.warning(Event.INTAKE_FULL, error=redact.text(error))
        self._full = True
        await asyncio.sleep(self._timings.full_s)


def read_all(messages: Sequence[bytes]) -> Read:
    """The messages that are orders, those that are none, and those that nobody can tell here."""
    asked, refused, newer = read = Read([], [], [])
    for message in messages:
        try:
            asked.append(Asked(read_message(message), message))
        except InvalidFetchError as error:
            refused.append(RefusedMessage(str(error)[:MAX_NOTE_CHARS], message))
        except NewerMessageError:
            newer.append(message)
    return read
