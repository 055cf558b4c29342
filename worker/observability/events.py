"""Functions that log the events of the worker itself. Those of lanes and fetches are in their rooms.

left_out: the number of reports since the last such line that were not logged (see Repeats).
"""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed, trace_fields
from fetchfleet.worker.observability.repeats import EndedTrouble


def exchange(entry: Entry | None, log: FilteringBoundLogger, **fields: Any) -> None:
    """Log an exchange of a fetch, or of a request for robots.txt (entry is None)."""
    of_fetch = {"id": entry.id, **trace_fields(entry.fetch)} if entry is not None else {}
    log.debug(Event.FETCH_EXCHANGE, **of_fetch, **fields)


def stats(log: FilteringBoundLogger, **fields: Any) -> None:
    """Log the statistics of a worker; docs/logs.md defines the fields."""
    log.info(Event.WORKER_HEARTBEAT, **fields)


def fleet_status(log: FilteringBoundLogger, **fields: Any) -> None:
    """Log the state of the fleet; docs/logs.md defines the fields."""
    log.info(Event.FLEET_STATUS, **fields)


def worker_bug(loop: str, error: BaseException, left_out: int, log: FilteringBoundLogger) -> None:
    """Log a bug in one of the loops of the worker, with the end of its traceback."""
    log.error(
        Event.WORKER_BUG,
        loop=loop,
        error=redact.text(repr(error)),
        trace=redact.text("".join(traceback.format_tb(error.__traceback__)[-3:])),
        **suppressed(left_out),
    )


def worker_name_taken(instance: str, others: Sequence[str], log: FilteringBoundLogger) -> None:
    """Log that other live workers have the same name as this one."""
    log.warning(Event.WORKER_NAME_TAKEN, instance=instance, others=others)


def workers_differ(
    instance: str, settings: Mapping[str, Mapping[str, Sequence[str]]], log: FilteringBoundLogger
) -> None:
    """Log the settings in which live workers differ. settings: by setting and value, the workers."""
    log.warning(Event.WORKERS_DIFFER, instance=instance, settings=settings)


def disk_full(
    free_bytes: int,
    free_files: int | None,
    wanting: str,
    error: str | None,
    left_out: int,
    log: FilteringBoundLogger,
) -> None:
    """Log that the disk has no space for bodies. free_files: None if unknown. wanting: what is missing."""
    fields = {"free_bytes": free_bytes, "free_files": free_files, "error": error, **suppressed(left_out)}
    log.error(Event.DISK_FULL, wanting=wanting, **fields)


def disk_refused(
    free_bytes: int,
    free_files: int | None,
    wanting: str,
    error: str | None,
    left_out: int,
    log: FilteringBoundLogger,
) -> None:
    """Log that bodies cannot be stored although the disk has space; the arguments are those of disk_full."""
    fields = {"free_bytes": free_bytes, "free_files": free_files, "error": error, **suppressed(left_out)}
    log.error(Event.DISK_REFUSED, wanting=wanting, **fields)


def disk_reopened(out: str, log: FilteringBoundLogger) -> None:
    """Log that the path of the out folder leads to another folder, which receives the bodies from now on."""
    log.warning(Event.DISK_REOPENED, out=out)


def disk_ok(free_bytes: int, free_files: int | None, log: FilteringBoundLogger) -> None:
    """Log that bodies can be stored again."""
    log.info(Event.DISK_OK, free_bytes=free_bytes, free_files=free_files)


def redis_trouble(error: object, left_out: int, log: FilteringBoundLogger) -> None:
    """Log a failed call to Redis."""
    log.warning(Event.REDIS_TROUBLE, error=redact.text(repr(error)), **suppressed(left_out))


def redis_refusal(error: object, left_out: int, log: FilteringBoundLogger) -> None:
    """Log a call that Redis will deny until an operator changes the password or the rights of the user."""
    log.error(Event.REDIS_REFUSAL, error=redact.text(repr(error)), **suppressed(left_out))


def redis_back(ended: EndedTrouble, log: FilteringBoundLogger) -> None:
    """Log the end of Redis trouble."""
    log.info(Event.REDIS_BACK, lasted_s=round(ended.lasted_s, 1), failed=ended.failed)


def conflicting_key(key: str, found: str, wanted: str, left_out: int, log: FilteringBoundLogger) -> None:
    """Log that a key of the fleet held a value of the wrong type. found, wanted: the types."""
    log.error(Event.REDIS_FOREIGN, key=key, found=found, wanted=wanted, **suppressed(left_out))


def foreign_members(key: str, found: str, count: int, left_out: int, log: FilteringBoundLogger) -> None:
    """Log that members written by another program were removed from a set. found: what they are."""
    log.error(Event.REDIS_FOREIGN, key=key, found=found, count=count, **suppressed(left_out))
