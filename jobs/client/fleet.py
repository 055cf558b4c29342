"""The producer's client: submits fetches and notifies the workers of their lanes."""

import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, ParamSpec, Self, TypeVar

from redis.exceptions import RedisError

from fetchfleet.jobs.client.batch import Batch, BatchSummary, Submitted, list_batches
from fetchfleet.jobs.client.dead_letters import DeadLetters
from fetchfleet.jobs.client.inbox import InboxClient
from fetchfleet.jobs.client.submit import (
    NO_LIMITS,
    Fetchable,
    Limits,
    Submitter,
    WhenFull,
    checked_batch_id,
)
from fetchfleet.jobs.contract.field_checks import Dests, IfExists
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.jobs.errors import RoleError
from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.jobs.patience import Patience, Warn
from fetchfleet.jobs.redis_connection import connect, inbox_of

P = ParamSpec("P")
T = TypeVar("T")

REDIS_PATIENCE_S = 60.0
LEAST_REPLY_S = 1.0
"""The shortest timeout of a reply, however short the patience: a read of results blocks for half of it."""


MAX_COMPARED_DESTS = 500_000
"""Of an iterator, which need not fit in memory: the hashes take about 50 MB."""


def dest_check(items: Iterable[Fetchable] | AsyncIterable[Fetchable]) -> Callable[[int, Fetchable], None]:
    """Return a check of each item, by its place, for a dest that an earlier one has (`Dests`).

    The check raises InvalidFetchError. All dests of a list are compared.
    """
    dests = Dests("item", sys.maxsize if isinstance(items, Sequence) else MAX_COMPARED_DESTS)

    def check(place: int, item: Fetchable) -> None:
        match item:
            case Fetch():
                dest, if_exists, key = item.dest, item.if_exists, item.key
            case {"dest": str(dest)} if isinstance(item, Mapping):
                if_exists, key = item.get("if_exists", IfExists.REPLACE), item.get("key")
            case _:
                return
        if dest is not None and isinstance(key, str | None):  # another key is refused later
            dests.add(place, dest, if_exists, key)

    return check


Via = Literal["lanes", "inbox"]


class Fleet:
    """The fleet behind one Redis. Use it as an async context manager, or call `aclose()`.

    max_backlog, max_lane_backlog: how many fetches without a result the fleet, and each host, may have
    for `submit` to add more; 0 for no limit. Producers that submit at the same time may pass a limit by
    what they have in hand.

    redis_patience_s: how long each call waits for a Redis that restarts, loads its data, fails over or is
    frozen, counted while this process is awake. It then raises FleetUnreachableError. warn: receives one line
    when Redis stops answering and one when it answers again; the logger `fetchfleet` by default.

    via: "inbox" for a Redis user that has an inbox alone, as the user pusher of ops/users.acl. A worker
    validates each submit and answers within about 0.1 s; redis_patience_s is also how long that may take.
    What such a producer may not do raises RoleError. inbox: the name of the inbox, by default that of the
    Redis user.
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
        self._redis = connect(redis_url, max(redis_patience_s, LEAST_REPLY_S))
        self._redis_patience_s = redis_patience_s
        self._warn = warn
        self._arq: Any = None
        limits = Limits(max_backlog, max_lane_backlog)
        self._submitter = Submitter(self._redis, self.notify, limits, self.call)
        self._inbox: InboxClient | None = None
        if via == "inbox":
            if limits != NO_LIMITS:
                raise ValueError("max_backlog and max_lane_backlog: an inbox has the limit of the workers")
            name = inbox_of(redis_url, inbox)
            self._inbox = InboxClient(self._redis, name, self.call, redis_patience_s)
        elif inbox is not None:
            raise ValueError('inbox: is for via="inbox"')

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; safe to call twice."""
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    @property
    def dead(self) -> DeadLetters:
        """The dead letters: fetches that failed permanently, and input that is not a fetch."""
        self._refuse_by_inbox("look at dead letters")
        return DeadLetters(self._redis, self._submitter, self.call)

    def batch(self, batch_id: str) -> Batch:
        """A handle on a batch made earlier, by whichever process; raises ValueError for no batch id."""
        if self._inbox is None:
            return Batch(self._redis, checked_batch_id(batch_id), self.notify, self.call)
        batch_id = self._inbox.checked_batch_id(batch_id)
        return Batch(self._redis, batch_id, self.notify, self.call, self._inbox.cancel)

    async def batches(self, limit: int = 50) -> list[BatchSummary]:
        """The newest batches, the newest first."""
        self._refuse_by_inbox("list batches")
        return await self.call(list_batches, self._redis, limit)

    async def submit(
        self,
        fetches: Iterable[Fetchable] | AsyncIterable[Fetchable],
        *,
        batch_id: str | None = None,
        when_full: WhenFull = "raise",
    ) -> Submitted:
        """Enqueue the fetches and return their batch, which begins to run while submit goes on.

        A list or tuple is checked whole before anything is enqueued, and is enqueued whole or not at
        all. An iterator is checked as it goes; when an item is bad, or no room is left, what came
        before it stays enqueued. A fetch whose `key` another has already is not enqueued: `ids` has the
        other's id in its place. Two fetches with one dest are refused, unless both set if_exists to skip or
        fail: one body would replace the other.

        batch_id: 16 hex digits of your own, for a batch that must be found again after a crash; the same
        fetches under the same id are enqueued once. when_full: whether to raise or wait at a limit.

        A chunk whose reply is lost is sent again and enqueued once. Raises InvalidFetchError, which names the
        item, FleetFullError, RedisFullError, BatchExistsError, BatchCancelledError, FleetUnreachableError,
        and redis.exceptions.RedisError if Redis refuses the call.
        """
        check = dest_check(fetches)
        if self._inbox is not None:
            receipt = await self._inbox.submit(fetches, batch_id=batch_id, when_full=when_full, check=check)
            return Submitted(self._redis, receipt, self.notify, self.call, self._inbox.cancel)
        receipt = await self._submitter.submit(fetches, batch_id=batch_id, when_full=when_full, check=check)
        return Submitted(self._redis, receipt, self.notify, self.call)

    async def notify(self, notifications: Iterable[LaneNotification]) -> None:
        """Notify the workers of lanes that became due. `submit` calls it; a change by other means must."""
        self._refuse_by_inbox("notify workers")
        notifications = list(notifications)
        if notifications:
            from fetchfleet.jobs.notify import arq_client, notify_lanes  # noqa: PLC0415 it loads arq

            self._arq = self._arq or arq_client(self._redis.connection_pool)
            await notify_lanes(self._arq, notifications)

    def _refuse_by_inbox(self, what: str) -> None:
        if self._inbox is not None:
            raise RoleError(
                f'a pusher may not {what}: a Fleet with via="inbox" has its own batches alone.'
                " Use the Redis user operator, without via"
            )

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **named: P.kwargs) -> T:
        """Await a function that calls Redis and may be repeated, with the patience of this Fleet."""
        try:
            return await function(*args, **named)
        except (RedisError, OSError) as failure:
            error = failure
        return await self._patience.repeat(error, function, *args, **named)

    @cached_property
    def _patience(self) -> Patience:
        return Patience(self._redis_patience_s, self._warn)
