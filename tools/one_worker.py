"""One worker in this process, whole: its runtime, arq's loop around it, the real Redis, real sockets."""

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from fetchfleet import Batch, Fetch, Fleet, Result
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.runtime.arq_worker import serve_arq_jobs
from fetchfleet.worker.runtime.build import build
from fetchfleet.worker.runtime.runtime import Runtime
from fetchfleet.worker.runtime.timings import WorkerTimings
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util import aio

Fetchable = Fetch | str | Mapping[str, Any]
Table = Mapping[str, Any]

ENGINE = os.environ.get("FETCHFLEET_TEST_ENGINE", "httpx")
"""Of every test that names none."""

IMPATIENT: Table = {"retry_base_s": 0.02, "retry_cap_s": 0.05, "breaker_reset_s": 0.3}
"""A policy whose waits a test can sit out."""


class OneWorker:
    """A worker for the length of a block, or until `stop()`.

    policy and hosts are the tables of a policy file, over IMPATIENT; timings those of the worker's loops;
    everything else is a Settings field.
    """

    def __init__(
        self,
        redis_url: str,
        out: Path,
        *,
        policy: Table | None = None,
        hosts: Mapping[str, Table] | None = None,
        timings: WorkerTimings | None = None,
        **settings: Any,
    ) -> None:
        default = {**IMPATIENT, **(policy or {})}
        given = {"worker_id": "one", "allow_net": "127.0.0.0/8", "engine": ENGINE, **settings}
        self.settings = Settings(
            redis_url=redis_url, out=out, policy=Policy(LanePolicy(**default), hosts), **given
        )
        self.out = out
        self.fleet = Fleet(redis_url)
        self._timings = timings
        self._runtime: Runtime | None = None
        self._arq_jobs: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._runtime = await build(self.settings, self._timings)
        await self.runtime.start()
        self._arq_jobs = asyncio.create_task(serve_arq_jobs(self.runtime), name="arq")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self.fleet.aclose()

    @property
    def runtime(self) -> Runtime:
        """The runtime, once the block is entered."""
        assert self._runtime is not None
        return self._runtime

    async def stop(self) -> None:
        """Stop as SIGTERM makes a worker stop; again without harm."""
        await self.take_no_more()
        await self.runtime.stop()

    async def take_no_more(self) -> None:
        """Serve the lanes at hand and take no others."""
        await self.be_handed_nothing()
        await self.runtime.stop_acquiring()

    async def be_handed_nothing(self) -> None:
        """Find lanes that are due, but not by arq."""
        if self._arq_jobs is not None:
            await aio.end(self._arq_jobs)

    async def submit(self, fetches: Iterable[Fetchable]) -> Batch:
        """The fetches, enqueued."""
        return await self.fleet.submit(list(fetches))

    async def results(self, fetches: Iterable[Fetchable]) -> list[Result]:
        """The result of each fetch, in the order of the fetches."""
        return await results_of(await self.submit(fetches))

    async def run(self, fetches: Iterable[Fetchable]) -> dict[str, Result]:
        """The result of each fetch by its URL."""
        return {result.url: result for result in await self.results(fetches)}

    async def one(self, url: str, **fields: Any) -> Result:
        """The result of one fetch."""
        [result] = await self.results([Fetch(url=url, **fields)])
        return result

    def body(self, result: Result) -> bytes:
        """The bytes at the path of a result."""
        assert result.path is not None, result
        return (self.out / result.path).read_bytes()

    def files(self) -> set[str]:
        """What stands in the out folder under a final name."""
        return {name for name in _names(self.out) if not name.startswith(".fetchfleet/")}

    def parts(self) -> set[str]:
        """What stands in the out folder under a temporary name."""
        return _names(self.out) - self.files()


async def results_of(batch: Batch) -> list[Result]:
    """Every result of a batch, in the order of its fetches."""
    return sorted([result async for result in batch.results()], key=lambda result: result.id)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
