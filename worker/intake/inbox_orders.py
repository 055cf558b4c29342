"""Enqueues the messages taken from one inbox, cancels the batches that they name, and writes receipts.

Each step may be repeated: after a crash the next worker takes the same messages under the same batch ID.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis
from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import Batch
from fetchfleet.jobs.client.submit import Receipt, RetriedFetch, Submittable, Submitter
from fetchfleet.jobs.contract.messages import (
    Cancellation,
    InboxReceipt,
    MessageRefusal,
    Order,
    PushedOrder,
    ReceiptAddress,
    address_of,
    encode_receipt,
    fields_of,
    read_message,
    read_pushed,
    scoped_key,
)
from fetchfleet.jobs.errors import (
    BatchCancelledError,
    BatchError,
    BatchExistsError,
    BatchLostError,
    FleetFullError,
    FullError,
    InvalidFetchError,
    NewerMessageError,
    RedisFullError,
    UnknownBatchError,
)
from fetchfleet.jobs.scripts import inbox as scripts
from fetchfleet.jobs.scripts.inbox import DeferRefusal, InboxMessages, RefusedMessage
from fetchfleet.worker.intake.version_skew import UnsupportedVersionLog
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed

MAX_NOTE_CHARS = 1000
"""The maximum length of the note of a dead letter or a receipt, in characters."""
KEPT_BYTES = 64 << 10
"""The maximum number of bytes that a dead letter keeps of a refused message."""
PUSHED_KEPT_BYTES = 4 << 10
"""The same for named inboxes."""
WAIT_RECEIPT_TTL_MS = 10_000
"""The lifetime of the receipt of a waiting message."""
MAX_LOGGED = 20
"""The maximum log lines per take for refused messages. The last one counts the rest (`suppressed`)."""

_REFUSALS: dict[type[Exception], MessageRefusal] = {
    BatchCancelledError: MessageRefusal.BATCH_CANCELLED,
    BatchExistsError: MessageRefusal.BATCH_EXISTS,
    BatchLostError: MessageRefusal.BATCH_LOST,
    UnknownBatchError: MessageRefusal.UNKNOWN_BATCH,
    FleetFullError: MessageRefusal.FLEET_FULL,
    RedisFullError: MessageRefusal.REDIS_FULL,
}


class InboxOrder(NamedTuple):
    """A valid message."""

    order: Order | Cancellation
    """The content of the message."""
    message: bytes

    @property
    def batch(self) -> str | None:
        """The batch that the message names."""
        return self.order.cancel if isinstance(self.order, Cancellation) else self.order.batch


class ReadMessages(NamedTuple):
    """Messages, sorted by what happens to them next."""

    orders: list[InboxOrder]
    """Messages to enqueue, or cancellations to apply."""
    refused: list[RefusedMessage]
    """Invalid messages."""
    unsupported: list[tuple[int, bytes]]
    """Messages for newer workers, each with its version."""


class TakenMessages:
    """The messages of one take, and the progress of their processing."""

    def __init__(self, batch_id: str, messages: Sequence[bytes], read: ReadMessages) -> None:
        newer = {id(message) for _, message in read.unsupported}
        self.batch_id = batch_id
        """The batch of the messages that name none."""
        self.messages = [message for message in messages if id(message) not in newer]
        """All messages of the take, without those for newer workers."""
        self.refused = read.refused
        """The messages that become dead letters."""
        self.pending = deque(_by_batch(batch_id, read.orders))
        """The remaining steps: each enqueues or cancels the messages of one batch."""
        self.receipts: dict[str, bytes] = {}
        """The receipts to write, by key."""

    def add_receipt(self, address: ReceiptAddress, receipt: InboxReceipt) -> None:
        """Add the receipt of a message; `acknowledge` writes it."""
        text = encode_receipt(receipt)
        for name in {"", address.name}:
            self.receipts[keys.receipt(address.batch, name)] = text


class InboxOrders:
    """Processes the messages of one inbox."""

    def __init__(
        self, inbox: str, redis: Redis, token: str, submitter: Submitter, log: FilteringBoundLogger
    ) -> None:
        """inbox: the name of the inbox; empty for the shared one. token: of this worker's lease."""
        self._inbox = inbox
        self._redis = redis
        self._token = token
        self._submitter = submitter
        self._log = log
        self._inbox_field = {"inbox": inbox} if inbox else {}
        self._unsupported_log = UnsupportedVersionLog("inbox", log)

    async def read(self, taken: InboxMessages, reads: int) -> TakenMessages | None:
        """Parse messages, and defer those for newer workers. Return None if all of them must wait.

        reads: the newest version of a message that this worker reads.
        """
        # In a thread: a message with 100,000 fetches would delay the renewal of leases.
        read = await asyncio.to_thread(read_all, taken.messages, self._inbox, reads)
        if read.unsupported and not await self.defer_unsupported(taken.batch_id, read):
            return None
        result = TakenMessages(taken.batch_id, taken.messages, read)
        for item in read.refused if self._inbox else ():
            if address := address_of(item.message, self._inbox):
                refused = InboxReceipt(
                    batch=address.batch, part=address.part, refused=MessageRefusal.INVALID, note=item.note
                )
                result.add_receipt(address, refused)
        return result

    async def defer_unsupported(self, batch_id: str, read: ReadMessages) -> bool:
        """Move messages for newer workers to the deferred list (keys.newer).

        Return False if the batch must not be enqueued now. It must be called before the batch is enqueued:
        the batch then has the same messages, whichever worker continues after a crash.
        """
        left_out = await scripts.inbox_defer(
            self._redis,
            self._inbox,
            token=self._token,
            batch_id=batch_id,
            messages=read.unsupported,
            kept_bytes=self._kept_bytes,
        )
        if left_out is not DeferRefusal.OTHER_WORKER:
            count = len(read.unsupported)
            self._unsupported_log.write(f"{count} messages wait for a newer worker", **self._inbox_field)
        return isinstance(left_out, int)

    async def submit(self, taken: TakenMessages) -> None:
        """Process the pending steps. Raises FullError; the same call then continues later.

        Messages that name a batch become that batch, all others the batch of the take. Messages that a batch
        refuses are added to `refused`.
        """
        while taken.pending:
            batch, items = taken.pending[0]
            try:
                await self._enqueue(taken, batch, items)
            except BatchError as error:
                self._refuse(taken, items, error)
            except FullError as error:
                if any(_may_wait(item.order) for item in items):
                    raise
                self._refuse(taken, items, error)
            taken.pending.popleft()

    async def acknowledge(self, taken: TakenMessages) -> None:
        """Drop the messages, write their receipts and dead letters, and log them."""
        refused = [RefusedMessage(item.note, item.message[: self._kept_bytes]) for item in taken.refused]
        left_out = await scripts.inbox_ack(
            self._redis,
            self._inbox,
            token=self._token,
            messages=taken.messages,
            refused=refused,
            receipts=taken.receipts,
        )
        if left_out is None:
            return  # another worker holds the messages now, and will log them
        if count := len(taken.messages):
            fields = {"batch": taken.batch_id, "messages": count, "refused": len(refused)}
            self._log.info(Event.INTAKE_TAKEN, **fields, **self._inbox_field)
        for place, item in enumerate(refused[:MAX_LOGGED]):
            more = len(refused) - MAX_LOGGED if place == MAX_LOGGED - 1 else 0
            error = redact.text(item.note)
            fields = {**self._inbox_field, **suppressed(max(0, more))}
            self._log.warning(Event.INTAKE_REFUSED, door="inbox", error=error, **fields)

    async def write_waiting_receipts(self, taken: TakenMessages, note: str) -> None:
        """Write receipts for the pending messages: they wait, for the reason in the note."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for _, items in taken.pending:
                for item in items:
                    address = _address(item.order)
                    if self._inbox and address is not None and address.name:
                        receipt = InboxReceipt(batch=address.batch, part=address.part, waits=True, note=note)
                        key = keys.receipt(address.batch, address.name)
                        pipe.set(key, encode_receipt(receipt), px=WAIT_RECEIPT_TTL_MS)
            if len(pipe):
                await pipe.execute()

    async def _enqueue(self, taken: TakenMessages, batch: str, items: Sequence[InboxOrder]) -> None:
        first = items[0].order
        if isinstance(first, Cancellation):
            await Batch(self._redis, batch, self._submitter.notify).cancel()
            receipt = Receipt(batch, 0, {})
        elif isinstance(first, PushedOrder) and first.part is not None:
            fetches = list(self._scoped(first))
            receipt = await self._submitter.submit_part(
                fetches, batch_id=batch, part=first.part, last=first.last, notify=first.notify
            )
        else:
            of_all = [fetch for item in items for fetch in self._scoped(item.order)]
            receipt = await self._submitter.submit(of_all, batch_id=batch, notify=first.notify)
        address = _address(first)
        if address is not None:
            accepted = InboxReceipt(
                batch=batch, part=address.part, accepted=receipt.count, repeats=receipt.repeats
            )
            taken.add_receipt(address, accepted)

    def _scoped(self, order: Order | Cancellation) -> Iterable[Submittable]:
        """Yield the fetches of an order. In a named inbox, their idempotency keys are scoped to the inbox."""
        for fetch in order.fetches if isinstance(order, Order) else ():
            if self._inbox and fetch.key is not None:
                yield RetriedFetch(fetch, None, scoped_key(self._inbox, fetch.key))
            else:
                yield fetch

    def _refuse(self, taken: TakenMessages, items: Iterable[InboxOrder], error: Exception) -> None:
        """Refuse messages of one batch. Cancellations, and messages that may not wait, get only a receipt."""
        for item in items:
            if not isinstance(item.order, Cancellation) and not isinstance(error, FullError):
                taken.refused.append(RefusedMessage(str(error)[:MAX_NOTE_CHARS], item.message))
            if address := _address(item.order):
                why = next(
                    (why for kind, why in _REFUSALS.items() if isinstance(error, kind)),
                    MessageRefusal.INVALID,
                )
                refused = InboxReceipt(
                    batch=address.batch, part=address.part, refused=why, note=str(error)[:MAX_NOTE_CHARS]
                )
                taken.add_receipt(address, refused)

    @property
    def _kept_bytes(self) -> int:
        return PUSHED_KEPT_BYTES if self._inbox else KEPT_BYTES


def read_all(messages: Sequence[bytes], inbox: str = "", reads: int | None = None) -> ReadMessages:
    """Parse messages. inbox: the name of their inbox. reads: the newest supported version."""
    orders, refused, unsupported = read = ReadMessages([], [], [])
    for message in messages:
        try:
            order = read_pushed(message, inbox, reads) if inbox else read_message(message, reads)
            if isinstance(order, Order):
                order.check_inbox_notify()
            orders.append(InboxOrder(order, message))
        except InvalidFetchError as error:
            refused.append(RefusedMessage(str(error)[:MAX_NOTE_CHARS], message))
        except NewerMessageError:
            unsupported.append((msgspec.json.decode(fields_of(message)["v"], type=int), message))
    return read


def _by_batch(batch_id: str, orders: Sequence[InboxOrder]) -> list[tuple[str, list[InboxOrder]]]:
    """Group orders into steps by batch. Cancellations come first, except after an order of their batch."""
    unnamed = [item for item in orders if item.batch is None]
    first: list[tuple[str, list[InboxOrder]]] = []
    steps = [(batch_id, unnamed)] if unnamed else []
    ordered = set()
    for item in orders:
        if item.batch is None:
            continue
        is_cancel = isinstance(item.order, Cancellation)
        (first if is_cancel and item.batch not in ordered else steps).append((item.batch, [item]))
        if not is_cancel:
            ordered.add(item.batch)
    return first + steps


def _may_wait(order: Order | Cancellation) -> bool:
    return not isinstance(order, PushedOrder) or order.may_wait


def _address(order: Order | Cancellation) -> ReceiptAddress | None:
    """Return the address of the receipt of a message; None if it has no receipt or names no batch."""
    match order:
        case Cancellation():
            return ReceiptAddress(order.cancel, order.receipt or "")
        case PushedOrder(batch=str(batch)):
            return ReceiptAddress(batch, order.receipt or "", order.part)
    return None
