"""Producers that submit during the whole run, by every route, and read the results of some batches.

They use the public client, which must survive the faults of Redis.
"""

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet import Batch, Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from fetchfleet.worker.util import aio
from tools.chaos.history import Acknowledged, Attempted, Cancelling, Followed, History

PRODUCERS = 3
MAX_BACKLOG = 600
PAUSE_S = (0.05, 0.6)
MAX_FETCHES = 30
LARGE_LIST_FETCHES, LARGE_LIST_SHARE = 600, 0.02
"""A list larger than one chunk, and the share of such lists."""

CANCELLED_SHARE = 0.08
FOLLOW_ONE_IN = 2
REDIS_PATIENCE_S = 300.0
"""Longer than any fault, so a call that gives up shows a bug in the client."""

READ_WITHIN_S = 120.0
"""Time to read the remaining results after the faults have healed."""


class Producer:
    """One producer. The seed determines its actions; their timing depends on the fleet."""

    def __init__(
        self, number: int, seed: int, redis_url: str, urls: Mapping[str, str], history: History
    ) -> None:
        self._name = f"p{number}"
        self._chance = random.Random(f"producer {number} {seed}")  # noqa: S311 reproducible by seed
        self._redis_url = redis_url
        self._urls = list(urls.values())
        self._history = history
        self._count = 0
        self._keyed: list[Fetch] = []
        self._reading: list[asyncio.Task[None]] = []
        self.acknowledged = 0

    async def run(self, until: asyncio.Event) -> None:
        """Submit until the event is set; return once all results have been read."""
        async with self._fleet(MAX_BACKLOG) as fleet, connect(self._redis_url) as redis:
            while not until.is_set():
                await asyncio.sleep(self._chance.uniform(*PAUSE_S))
                await self._submit(fleet, redis)
            if self._reading:
                _, late = await asyncio.wait(self._reading, timeout=READ_WITHIN_S)
                await aio.end(*late)

    async def submit_killers(self, count: int, lasts_s: float) -> None:
        """Submit fetches that kill their worker, one at a time, spread over `lasts_s`."""
        async with self._fleet() as fleet:
            for number in range(count):
                await asyncio.sleep(self._chance.uniform(0.5, 1.0) * lasts_s / count)
                url = f"{self._chance.choice(self._urls)}/kill/{self._name}-{number}"
                await self._submit_list(fleet, [Fetch(url=url)], f"{self._chance.getrandbits(64):016x}")

    def _fleet(self, max_backlog: int = 0) -> Fleet:
        return Fleet(
            self._redis_url,
            max_backlog=max_backlog,
            redis_patience_s=REDIS_PATIENCE_S,
            warn=lambda _: None,
        )

    async def _submit(self, fleet: Fleet, redis: Redis) -> None:
        is_large = self._chance.random() < LARGE_LIST_SHARE
        count = LARGE_LIST_FETCHES if is_large else self._chance.randint(1, MAX_FETCHES)
        fetches = [self._fetch() for _ in range(count)]
        route = self._chance.random()
        if route < 0.15:
            await self._push(redis, fetches)
        elif route < 0.4:
            await self._submit_list(fleet, fetches, "")
        else:
            await self._submit_list(fleet, fetches, f"{self._chance.getrandbits(64):016x}")

    async def _submit_list(self, fleet: Fleet, fetches: list[Fetch], batch_id: str) -> None:
        """Submit a list; follow some of the batches, and cancel some. batch_id: '' lets the client choose."""
        self._attempt(fetches, batch_id)
        batch = await fleet.submit(fetches, batch_id=batch_id or None, when_full="wait")
        self._acknowledge(batch.ids, fetches)
        is_killer = "/kill/" in fetches[0].url
        if not is_killer and int(batch.id, 16) % FOLLOW_ONE_IN == 0:
            self._reading.append(asyncio.create_task(self._follow(fleet.batch(batch.id)), name="follow"))
        if not is_killer and self._chance.random() < CANCELLED_SHARE:
            await asyncio.sleep(self._chance.uniform(0, 1))
            self._history.add("producer", [Cancelling(batch.id)])
            await fleet.batch(batch.id).cancel()

    async def _follow(self, batch: Batch) -> None:
        """Read the results of a batch through all faults, and record them even if the reader is cancelled."""
        ids: list[str] = []
        ended = False
        try:
            async for result in batch.results():
                ids.append(result.id)  # noqa: PERF401 the list so far is recorded
            ended = True
        finally:
            self._history.add("followed", [Followed(batch.id, ids, ended)])

    async def _push(self, redis: Redis, fetches: list[Fetch]) -> None:
        """Push the fetches to the inbox."""
        self._attempt(fetches, "")
        with suppress(RedisError, OSError):  # a push that is not acknowledged may still have taken effect
            await redis.rpush(keys.INBOX, *map(msgspec.json.encode, fetches))  # type: ignore[misc]
            self._acknowledge([""] * len(fetches), fetches)

    def _attempt(self, fetches: list[Fetch], batch: str) -> None:
        dests = {fetch.url: fetch.dest for fetch in fetches if fetch.dest}
        self._history.add("producer", [Attempted([fetch.url for fetch in fetches], batch, dests)])

    def _acknowledge(self, ids: list[str], fetches: list[Fetch]) -> None:
        self.acknowledged += len(ids)
        self._history.add("producer", [Acknowledged(ids, [fetch.url for fetch in fetches])])

    def _fetch(self) -> Fetch:
        """Return a random fetch; a few repeat an earlier fetch with a key."""
        chance, kind = self._chance, self._chance.random()
        if kind < 0.03 and self._keyed:
            return chance.choice(self._keyed)
        self._count += 1
        name, base = f"{self._name}-{self._count}", chance.choice(self._urls)
        if kind < 0.06:
            return Fetch(url=f"{base}/gone/{name}")
        if kind < 0.1:
            return Fetch(url=f"{base}/post/{name}", method="POST", body="once")
        if kind < 0.2:
            return Fetch(url=f"{base}/go/{chance.choice(self._urls).removeprefix('http://')}/{name}")
        if kind < 0.3:
            self._keyed.append(Fetch(url=f"{base}/f/{name}", key=name))
            return self._keyed[-1]
        dest = f"named/{self._name}/{name}" if kind < 0.35 else None
        return Fetch(url=f"{base}/f/{name}", dest=dest)
