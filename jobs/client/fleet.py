"""`Fleet`: the entry point of the producer's client."""

import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, ParamSpec, Self, TypeVar

from redis.exceptions import RedisError

from fetchfleet.jobs.client.batch import Batch, Submitted
from fetchfleet.jobs.client.batch_list import BatchSummary, list_batches
from fetchfleet.jobs.client.consumer import Consumer, Handler, OnFailure
from fetchfleet.jobs.client.dead_letters import DeadLetters
from fetchfleet.jobs.client.inbox import InboxClient
from fetchfleet.jobs.client.submit import (
    NO_LIMITS,
    Fetchable,
    Limits,
    Submitter,
    WhenFull,
)
from fetchfleet.jobs.contract.checks.field_checks import Dests
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.ids import checked_batch_id
from fetchfleet.jobs.contract.names import is_template
from fetchfleet.jobs.contract.webhooks import notify_url
from fetchfleet.jobs.errors import RoleError
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.patience import Patience, Warn
from fetchfleet.jobs.redis_connection import connect, inbox_of

P = ParamSpec("P")
T = TypeVar("T")

REDIS_PATIENCE_S = 60.0
MIN_REPLY_TIMEOUT_S = 1.0
"""The minimum timeout of a reply, however short the patience: a read of results blocks for half a second."""

MAX_COMPARED_DESTS = 500_000
"""The maximum number of dests compared for an iterator, which need not fit in memory: 50 MB of hashes."""


def dest_check(items: Iterable[Fetchable] | AsyncIterable[Fetchable]) -> Callable[[int, Fetchable], None]:
    """Return a function that checks an item, given its place, against the dests of earlier items (`Dests`).

    It raises InvalidFetchError. Every dest of a list is compared, and MAX_COMPARED_DESTS of an iterator.
    """
    dests: Dests | None = None

    def check(place: int, item: Fetchable) -> None:
        nonlocal dests
        match item:
            case Fetch():
                dest, if_exists, key = item.dest, item.if_exists, item.key
            case {"dest": str(dest)} if isinstance(item, Mapping) and not is_template(dest):
                if_exists, key = item.get("if_exists"), item.get("key")
            case _:
                return
        if dest is not None and isinstance(key, str | None):  # a key of another type is refused later
            dests = dests or Dests("item", sys.maxsize if isinstance(items, Sequence) else MAX_COMPARED_DESTS)
            dests.add(place, dest, if_exists, key)

    return check


Via = Literal["lanes", "inbox"]


class Fleet:
    """A client of the fleet behind one Redis: submits fetches, finds batches, manages dead letters.

    Use it as an async context manager, or call `aclose()`. The first call connects.

        async with Fleet("redis://localhost:6379", max_backlog=1_000_000) as fleet:
            batch = await fleet.submit(["https://example.com/a.bin"])
            async for result in batch.results():
                print(result.outcome, result.path)

    redis_url: redis://, rediss:// or unix://.

    max_backlog, max_lane_backlog: most fetches without a result in the fleet, and for each host; 0 for no
    limit. Producers that submit at the same time may together exceed a limit, each by a list or a chunk.

    redis_patience_s: seconds that each call waits for a Redis that restarts, loads its data, fails over or
    is frozen. It then raises FleetUnreachableError. Time while this process is suspended does not count.

    warn: called with one line when Redis stops answering, and with one when it answers again. By default
    the lines go to the logger `fetchfleet`.

    via: "inbox" for a Redis user with access to a named inbox only, such as `pusher` in ops/users.acl. A
    worker then validates each submit and answers within about 0.1 s, or at most redis_patience_s. Only
    `submit` and `batch` are available; other calls raise RoleError.

    inbox: name of that inbox; by default the name of the Redis user.

    Raises RedisSetupError for an unusable URL, and ValueError for options that exclude each other.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        max_backlog: int = 0,
        max_lane_backlog: int = 0,
        redis_patience_s: float = REDIS_PATIENCE_S,
        warn: Warn | None = None,
        via: Via = "lanes",
        inbox: str | None = None,
    ) -> None:
        self._redis = connect(redis_url, max(redis_patience_s, MIN_REPLY_TIMEOUT_S))
        self._redis_patience_s = redis_patience_s
        self._warn = warn
        self._arq: Any = None
        limits = Limits(max_backlog, max_lane_backlog)
        self._submitter = Submitter(self._redis, self.notify, limits, self.call)
        self._inbox: InboxClient | None = None
        if via == "inbox":
            if limits != NO_LIMITS:
                raise ValueError("max_backlog, max_lane_backlog: leave them out; the workers limit an inbox")
            name = inbox_of(redis_url, inbox)
            self._inbox = InboxClient(self._redis, name, self.call, redis_patience_s)
        elif inbox is not None:
            raise ValueError('inbox: needs via="inbox"')

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection. Safe to call twice."""
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    @property
    def dead(self) -> DeadLetters:
        """The dead letters: fetches that failed, and input that is not a fetch."""
        self._refuse_by_inbox("read dead letters")
        return DeadLetters(self._redis, self._submitter, self.call)

    def batch(self, batch_id: str) -> Batch:
        """Return a handle on an existing batch, created by any process.

        Raises ValueError for a malformed ID. Redis is not called: an unknown batch raises UnknownBatchError
        when the handle is used.
        """
        if self._inbox is None:
            return Batch(self._redis, checked_batch_id(batch_id), self.notify, self.call)
        batch_id = self._inbox.checked_batch_id(batch_id)
        return Batch(self._redis, batch_id, self.notify, self.call, self._inbox.cancel)

    async def batches(self, limit: int = 50) -> list[BatchSummary]:
        """Return the newest batches, up to `limit`, newest first."""
        self._refuse_by_inbox("list batches")
        return await self.call(list_batches, self._redis, limit)

    async def submit(
        self,
        fetches: Iterable[Fetchable] | AsyncIterable[Fetchable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
        notify: str | None = None,
    ) -> Submitted:
        """Enqueue fetches and return their batch. Workers start on it while submit is still running.

        fetches: Fetch objects, URLs, or mappings of the JSON fields of a fetch. A list or tuple is validated
        first, then enqueued completely or not at all. Any other iterable, synchronous or not, is enqueued in
        chunks of up to 500 fetches or 4 MiB as it is consumed; an error leaves earlier chunks enqueued.

        batch_id: 16 lower-case hex digits of your choice (see `batch_id_for`), to find the batch after
        a crash. The same fetches under the same ID are enqueued once.

        when_full: at a backlog limit, "raise" FleetFullError or "wait".

        notify: URL that receives a signed POST when the batch has ended (docs/webhooks.md). A repeated
        submit does not change it.

        A fetch whose `key` belongs to an earlier fetch is not enqueued; `ids` then has the earlier ID.
        Two fetches with the same `dest` are refused, because one body would replace the other, unless both
        set if_exists to skip, fail or suffix.

        Raises InvalidFetchError, which names the item; FleetFullError, RedisFullError, BatchExistsError,
        BatchCancelledError, BatchLostError, FleetUnreachableError; ValueError for a malformed batch_id.
        """
        check, webhook = dest_check(fetches), notify_url(notify) if notify is not None else ""
        if self._inbox is not None:
            receipt = await self._inbox.submit(
                fetches, batch_id=batch_id, when_full=when_full, check=check, notify=webhook
            )
            return Submitted(self._redis, receipt, self.notify, self.call, self._inbox.cancel)
        receipt = await self._submitter.submit(
            fetches, batch_id=batch_id, when_full=when_full, check=check, notify=webhook
        )
        return Submitted(self._redis, receipt, self.notify, self.call)

    async def each(
        self,
        handler: Handler,
        *,
        group: str,
        concurrency: int = 16,
        attempts: int = 3,
        claim_after_s: float = 60.0,
        on_failure: OnFailure | None = None,
    ) -> None:
        """Await the handler for each result of every batch, at least once, until cancelled.

        group: name of a Redis consumer group. Its consumers, in any number of processes, share the results;
        a new group begins with the oldest result that Redis keeps (24 h).

        concurrency: most handlers at a time. Results arrive in no particular order.

        attempts: calls of a handler that raises, with pauses of 1 s, 2 s and so on. Then `on_failure` is
        awaited with the result and the error. Without it, the error is logged and the result stays pending.

        claim_after_s: time after which a pending result is handed over again, by any consumer of the group:
        if its consumer has died, or its handler has failed. Longer than the longest time that a handler
        takes: else a result may be handled twice at a time.

        A result is acknowledged once the handler or `on_failure` has returned. After cancellation, and after
        an error of `on_failure` or Redis, the other results stay pending. Results of webhooks are skipped.
        Raises FleetUnreachableError; ValueError for an invalid argument.
        """
        self._refuse_by_inbox("read all results")
        await Consumer(
            *(self._redis, self.call, handler, group),
            concurrency=concurrency,
            attempts=attempts,
            claim_after_s=claim_after_s,
            on_failure=on_failure,
        ).run()

    async def notify(self, notifications: Iterable[LaneNotification]) -> None:
        """Enqueue arq jobs that notify workers of due lanes; `submit` and `cancel` do so already."""
        self._refuse_by_inbox("notify workers")
        notifications = list(notifications)
        if notifications:
            from fetchfleet.jobs.notify import arq_client, notify_lanes  # noqa: PLC0415 it loads arq

            self._arq = self._arq or arq_client(self._redis.connection_pool)
            await notify_lanes(self._arq, notifications)

    def _refuse_by_inbox(self, action: str) -> None:
        if self._inbox is not None:
            raise RoleError(
                f'a Fleet with via="inbox" cannot {action}, only submit and use its own batches;'
                " connect without via, as the Redis user operator"
            )

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **named: P.kwargs) -> T:
        """Await a function that calls Redis; repeat it for redis_patience_s while Redis does not answer.

        The function must be safe to repeat. Raises FleetUnreachableError.
        """
        try:
            return await function(*args, **named)
        except (RedisError, OSError) as caught:
            error = caught
        return await self._patience.repeat(error, function, *args, **named)

    @cached_property
    def _patience(self) -> Patience:
        return Patience(self._redis_patience_s, self._warn)
