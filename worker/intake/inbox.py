"""Empties the inbox: one worker of the fleet at a time, many messages at once, none lost by a crash.

A worker moves messages to a list that only it reads, enqueues them under a batch id kept with them, and then
drops them. After a crash the next worker enqueues them again under the same id, which changes nothing for
those already enqueued.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter, new_batch_id
from fetchfleet.jobs.contract.messages import MAX_DOOR_BYTES, Order, read_message
from fetchfleet.jobs.errors import BatchError, FullError, InvalidFetchError, NewerMessageError
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.jobs.scripts import inbox as scripts
from fetchfleet.jobs.scripts.inbox import InboxMessages, InboxReturn, NothingTaken, RefusedMessage
from fetchfleet.worker.intake.version_skew import UnsupportedVersionLog
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

MESSAGES_AT_ONCE = 500
BYTES_AT_ONCE = 4 << 20
RENEWALS_A_LEASE = 3
WAIT_S = 1
"""How long to block on an empty inbox before its lease is renewed."""
UNSUPPORTED_IN_A_ROW = 10_000
"""How many messages of newer versions to look through before giving the inbox to another worker."""
MAX_NOTE_CHARS = 1000
KEPT_BYTES = 64 << 10
"""How much of a refused message its dead letter keeps."""


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


class InboxOrder(NamedTuple):
    """A message that was read, and the order in it."""

    order: Order
    message: bytes


class ReadMessages(NamedTuple):
    """Messages sorted by what becomes of them."""

    orders: list[InboxOrder]
    refused: list[RefusedMessage]
    unsupported: list[bytes]
    """Messages of a version that only newer workers read."""


class InboxLease:
    """The hold of one worker on the inbox."""

    def __init__(self, redis: Redis, token: str, lease_ms: int) -> None:
        self._redis = redis
        self._token = token
        self._lease_ms = lease_ms

    async def renew(self) -> bool:
        """Renew the lease; returns whether the inbox is still this worker's."""
        return await scripts.inbox_renew(self._redis, token=self._token, lease_ms=self._lease_ms)

    async def keep(self) -> None:
        """Renew the lease until the inbox is another worker's."""
        ours = True
        while ours:
            await asyncio.sleep(self._lease_ms / 1000 / RENEWALS_A_LEASE)
            with contextlib.suppress(RedisError, OSError):
                ours = await self.renew()

    async def end(self) -> None:
        """Let another worker have the inbox at once."""
        with contextlib.suppress(RedisError, OSError):
            await scripts.inbox_renew(self._redis, token=self._token, lease_ms=0)


class InboxReader:
    """One for a worker process; `run` is its task."""

    def __init__(
        self,
        redis_url: str,
        worker_id: str,
        submitter: Submitter,
        report_redis_error: Callable[[BaseException], None],
        log: FilteringBoundLogger,
        timings: InboxTimings | None = None,
        *,
        open_door: asyncio.Event | None = None,
    ) -> None:
        """open_door: set while this worker may take messages; None for always."""
        self._redis: Redis = connect(redis_url)
        self._token = f"{worker_id} {new_batch_id()}"
        self._timings = timings or InboxTimings()
        self.lease = InboxLease(self._redis, self._token, self._timings.lease_ms)
        self._open_door = open_door
        self._submitter = submitter
        self._report_redis_error = report_redis_error
        self._log = log
        self._repeats = Repeats()
        self._unsupported_log = UnsupportedVersionLog("inbox", log)
        self._unsupported_in_a_row = 0
        self._gives_up = False
        """Whether to leave the inbox to a newer worker, after the messages at hand."""

    async def run(self) -> None:
        """Empty the inbox whenever no other worker does, until cancelled."""
        while True:
            try:
                await self.step()
            except OutOfMemoryError as error:
                await self._wait_for_space(error)
            except Exception as error:  # noqa: BLE001 no other worker takes over while this one lives
                self._report_redis_error(error)
                await asyncio.sleep(self._timings.failed_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    async def step(self) -> None:
        """Take messages and enqueue them; wait if there are none or another worker has the inbox."""
        if self._open_door is not None and not self._open_door.is_set():
            await self.lease.end()
            await self._open_door.wait()
        match await self.take():
            case InboxMessages(batch_id, messages):
                await self.enqueue(batch_id, messages)
                if self._gives_up:
                    self._gives_up, self._unsupported_in_a_row = False, 0
                    await self.lease.end()
                    await asyncio.sleep(self._timings.unsupported_s)
            case NothingTaken.EMPTY:
                self._full = False
                self._unsupported_in_a_row = 0
                # From the head to the head: nothing moves, but it returns as soon as a message is there.
                await self._redis.blmove(keys.INBOX, keys.INBOX, WAIT_S, "LEFT", "LEFT")
            case NothingTaken.OTHER_WORKER:
                await asyncio.sleep(self._timings.other_owner_s)

    async def take(self) -> InboxMessages | NothingTaken:
        """Take the messages to enqueue next; after a crash, those that were taken before it."""
        return await scripts.inbox_take(
            self._redis,
            token=self._token,
            lease_ms=self._timings.lease_ms,
            max_messages=MESSAGES_AT_ONCE,
            max_bytes=BYTES_AT_ONCE,
            max_message_bytes=MAX_DOOR_BYTES,
            new_batch_id=new_batch_id(),
        )

    async def enqueue(self, batch_id: str, messages: Sequence[bytes]) -> None:
        """Enqueue the messages and drop them, while the inbox stays this worker's."""
        holding = asyncio.create_task(self.lease.keep(), name="hold the inbox")
        try:
            # In a thread: a message may hold 100,000 fetches, and lanes need the loop for their leases.
            orders, refused, unsupported = read = await asyncio.to_thread(read_all, messages)
            if unsupported and not await self.return_unsupported(batch_id, read):
                return
            while not holding.done():
                try:
                    refused += await self.submit(batch_id, orders)
                except FullError as error:
                    await self._wait_for_space(error)
                else:
                    await self.acknowledge(batch_id, len(messages) - len(unsupported), refused)
                    return
        finally:
            await aio.end(holding)

    async def return_unsupported(self, batch_id: str, read: ReadMessages) -> bool:
        """Return unsupported messages to the inbox; False if the batch must not be enqueued now.

        This comes before anything is enqueued. So the batch always has the same messages, whichever worker
        goes on after a crash.
        """
        self._unsupported_log.write(f"{len(read.unsupported)} messages are for a newer worker")
        reply = await scripts.inbox_return(
            self._redis, token=self._token, batch_id=batch_id, messages=read.unsupported
        )
        match reply:
            case int(waiting):
                only = not read.orders and not read.refused
                self._unsupported_in_a_row = self._unsupported_in_a_row + len(read.unsupported) if only else 0
                self._gives_up = only and self._unsupported_in_a_row >= min(waiting, UNSUPPORTED_IN_A_ROW)
                return True
            case InboxReturn.BATCH_BEGUN:
                self._gives_up = True
        return False

    async def submit(self, batch_id: str, orders: Sequence[InboxOrder]) -> list[RefusedMessage]:
        """Submit orders that name a batch as that batch, and all others as the given one.

        Returns the messages that their batch refuses: it has other fetches, or was cancelled.
        """
        refused = []
        unnamed = [item for item in orders if item.order.batch is None]
        named = [(item.order.batch, [item]) for item in orders if item.order.batch is not None]
        for batch, items in [(batch_id, unnamed), *named] if unnamed else named:
            fetches = [fetch for item in items for fetch in item.order.fetches]
            try:
                await self._submitter.submit(fetches, batch_id=batch)
            except BatchError as error:
                refused += [RefusedMessage(str(error), item.message) for item in items]
        return refused

    async def acknowledge(self, batch_id: str, count: int, refused: Sequence[RefusedMessage]) -> None:
        """Drop the messages at hand, which are enqueued or refused, and log them."""
        kept = [RefusedMessage(item.note, item.message[:KEPT_BYTES]) for item in refused]
        if not await scripts.inbox_ack(self._redis, token=self._token, refused=kept):
            return  # another worker has the messages by now, and logs them
        if count:
            self._log.info(Event.INTAKE_TAKEN, batch=batch_id, messages=count, refused=len(refused))
        for item in refused:
            self._log.warning(Event.INTAKE_REFUSED, door="inbox", error=redact.text(item.note))

    async def _wait_for_space(self, error: Exception) -> None:
        """Log that the backlog or Redis's memory is full, once a minute while that lasts, and wait."""
        left_out = self._repeats.admit(type(error).__name__, mono_s())
        if left_out is not None:
            self._log.warning(Event.INTAKE_FULL, error=redact.text(error), **suppressed(left_out))
        await asyncio.sleep(self._timings.full_s)


def read_all(messages: Sequence[bytes]) -> ReadMessages:
    """Read messages and sort them by what becomes of them."""
    orders, refused, unsupported = read = ReadMessages([], [], [])
    for message in messages:
        try:
            orders.append(InboxOrder(read_message(message), message))
        except InvalidFetchError as error:
            refused.append(RefusedMessage(str(error)[:MAX_NOTE_CHARS], message))
        except NewerMessageError:
            unsupported.append(message)
    return read
