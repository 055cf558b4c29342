"""What other services import to enqueue fetches and read their results.

from jobs import Fetch, Fleet

async with Fleet("redis://localhost:6379") as fleet:
    batch = await fleet.submit([Fetch(url="https://example.com/a.bin")])
    async for result in batch.results():
        print(result.outcome, result.path)
"""

from jobs.batch import Batch, Counts
from jobs.errors import InvalidFetchError, JobsError, RedisSetupError, UnknownBatchError
from jobs.fleet import Fleet
from jobs.model import Fetch, Outcome, Priority, Reason, Result, Timings

__all__ = [
    "Batch",
    "Counts",
    "Fetch",
    "Fleet",
    "InvalidFetchError",
    "JobsError",
    "Outcome",
    "Priority",
    "Reason",
    "RedisSetupError",
    "Result",
    "Timings",
    "UnknownBatchError",
]
