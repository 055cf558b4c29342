"""The log lines of the worker itself, with their fields."""

import traceback
from typing import Any

from fetchfleet.jobs.contract import trace_context
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event


def exchange(entry: Entry | None, log: Any, **fields: Any) -> None:
    """A request was answered: a fetch's own, that of a redirect, or its origin's robots.txt."""
    of_fetch = {"id": entry.id, **trace_fields(entry.fetch)} if entry is not None else {}
    log.debug(Event.FETCH_EXCHANGE, **of_fetch, **fields)


def heartbeat(log: Any, **fields: Any) -> None:
    """Write the heartbeat line of a worker; docs/operations.md defines its fields."""
    log.info(Event.WORKER_HEARTBEAT, **fields)


def worker_bug(what: str, error: BaseException, log: Any) -> None:
    """An error of ours in one of the worker's own loops, with where it came from."""
    log.error(
        Event.WORKER_BUG,
        loop=what,
        error=redact.text(repr(error)),
        trace=redact.text("".join(traceback.format_tb(error.__traceback__)[-3:])),
    )


def disk_full(free_bytes: int, free_files: int | None, wanting: str, log: Any) -> None:
    """There is no room for bodies any more."""
    log.error(Event.DISK_FULL, wanting=wanting, free_bytes=free_bytes, free_files=free_files)


def disk_ok(free_bytes: int, free_files: int | None, log: Any) -> None:
    """There is room for bodies again."""
    log.info(Event.DISK_OK, free_bytes=free_bytes, free_files=free_files)


def redis_trouble(error: object, log: Any) -> None:
    """Redis did not do what it was asked."""
    log.warning(Event.REDIS_TROUBLE, error=redact.text(repr(error)))


def redis_refusal(error: object, log: Any) -> None:
    """Redis refuses this worker something, and will until somebody changes that."""
    log.error(Event.REDIS_REFUSAL, error=redact.text(repr(error)))


def foreign(key: str, found: str, wanted: str, log: Any) -> None:
    """Something else's was at a key of ours."""
    log.error(Event.REDIS_FOREIGN, key=key, found=found, wanted=wanted)


def trace_fields(fetch: Fetch) -> dict[str, str]:
    """What every log line of the fetch says of its trace, nothing where it has none."""
    return {} if fetch.traceparent is None else {"trace_id": trace_context.trace_id(fetch.traceparent)}
