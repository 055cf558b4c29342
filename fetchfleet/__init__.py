"""What other services import to enqueue fetches and read their results.

from fetchfleet import Fetch, Fleet

async with Fleet("redis://localhost:6379") as fleet:
    batch = await fleet.submit([Fetch(url="https://example.com/a.bin")])
    async for result in batch.results():
        print(result.outcome, result.path)
"""

from fetchfleet.jobs.client.batch import Batch, BatchSummary, Counts, Results, Submitted
from fetchfleet.jobs.client.dead_letters import DeadLetter, DeadLetters, Which
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import batch_id_for
from fetchfleet.jobs.contract.model import Fetch, Outcome, Priority, Reason, Result, Timings
from fetchfleet.jobs.errors import (
    BatchCancelledError,
    BatchError,
    BatchExistsError,
    FleetFullError,
    ForeignKeyError,
    FullError,
    InvalidFetchError,
    JobsError,
    RedisFullError,
    RedisSetupError,
    UnknownBatchError,
)

__all__ = [
    "Batch",
    "BatchCancelledError",
    "BatchError",
    "BatchExistsError",
    "BatchSummary",
    "Counts",
    "DeadLetter",
    "DeadLetters",
    "Fetch",
    "Fleet",
    "FleetFullError",
    "ForeignKeyError",
    "FullError",
    "InvalidFetchError",
    "JobsError",
    "Outcome",
    "Priority",
    "Reason",
    "RedisFullError",
    "RedisSetupError",
    "Result",
    "Results",
    "Submitted",
    "Timings",
    "UnknownBatchError",
    "Which",
    "batch_id_for",
]
