"""Log lines of the worker itself, with their fields. Those of lanes and fetches are in their rooms."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed, trace_fields
from fetchfleet.worker.observability.repeats import Ended


def exchange(entry: Entry | None, log: FilteringBoundLogger, **fields: Any) -> None:
    """Log an exchange of a fetch, or of a request for robots.txt (entry None)."""
    of_fetch = {"id": entry.id, **trace_fields(entry.fetch)} if entry is not None else {}
    log.debug(Event.FETCH_EXCHANGE, **of_fetch, **fields)


def stats(log: FilteringBoundLogger, **fields: Any) -> None:
    """Log the statistics of a worker; docs/operations.md defines the fields."""
    log.info(Event.WORKER_HEARTBEAT, **fields)


def worker_bug(loop: str, error: BaseException, left_out: int, log: FilteringBoundLogger) -> None:
    """Log an internal error in one of the worker's own loops; left_out: how often before, unlogged."""
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
    """Log in which settings the live workers differ, with the names of the workers of each value."""
    log.warning(Event.WORKERS_DIFFER, instance=instance, settings=settings)


def disk_full(
    free_bytes: int,
    free_files: int | None,
    wanting: str,
    error: str | None,
    left_out: int,
    log: FilteringBoundLogger,
) -> None:
    """Log that the disk has no space for bodies any more; left_out: how often before, unlogged."""
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
    """Log that bodies cannot be stored although the disk is well; left_out: how often before, unlogged."""
    fields = {"free_bytes": free_bytes, "free_files": free_files, "error": error, **suppressed(left_out)}
    log.error(Event.DISK_REFUSED, wanting=wanting, **fields)


def disk_reopened(out: str, log: FilteringBoundLogger) -> None:
    """Log that another folder has the path of the out folder, and that bodies go there from now on."""
    log.warning(Event.DISK_REOPENED, out=out)


def disk_ok(free_bytes: int, free_files: int | None, log: FilteringBoundLogger) -> None:
    """Log that the disk has space again."""
    log.info(Event.DISK_OK, free_bytes=free_bytes, free_files=free_files)


def redis_trouble(error: object, left_out: int, log: FilteringBoundLogger) -> None:
    """Log a call to Redis that failed; left_out: how many more failed alike since the last such line."""
    log.warning(Event.REDIS_TROUBLE, error=redact.text(repr(error)), **suppressed(left_out))


def redis_refusal(error: object, left_out: int, log: FilteringBoundLogger) -> None:
    """Log a call that Redis denies until an operator changes that; left_out: as for redis_trouble."""
    log.error(Event.REDIS_REFUSAL, error=redact.text(repr(error)), **suppressed(left_out))


def redis_back(ended: Ended, log: FilteringBoundLogger) -> None:
    """Log that Redis answers again."""
    log.info(Event.REDIS_BACK, lasted_s=round(ended.lasted_s, 1), failed=ended.failed)


def conflicting_key(key: str, found: str, wanted: str, left_out: int, log: FilteringBoundLogger) -> None:
    """Log that a key of the fleet held a value of the wrong type; left_out: how often before, unlogged."""
    log.error(Event.REDIS_FOREIGN, key=key, found=found, wanted=wanted, **suppressed(left_out))


def foreign_members(key: str, found: str, count: int, left_out: int, log: FilteringBoundLogger) -> None:
    """Log that members of another program were removed from a set; left_out: how often before, unlogged."""
    log.error(Event.REDIS_FOREIGN, key=key, found=found, count=count, **suppressed(left_out))
