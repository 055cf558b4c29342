"""`InboxClient`: submits and cancels by messages to a named inbox, for producers that need not be trusted.

The Redis user of such a producer may push to its inbox and read the receipts and results of its batches. A
worker validates each message and writes a receipt.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import CHUNK_BYTES, Fetchable, Receipt, WhenFull, iterate, new_batch_id
from fetchfleet.jobs.contract.entry import serialize_new_entry
from fetchfleet.jobs.contract.fetch import CONTRACT_VERSION, as_fetch, encode, version_of
from fetchfleet.jobs.contract.ids import fetch_id, inbox_prefix, is_batch_id
from fetchfleet.jobs.contract.messages import (
    MAX_INPUT_BYTES,
    PART_FETCHES,
    InboxReceipt,
    MessageRefusal,
    decode_receipt,
)
from fetchfleet.jobs.errors import (
    BatchCancelledError,
    BatchExistsError,
    BatchLostError,
    FleetFullError,
    FleetUnreachableError,
    InvalidFetchError,
    RedisFullError,
    UnknownBatchError,
)
from fetchfleet.jobs.patience import RedisCaller

MAX_FETCHES_BYTES = MAX_INPUT_BYTES - 4096
"""Maximum bytes of fetches in one message, besides its other fields. A longer list is pushed in parts."""
FIRST_PAUSE_S = 0.01
MAX_PAUSE_S = 0.2
MIN_PATIENCE_S = 1.0

_ERRORS: dict[MessageRefusal, type[Exception]] = {
    MessageRefusal.INVALID: InvalidFetchError,
    MessageRefusal.BATCH_EXISTS: BatchExistsError,
    MessageRefusal.BATCH_CANCELLED: BatchCancelledError,
    MessageRefusal.BATCH_LOST: BatchLostError,
    MessageRefusal.UNKNOWN_BATCH: UnknownBatchError,
}


class PushedReceipt(Receipt, frozen=True):
    """The receipt of a batch that was pushed to an inbox."""

    sizes: tuple[int, ...] = ()
    """Number of fetches in each part; empty if the batch was one message."""

    @property
    def ids(self) -> list[str]:
        """The IDs of the items, in order; for a `key` that was taken, the ID of the earlier fetch."""
        if not self.sizes:
            return super().ids
        places = (
            place
            for part, size in enumerate(self.sizes)
            for place in range(part * PART_FETCHES, part * PART_FETCHES + size)
        )
        new_ids = (fetch_id(self.batch_id, place) for place in places)
        return [self.repeats.get(new_id, new_id) for new_id in new_ids]


class InboxClient:
    """Pushes messages to one inbox and waits for their receipts, up to patience_s for each."""

    def __init__(self, redis: Redis, inbox: str, call: RedisCaller, patience_s: float) -> None:
        self._redis = redis
        self._inbox = inbox
        self._call = call
        self._patience_s = max(patience_s, MIN_PATIENCE_S)
        self.prefix = inbox_prefix(inbox)

    def checked_batch_id(self, batch_id: str) -> str:
        """Return the batch ID; raise ValueError if it does not belong to this inbox."""
        if not is_batch_id(batch_id) or not batch_id.startswith(self.prefix):
            raise ValueError(
                f"{batch_id!r} is not a batch ID of the inbox {self._inbox}; it must have 16 lower-case hex"
                f" digits and begin with {self.prefix}"
            )
        return batch_id

    async def submit(
        self,
        fetches: Iterable[Fetchable] | AsyncIterable[Fetchable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
        check: Callable[[int, Any], None] | None = None,
        notify: str = "",
    ) -> Receipt:
        """Push fetches and return their receipt. Arguments and errors are those of `Fleet.submit`."""
        batch_id = self.checked_batch_id(batch_id or new_batch_id(self.prefix))
        push = _Push(self, batch_id, when_full, notify)
        async with aclosing(_serialize(fetches, check)) as serialized:
            try:
                if not isinstance(fetches, Sequence):
                    await push.in_parts(_split(serialized))
                    return push.receipt
                items = [item async for item in serialized]
                if sum(len(item.text) for item in items) + len(items) <= MAX_FETCHES_BYTES:
                    await push.in_one_message(items)
                    return push.receipt
                try:
                    await push.in_parts(_split(iterate(items)))
                except BatchLostError:
                    push = _Push(self, batch_id, when_full, notify)
                    await push.in_parts(_split(iterate(items)))
            except FleetUnreachableError as error:
                error.batch_id, error.enqueued = batch_id, push.count
                raise
        return push.receipt

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch. Raises UnknownBatchError."""
        await self.exchange(batch_id, {"cancel": batch_id})

    async def exchange(self, batch_id: str, message: dict[str, Any], enqueued: int = 0) -> InboxReceipt:
        """Push a message about a batch and return its receipt. Raises the error of a refusal.

        enqueued: fetches of the batch that are enqueued already, for the error.
        """
        name = secrets.token_hex(8)
        text = msgspec.json.encode({**message, "receipt": name})
        try:
            await self._call(self._redis.rpush, keys.inbox(self._inbox), text)  # type: ignore[arg-type]
        except OutOfMemoryError:
            raise RedisFullError(
                f"Redis is at its maxmemory and accepts no writes; {_so_far(batch_id, enqueued)}",
                *(batch_id, enqueued),
            ) from None
        receipt = await self._receipt(batch_id, name)
        if receipt.refused is MessageRefusal.FLEET_FULL:
            raise FleetFullError(receipt.note, batch_id, enqueued)
        if receipt.refused is MessageRefusal.REDIS_FULL:
            raise RedisFullError(receipt.note, batch_id, enqueued)
        if receipt.refused is not None:
            raise _ERRORS[receipt.refused](receipt.note)
        return receipt

    async def _receipt(self, batch_id: str, name: str) -> InboxReceipt:
        """Wait for a receipt. One with `waits` restarts the time limit."""
        since_s, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            text = await self._call(self._redis.get, keys.receipt(batch_id, name))
            try:
                receipt = None if text is None else decode_receipt(text)
            except msgspec.DecodeError:
                receipt = None
            if receipt is not None and not receipt.waits:
                return receipt
            if receipt is not None:
                since_s = time.monotonic()
            if time.monotonic() - since_s >= self._patience_s:
                raise FleetUnreachableError(
                    f"no worker has answered for {self._patience_s:g} s about batch {batch_id}. Start a"
                    f" worker; register the inbox with: fetchfleet inbox add {self._inbox}. The message stays"
                    " in the inbox, and the same call with this batch ID may be repeated",
                    batch_id,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, MAX_PAUSE_S)


class _Item(NamedTuple):
    """A fetch of a message."""

    text: bytes
    """Its JSON."""
    version: int
    """Version of the contract that its reader must know."""


class _Push:
    """One batch during its push."""

    def __init__(self, client: InboxClient, batch_id: str, when_full: WhenFull, notify: str) -> None:
        self.count = 0
        self._client = client
        self._batch_id = batch_id
        self._fixed = {"batch": batch_id, "when_full": "wait" if when_full == "wait" else "refuse"}
        if notify:
            self._fixed["notify"] = notify
        self._sizes: list[int] = []
        self._repeats: dict[str, str] = {}

    @property
    def receipt(self) -> PushedReceipt:
        return PushedReceipt(self._batch_id, self.count, self._repeats, sizes=tuple(self._sizes))

    async def in_one_message(self, items: Sequence[_Item]) -> None:
        """Push the batch as one message."""
        await self._push(items)

    async def in_parts(self, parts: AsyncGenerator[list[_Item], None]) -> None:
        """Push the batch in parts, each after the receipt of the previous one."""
        pending: list[_Item] = []
        async with aclosing(parts) as iterator:
            async for part in iterator:
                if pending:
                    await self._push_part(pending, last=False)
                pending = part
        await (self._push_part(pending, last=True) if pending else self._push([]))

    async def _push_part(self, items: Sequence[_Item], *, last: bool) -> None:
        await self._push(items, part=len(self._sizes) + 1, last=last)
        self._sizes.append(len(items))

    async def _push(self, items: Sequence[_Item], **fields: Any) -> None:
        version = max([CONTRACT_VERSION if "notify" in self._fixed else 1, *(item.version for item in items)])
        fetches = [msgspec.Raw(item.text) for item in items]
        message = {**self._fixed, **fields, "v": version, "fetches": fetches}
        receipt = await self._client.exchange(self._batch_id, message, self.count)
        self._repeats |= receipt.repeats
        self.count += len(items)


async def _serialize(
    items: Iterable[Fetchable] | AsyncIterable[Fetchable], check: Callable[[int, Any], None] | None
) -> AsyncGenerator[_Item, None]:
    """Yield the items as JSON, checked; raises InvalidFetchError, which names the item."""
    place = 0
    async with aclosing(iterate(items)) as iterator:
        async for item in iterator:
            try:
                if check is not None:
                    check(place, item)
                fetch = as_fetch(item)
                serialize_new_entry(_ANY_ID, fetch)
            except InvalidFetchError as error:
                raise InvalidFetchError(f"item {place}: {error}") from None
            yield _Item(encode(fetch), version_of(fetch))
            place += 1


async def _split(items: AsyncGenerator[_Item, None]) -> AsyncGenerator[list[_Item], None]:
    """Yield the items in parts of at most PART_FETCHES fetches and about CHUNK_BYTES."""
    part: list[_Item] = []
    size = 0
    async for item in items:
        part.append(item)
        size += len(item.text)
        if len(part) >= PART_FETCHES or size >= CHUNK_BYTES:
            yield part
            part, size = [], 0
            await asyncio.sleep(0)
    if part:
        yield part


def _so_far(batch_id: str, count: int) -> str:
    if count:
        return f"the first {count} fetches are enqueued as batch {batch_id}; submit the rest later"
    return "nothing was enqueued; submit again later"


_ANY_ID = fetch_id("0" * 16, 0)
