"""A complete worker in this process: the runtime and arq, with a real Redis and real sockets."""

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
"""The default engine of tests."""

SHORT_WAITS: Table = {"retry_base_s": 0.02, "retry_cap_s": 0.05, "breaker_reset_s": 0.3}
"""Policy keys with waits short enough for tests."""


class OneWorker:
    """A worker that runs during a block, or until `stop()`.

    policy: the `[default]` table of a policy file, merged over SHORT_WAITS. hosts: the `[host]` tables.
    timings: of the worker's loops. settings: fields of Settings.
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
        default = {**SHORT_WAITS, **(policy or {})}
        fields = {"worker_id": "one", "allow_net": "127.0.0.0/8", "engine": ENGINE, **settings}
        self.settings = Settings(
            redis_url=redis_url, out=out, policy=Policy(LanePolicy(**default), hosts), **fields
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
        """Stop as on SIGTERM. Idempotent."""
        await self.stop_acquiring()
        await self.runtime.stop()

    async def stop_acquiring(self) -> None:
        """Continue to serve the lanes that are held, and acquire no others."""
        await self.stop_arq_jobs()
        await self.runtime.stop_acquiring()

    async def stop_arq_jobs(self) -> None:
        """Stop the arq worker. The worker still finds lanes that are due."""
        if self._arq_jobs is not None:
            await aio.end(self._arq_jobs)

    async def submit(self, fetches: Iterable[Fetchable]) -> Batch:
        """Enqueue the fetches."""
        return await self.fleet.submit(list(fetches))

    async def results(self, fetches: Iterable[Fetchable]) -> list[Result]:
        """Submit the fetches; return their results in the same order."""
        return await results_of(await self.submit(fetches))

    async def run(self, fetches: Iterable[Fetchable]) -> dict[str, Result]:
        """Submit the fetches; return their results by URL."""
        return {result.url: result for result in await self.results(fetches)}

    async def one(self, url: str, **fields: Any) -> Result:
        """Submit one fetch; return its result."""
        [result] = await self.results([Fetch(url=url, **fields)])
        return result

    def body(self, result: Result) -> bytes:
        """Return the stored body of a result."""
        assert result.path is not None, result
        return (self.out / result.path).read_bytes()

    def files(self) -> set[str]:
        """Return the paths of the files in the out folder, without fetchfleet's own."""
        return {name for name in _names(self.out) if not name.startswith(".fetchfleet/")}

    def parts(self) -> set[str]:
        """Return the paths of fetchfleet's own files in the out folder, such as partial files."""
        return _names(self.out) - self.files()


async def results_of(batch: Batch) -> list[Result]:
    """Return every result of a batch, in the order of its fetches."""
    return sorted([result async for result in batch.results()], key=lambda result: result.id)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
