"""Producers that submit during the whole run, in every way, and record the acknowledgements."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet import Fetch, Fleet
from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import connect
from tools.chaos.history import Acknowledged, Attempted, Cancelling, History

PRODUCERS = 3
MAX_BACKLOG = 600
PAUSE_S = (0.05, 0.6)
MOST_FETCHES = 30
MANY_FETCHES, MANY = 600, 0.02
"""A list larger than one chunk, and its probability."""

AGAIN_S = 0.3
CANCELLED = 0.08


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
        self.acknowledged = 0

    async def run(self, until: asyncio.Event) -> None:
        """Submit until the event is set."""
        async with (
            Fleet(self._redis_url, max_backlog=MAX_BACKLOG) as fleet,
            connect(self._redis_url) as redis,
        ):
            while not until.is_set():
                await asyncio.sleep(self._chance.uniform(*PAUSE_S))
                await self._submit(fleet, redis)

    async def submit_killers(self, count: int, lasts_s: float) -> None:
        """Submit, one after another over the time, fetches that kill each worker that makes them."""
        async with Fleet(self._redis_url) as fleet:
            for number in range(count):
                await asyncio.sleep(self._chance.uniform(0.5, 1.0) * lasts_s / count)
                url = f"{self._chance.choice(self._urls)}/kill/{self._name}-{number}"
                await self._named(fleet, [Fetch(url=url)], f"{self._chance.getrandbits(64):016x}")

    async def _submit(self, fleet: Fleet, redis: Redis) -> None:
        count = MANY_FETCHES if self._chance.random() < MANY else self._chance.randint(1, MOST_FETCHES)
        fetches = [self._fetch() for _ in range(count)]
        way = self._chance.random()
        if way < 0.15:
            await self._push(redis, fetches)
        elif way < 0.4:
            await self._named(fleet, fetches, "")
        else:
            await self._named(fleet, fetches, f"{self._chance.getrandbits(64):016x}")

    async def _named(self, fleet: Fleet, fetches: list[Fetch], batch: str) -> None:
        """Submit a list. With a batch id of its own it is submitted again until it is acknowledged."""
        self._attempt(fetches, batch)

        async def submit() -> None:
            done = await fleet.submit(fetches, batch_id=batch or None, when_full="wait")
            self._acknowledge(done.ids, fetches)
            if "/kill/" not in fetches[0].url and self._chance.random() < CANCELLED:
                await self._cancel(fleet, done.id)

        await (_until_it_works(submit) if batch else _acknowledged(submit))

    async def _push(self, redis: Redis, fetches: list[Fetch]) -> None:
        """Push to the inbox."""
        self._attempt(fetches, "")

        async def push() -> None:
            await redis.rpush(keys.INBOX, *map(msgspec.json.encode, fetches))  # type: ignore[misc]
            self._acknowledge([""] * len(fetches), fetches)

        await _acknowledged(push)

    async def _cancel(self, fleet: Fleet, batch: str) -> None:
        await asyncio.sleep(self._chance.uniform(0, 1))
        self._history.add("producer", [Cancelling(batch)])

        async def cancel() -> None:
            await fleet.batch(batch).cancel()

        await _acknowledged(cancel)

    def _attempt(self, fetches: list[Fetch], batch: str) -> None:
        dests = {fetch.url: fetch.dest for fetch in fetches if fetch.dest}
        self._history.add("producer", [Attempted([fetch.url for fetch in fetches], batch, dests)])

    def _acknowledge(self, ids: list[str], fetches: list[Fetch]) -> None:
        self.acknowledged += len(ids)
        self._history.add("producer", [Acknowledged(ids, [fetch.url for fetch in fetches])])

    def _fetch(self) -> Fetch:
        """Return a random fetch; one with a key may repeat an earlier one."""
        chance, kind = self._chance, self._chance.random()
        if kind < 0.03 and self._keyed:
            return chance.choice(self._keyed)
        self._count += 1
        name, at = f"{self._name}-{self._count}", chance.choice(self._urls)
        if kind < 0.06:
            return Fetch(url=f"{at}/gone/{name}")
        if kind < 0.1:
            return Fetch(url=f"{at}/post/{name}", method="POST", body="once")
        if kind < 0.2:
            return Fetch(url=f"{at}/go/{chance.choice(self._urls).removeprefix('http://')}/{name}")
        if kind < 0.3:
            self._keyed.append(Fetch(url=f"{at}/f/{name}", key=name))
            return self._keyed[-1]
        dest = f"named/{self._name}/{name}" if kind < 0.35 else None
        return Fetch(url=f"{at}/f/{name}", dest=dest)


async def _until_it_works(call: Callable[[], Awaitable[None]]) -> None:
    while not await _acknowledged(call):  # noqa: ASYNC110 another process changes it
        await asyncio.sleep(AGAIN_S)


async def _acknowledged(call: Callable[[], Awaitable[None]]) -> bool:
    """Return whether the call was acknowledged. If not, it may still have taken effect."""
    try:
        await call()
    except (RedisError, OSError):
        return False
    return True
