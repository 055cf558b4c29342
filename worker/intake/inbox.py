"""Reads the inboxes: one worker of the fleet at a time, in batches, without losing messages in a crash.

The worker moves messages to the taken list, under a batch ID stored with them. It enqueues them and then
drops them. After a crash the next worker enqueues them again under the same ID, which has no effect on those
already enqueued. The shared inbox and the named ones take turns, so a flood in one does not delay others.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import Submitter, new_batch_id
from fetchfleet.jobs.contract import messages
from fetchfleet.jobs.contract.ids import inbox_prefix, is_inbox_name
from fetchfleet.jobs.contract.messages import MAX_INPUT_BYTES
from fetchfleet.jobs.errors import FullError, KeyTypeConflictError
from fetchfleet.jobs.redis_connection import connect, text_of
from fetchfleet.jobs.scripts import inbox as scripts
from fetchfleet.jobs.scripts.inbox import InboxMessages, NoMessages
from fetchfleet.worker.intake.inbox_orders import InboxOrders, TakenMessages
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

MESSAGES_AT_ONCE = 500
"""The maximum number of messages in one turn of an inbox."""
BYTES_AT_ONCE = 4 << 20
"""The maximum size of the messages in one turn of an inbox, in bytes."""
RENEWALS_PER_LEASE = 3
WAIT_S = 1
"""The maximum time to poll empty inboxes without a renewal, and the interval to read their names."""
MAX_INBOXES = 1000
"""The maximum number of named inboxes. Each is polled every `look_s`."""
SHARED = ""
"""Stands for the name of the shared inbox."""

Repair = Callable[[Mapping[str, str]], Awaitable[Any]]
"""Takes the type that each key should have; moves other values to the dead letters and returns them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxTimings:
    """The lease of the inboxes, and the waits before they are read again."""

    lease_ms: int = 5_000
    """The time for which one worker holds the inboxes without a renewal."""
    look_s: float = 0.05
    """The interval to poll empty inboxes. A blocking command would read messages of any size."""
    other_owner_s: float = 1.0
    """The wait while another worker holds the inboxes."""
    full_s: float = 0.5
    """The wait of an inbox while the backlog limit is reached or Redis is out of memory."""
    failed_s: float = 0.5
    """The wait after an error."""
    unsupported_s: float = 3.0
    """The wait of an inbox whose taken messages only a newer worker can enqueue."""


class InboxLease:
    """The lease by which one worker holds the inboxes."""

    def __init__(self, redis: Redis, token: str, lease_ms: int) -> None:
        self._redis = redis
        self._token = token
        self._lease_ms = lease_ms

    async def renew(self) -> bool:
        """Renew the lease. Return whether this worker still holds the inboxes."""
        return await scripts.inbox_renew(self._redis, token=self._token, lease_ms=self._lease_ms)

    async def keep(self) -> None:
        """Renew the lease at intervals, until another worker holds the inboxes."""
        held = True
        while held:
            await asyncio.sleep(self._lease_ms / 1000 / RENEWALS_PER_LEASE)
            with contextlib.suppress(RedisError, OSError):
                held = await self.renew()

    async def end(self) -> None:
        """Release the inboxes, so that another worker can take over at once."""
        with contextlib.suppress(RedisError, OSError):
            await scripts.inbox_renew(self._redis, token=self._token, lease_ms=0)


class InboxTurns:
    """The order in which this worker serves the inboxes, while it holds them."""

    def __init__(self, reads: int) -> None:
        self.reads = reads
        """The newest version of a message that this worker reads."""
        self.ready: deque[str] = deque()
        """The inboxes to serve next."""
        self.waiting: dict[str, TakenMessages] = {}
        """The taken messages that wait because the backlog is full, by inbox."""
        self.recalled: set[str] = set()
        """The inboxes whose deferred messages have all been checked by this worker."""
        self._unchecked: dict[str, int] = {}
        """The number of deferred messages that have not been checked, by inbox."""
        self._not_before_s: dict[str, float] = {}
        """The time (monotonic) until which an inbox is not served, by inbox."""

    def skip_until(self, inbox: str, until_s: float) -> None:
        """Do not serve the inbox until until_s (monotonic)."""
        self._not_before_s[inbox] = until_s

    def may_serve(self, inbox: str, now_s: float) -> bool:
        """Return whether the inbox may be served now."""
        return self._not_before_s.get(inbox, 0) <= now_s

    def keys_of(self, inbox: str) -> list[str]:
        """Return the keys of the inbox. If one of them exists, the inbox has messages for this worker."""
        deferred = [] if inbox in self.recalled else [keys.newer(inbox)]
        return [keys.inbox(inbox), keys.taken(inbox), *deferred]

    def note_recall(self, inbox: str, checked: int, deferred: int) -> None:
        """Note that `checked` of the `deferred` messages were checked. Each is checked once."""
        unchecked = self._unchecked.pop(inbox, deferred) - checked
        if unchecked > 0 and checked:
            self._unchecked[inbox] = unchecked
        else:
            self.recalled.add(inbox)


class InboxReader:
    """Enqueues the messages of the inboxes. One for each worker process; `run` is its task."""

    def __init__(
        self,
        redis_url: str,
        worker_id: str,
        submitter: Submitter,
        report_redis_error: Callable[[BaseException], None],
        log: FilteringBoundLogger,
        timings: InboxTimings | None = None,
        *,
        accepts: asyncio.Event | None = None,
        reads: int | None = None,
        repair: Repair | None = None,
    ) -> None:
        """accepts: set while this worker may take messages; None for always.

        reads: the newest version of a message that this worker reads; MESSAGE_VERSION if None. repair: called
        after a key conflict; None to report the error only.
        """
        self._redis: Redis = connect(redis_url)
        self._token = f"{worker_id} {new_batch_id()}"
        self._timings = timings or InboxTimings()
        self.lease = InboxLease(self._redis, self._token, self._timings.lease_ms)
        self._accepts = accepts
        self._submitter = submitter
        self._report_redis_error = report_redis_error
        self._log = log
        self._reads = reads
        self._repair = repair
        self._repeats = Repeats()
        self._turns: InboxTurns | None = None
        """None while another worker holds the inboxes."""
        self._orders: dict[str, InboxOrders] = {}
        self._names: list[str] = []
        self._scanned_names: set[str] = set()
        self._names_cursor = 0
        self._names_read_s = float("-inf")

    async def run(self) -> None:
        """Serve the inboxes whenever no other worker holds them, until cancelled."""
        while True:
            try:
                await self.step()
            except OutOfMemoryError as error:
                self._log_full(error)
                await asyncio.sleep(self._timings.full_s)
            except Exception as error:  # noqa: BLE001 no other worker takes over while this one renews the lease
                self._report_redis_error(error)
                await asyncio.sleep(self._timings.failed_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    async def step(self) -> None:
        """Serve the next inbox, or wait if all are empty or another worker holds them."""
        accepts = self._accepts
        if accepts is not None and not accepts.is_set():
            await self.lease.end()
            self._turns = None
            await accepts.wait()
        inbox = SHARED
        try:
            inbox = await self._next_inbox()
            if accepts is None or accepts.is_set():
                await self._serve(inbox)
        except Exception as error:
            self._skip(inbox, self._timings.failed_s)
            if self._repair is None or not isinstance(error, ResponseError):
                raise
            if not await self._repair(_kinds_at_fault(error, inbox)):
                raise

    async def take(self, inbox: str = SHARED) -> InboxMessages | NoMessages:
        """Take the next messages to enqueue; after a crash, those that were taken before it."""
        return await scripts.inbox_take(
            self._redis,
            inbox,
            token=self._token,
            reads=self.reads,
            lease_ms=self._timings.lease_ms,
            max_messages=MESSAGES_AT_ONCE,
            max_bytes=BYTES_AT_ONCE,
            max_message_bytes=MAX_INPUT_BYTES,
            new_batch_id=new_batch_id(inbox_prefix(inbox) if inbox else ""),
        )

    def orders_of(self, inbox: str = SHARED) -> InboxOrders:
        """Return the InboxOrders of the inbox."""
        if inbox not in self._orders:
            self._orders[inbox] = InboxOrders(inbox, self._redis, self._token, self._submitter, self._log)
        return self._orders[inbox]

    async def enqueue(self, taken: TakenMessages, inbox: str = SHARED) -> None:
        """Enqueue the messages and drop them. Renew the lease meanwhile.

        If the backlog is full, the messages wait, and the inbox is not served for full_s.
        """
        renewal = asyncio.create_task(self.lease.keep(), name="hold the inboxes")
        orders = self.orders_of(inbox)
        try:
            await orders.submit(taken)
        except FullError as error:
            self._log_full(error)
            self._skip(inbox, self._timings.full_s)
            if self._turns is not None:
                self._turns.waiting[inbox] = taken
            await orders.write_waiting_receipts(taken, str(error))
        else:
            await orders.acknowledge(taken)
        finally:
            await aio.end(renewal)

    @property
    def reads(self) -> int:
        """The newest version of a message that this worker reads."""
        return messages.MESSAGE_VERSION if self._reads is None else self._reads

    async def _next_inbox(self) -> str:
        """Return the next inbox with messages, or the shared one if none has any for WAIT_S."""
        turns = self._turns
        if turns is None or turns.reads != self.reads:
            self._turns = None
            return SHARED  # taking from the shared inbox acquires the lease of all
        give_up_s = mono_s() + WAIT_S
        while not turns.ready:
            turns.ready.extend(await self._with_messages(turns))
            if turns.ready:
                break
            if mono_s() >= give_up_s:
                if not await self.lease.renew():
                    self._turns = None
                return SHARED
            await asyncio.sleep(self._timings.look_s)
        return turns.ready.popleft()

    async def _with_messages(self, turns: InboxTurns) -> list[str]:
        """Return the inboxes that have messages and may be served."""
        now_s = mono_s()
        if now_s - self._names_read_s >= WAIT_S:
            self._names_read_s = now_s
            await self._read_names()
        inboxes = [name for name in (SHARED, *self._names) if turns.may_serve(name, now_s)]
        asked = [name for name in inboxes if name not in turns.waiting]
        every = [key for name in asked for key in turns.keys_of(name)]
        if not every or not await self._redis.exists(*every):
            return [name for name in inboxes if name in turns.waiting]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in asked:
                pipe.exists(*turns.keys_of(name))
            exist = dict(zip(asked, await pipe.execute(), strict=True))
        return [name for name in inboxes if exist.get(name, 1)]

    async def _read_names(self) -> None:
        """Read a page of the set of inbox names. Remove members that are not valid names.

        If the set has another type, the known inboxes are still served.
        """
        try:
            cursor, page = await self._redis.sscan(keys.INBOXES, self._names_cursor, count=MAX_INBOXES)
            foreign = [member for member in page if not is_inbox_name(text_of(member))]
            if foreign:
                await self._redis.srem(keys.INBOXES, *foreign)  # type: ignore[misc]
        except ResponseError as error:
            if self._repair is None or not await self._repair({keys.INBOXES: "set"}):
                self._report_redis_error(error)
            return
        self._scanned_names |= {text_of(member) for member in page if member not in foreign}
        self._names_cursor = int(cursor)
        known = self._scanned_names if cursor == 0 else self._scanned_names | set(self._names)
        self._names = sorted(known)[:MAX_INBOXES]
        if cursor == 0:
            self._scanned_names = set()

    async def _serve(self, inbox: str) -> None:
        """Enqueue the waiting messages of the inbox, or else the next ones."""
        turns = self._turns
        if turns is not None and inbox in turns.waiting:
            if await self.lease.renew():
                await self.enqueue(turns.waiting.pop(inbox), inbox)
            else:
                self._turns = None
            return
        if turns is not None and inbox not in turns.recalled:
            await self._recall(turns, inbox)
        match await self.take(inbox):
            case NoMessages.OTHER_WORKER:
                self._turns = None
                await asyncio.sleep(self._timings.other_owner_s)
            case InboxMessages() as messages:
                self._turns = self._turns or InboxTurns(self.reads)
                taken = await self.orders_of(inbox).read(messages, self.reads)
                if taken is None:
                    self._skip(inbox, self._timings.unsupported_s)
                else:
                    await self.enqueue(taken, inbox)
            case _:
                self._turns = self._turns or InboxTurns(self.reads)

    async def _recall(self, turns: InboxTurns, inbox: str) -> None:
        """Move deferred messages that this worker can read back to their inbox."""
        reply = await scripts.inbox_recall(
            self._redis,
            inbox,
            token=self._token,
            reads=self.reads,
            max_messages=MESSAGES_AT_ONCE,
            max_bytes=BYTES_AT_ONCE,
        )
        if reply is not None:
            turns.note_recall(inbox, *reply)

    def _skip(self, inbox: str, for_s: float) -> None:
        if self._turns is not None:
            self._turns.skip_until(inbox, mono_s() + for_s)

    def _log_full(self, error: Exception) -> None:
        """Log that the backlog is full or Redis is out of memory, at most once a minute."""
        left_out = self._repeats.admit(type(error).__name__, mono_s())
        if left_out is not None:
            self._log.warning(Event.INTAKE_FULL, error=redact.text(error), **suppressed(left_out))


def _kinds_at_fault(error: ResponseError, inbox: str) -> dict[str, str]:
    """Return the keys that may have caused the error, with the type that each should have."""
    at_fault = {error.key: error.wanted} if isinstance(error, KeyTypeConflictError) else {}
    return {**keys.kinds_of_inbox(), **keys.kinds_of_inbox(inbox), **at_fault}
