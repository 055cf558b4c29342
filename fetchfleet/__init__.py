"""The public API of fetchfleet: submit fetches, follow their batch, read results and dead letters.

    from fetchfleet import Fetch, Fleet

    async with Fleet("redis://localhost:6379") as fleet:
        batch = await fleet.submit([Fetch(url="https://example.com/a.bin")])
        async for result in batch.results():
            print(result.outcome, result.path)

The names are defined in fetchfleet.jobs. Importing this package does not import the worker, arq or httpx.
`fetchfleet.sync` has the same API without asyncio.
"""

from importlib import import_module
from types import ModuleType

from fetchfleet.jobs.client.batch import Batch, Counts, Results, Submitted
from fetchfleet.jobs.client.batch_list import BatchSummary
from fetchfleet.jobs.client.dead_letters import DeadLetter, DeadLetterFilter, DeadLetters
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.checks.accept import Accept, XRobots
from fetchfleet.jobs.contract.checks.field_checks import Fallback, IfExists, Method
from fetchfleet.jobs.contract.fetch import Fetch, Priority
from fetchfleet.jobs.contract.ids import batch_id_for
from fetchfleet.jobs.contract.result import Outcome, Reason, Result, Timings
from fetchfleet.jobs.errors import (
    BatchCancelledError,
    BatchError,
    BatchExistsError,
    BatchLostError,
    FleetFullError,
    FleetUnreachableError,
    FullError,
    InvalidFetchError,
    JobsError,
    KeyTypeConflictError,
    RedisFullError,
    RedisSetupError,
    RoleError,
    UnknownBatchError,
    UnsupportedRedisError,
)

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """Import `fetchfleet.sync` at its first use."""
    if name == "sync":
        return import_module("fetchfleet.sync")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Accept",
    "Batch",
    "BatchCancelledError",
    "BatchError",
    "BatchExistsError",
    "BatchLostError",
    "BatchSummary",
    "Counts",
    "DeadLetter",
    "DeadLetterFilter",
    "DeadLetters",
    "Fallback",
    "Fetch",
    "Fleet",
    "FleetFullError",
    "FleetUnreachableError",
    "FullError",
    "IfExists",
    "InvalidFetchError",
    "JobsError",
    "KeyTypeConflictError",
    "Method",
    "Outcome",
    "Priority",
    "Reason",
    "RedisFullError",
    "RedisSetupError",
    "Result",
    "Results",
    "RoleError",
    "Submitted",
    "Timings",
    "UnknownBatchError",
    "UnsupportedRedisError",
    "XRobots",
    "__version__",
    "batch_id_for",
]
