"""Another program writes arbitrary values into the fleet's keys while the fleet works."""

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fetchfleet import Batch, Fleet, Outcome
from fetchfleet.jobs import keys
from fetchfleet.jobs.client.submit import new_batch_id
from fetchfleet.jobs.errors import KeyTypeConflictError
from fetchfleet.jobs.redis_connection import connect
from tests.support.foreign_writes import FORGED, HOSTS, LARGE_BYTES, Copy, ForgedEntry, Large, Write, writes
from tests.support.lanes import ask, now_ms
from tests.support.named_workers import NamedWorkers, named_workers
from tests.support.own_redis import own_redis
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY
from tools.origin.behaviours import OK, latency
from tools.origin.server import Origin

FUZZ_S = float(os.environ.get("FETCHFLEET_TEST_FUZZ_S", "60"))
"""The duration of the foreign writes."""

EXAMPLES = 5
"""The number of examples between two checks of the time."""

END_S = 10.0
"""The fetches of the fleet end within this time of the last foreign write."""

MAX_RSS_BYTES = 320 << 20
"""The limit of a worker's memory."""

FETCHES = 6
"""The number of fetches for each host in a batch."""


class Trial:
    """A busy fleet, the origins of its hosts, and the connection of the other program."""

    def __init__(self, fleet: Fleet, redis: Redis, origins: list[Origin], workers: NamedWorkers) -> None:
        self._fleet = fleet
        self._redis = redis
        self._origins = origins
        self._workers = workers
        self._numbers = itertools.count()
        self._batch_id = ""

    async def run(self, foreign: Sequence[Sequence[Write | Copy]]) -> None:
        """Submit a batch before each part of the foreign writes; check the results and the requests."""
        expected: dict[str, str] = {}
        batches = []
        for part in foreign:
            paths = [f"/{next(self._numbers)}" for _ in range(FETCHES)]
            urls = [origin.url(path) for path in paths for origin in self._origins]
            batch = await self._submit(urls)
            self._batch_id = batch.id
            batches.append(batch)
            expected |= {f"{batch.id}-{place:08x}": url for place, url in enumerate(urls)}
            for write in part:
                with suppress(RedisError):
                    await self._write(write)

        results = []
        try:
            async with asyncio.timeout(END_S):
                for batch in batches:
                    results += [result async for result in batch.results()]
        except TimeoutError:
            counts = [await batch.counts() for batch in batches]
            raise AssertionError(f"after {END_S} s: {counts}") from None
        assert {1} == set(Counter(result.id for result in results).values())
        assert expected == {result.id: result.url for result in results}
        assert not [result for result in results if result.outcome is not Outcome.STORED]
        self._check_workers()

    async def _submit(self, urls: list[str]) -> Batch:
        """Submit; retry while a key has a foreign type that a worker has not repaired yet."""
        batch_id = new_batch_id()
        async with asyncio.timeout(END_S):
            while True:
                with suppress(KeyTypeConflictError):
                    return await self._fleet.submit(urls, batch_id=batch_id)
                await asyncio.sleep(0.1)

    async def _write(self, write: Write | Copy) -> None:
        if isinstance(write, Copy):
            waiting = keys.waiting_at(write.lane, "normal")
            for element in await self._redis.lrange(waiting, 0, 3):  # type: ignore[misc]
                changed = element if write.change is None else write.change.apply(element)
                await self._redis.rpush(keys.waiting_at(write.to, "normal"), changed)  # type: ignore[misc]
            return
        at_ms = await now_ms(self._redis)
        origins = [origin.url("") for origin in self._origins]
        values: list[object] = []
        for value in write.values:
            match value:
                case ForgedEntry():
                    values.append(value.serialized(self._batch_id, origins, at_ms))
                case Large():
                    values.append(b"x" * LARGE_BYTES)
                case _:
                    values.append(value)
        key = keys.batch(self._batch_id) + write.key if write.of_batch else write.key
        await ask(self._redis, write.command, key, *values)  # type: ignore[arg-type]

    def _check_workers(self) -> None:
        """Check that no forged request was made, that the workers run, and that their memory is bounded."""
        for origin in self._origins:
            assert not [seen for seen in origin.requests if seen.target == FORGED]
            origin.requests.clear()
        for name, member in self._workers.members.items():
            assert member.process.poll() is None, f"{name} ended"
            status = Path(f"/proc/{member.process.pid}/status").read_text()
            [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            assert int(peak) << 10 < MAX_RSS_BYTES, name


def test_all_fetches_are_stored_once_under_arbitrary_foreign_writes(tmp_path: Path) -> None:
    """Some values are nearly valid. No forged request is made, and memory is bounded."""
    policy = f"{QUICK_POLICY}concurrency = 4\n"
    with (
        asyncio.Runner() as runner,
        own_redis() as server,
        named_workers(server.url, tmp_path / "fleet", policy, FETCHFLEET_LEASE_S="2") as workers,
    ):
        stack = AsyncExitStack()

        async def prepare() -> Trial:
            await wait_until(server.responds, "Redis")
            await workers.start_all("one", "two")
            origins = [
                await stack.enter_async_context(Origin.serving(host, latency(0.01, OK))) for host in HOSTS
            ]
            redis = connect(server.url)
            stack.push_async_callback(redis.connection_pool.aclose)
            stack.push_async_callback(redis.aclose)
            return Trial(await stack.enter_async_context(Fleet(server.url)), redis, origins, workers)

        trial = runner.run(prepare())
        foreign = st.lists(st.lists(writes, max_size=30), min_size=2, max_size=2)

        @settings(
            max_examples=EXAMPLES,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(foreign)
        def write_and_fetch(parts: list[list[Write | Copy]]) -> None:
            runner.run(trial.run(parts))

        ends_s = time.monotonic() + FUZZ_S
        try:
            while time.monotonic() < ends_s:
                write_and_fetch()
        finally:
            runner.run(stack.aclose())
