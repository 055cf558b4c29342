"""Every log event, what it means, and how lines are written: JSON, or pretty on a terminal."""

import logging
import sys
from enum import StrEnum
from typing import Any, TextIO

import msgspec
import structlog

from fetchfleet.worker.observability import redact


class Event(StrEnum):
    """The closed list of events."""

    FETCH_FINISHED = "fetch.finished"
    """Exactly one a fetch: its result is in Redis."""
    FETCH_RETRY = "fetch.retry"
    """An attempt is over and the fetch waits for the next: wait_s, reason."""
    FETCH_EXCHANGE = "fetch.exchange"
    """A request was answered: its status, version and ms, whether on a connection that was there; debug."""
    FETCH_BUG = "fetch.bug"
    """An error of ours; the fetch goes on as after a failed attempt."""
    LANE_TAKEN = "lane.taken"
    LANE_UNVERIFIED_TLS = "lane.unverified_tls"
    """The policy says `verify = false`: whoever answers for the host is believed. Said as it is taken."""
    LANE_COOLING = "lane.cooling"
    """The host asked for quiet, until_ms (Unix)."""
    LANE_BREAKER_OPEN = "lane.breaker_open"
    LANE_BREAKER_HALF_OPEN = "lane.breaker_half_open"
    LANE_BREAKER_CLOSED = "lane.breaker_closed"
    LANE_RELEASED = "lane.released"
    """Given back: more says whether something waits, why and due_in_ms until when."""
    LANE_YIELDED = "lane.yielded"
    """We hold more than our share: the lane is given back, so that another worker has it."""
    LANE_LAPSED = "lane.lapsed"
    """The lease has ended by our own clock, for Redis does not answer; the lane's work is stopped."""
    LANE_LOST = "lane.lost"
    """The lane is another worker's before we gave it back; its work was stopped."""
    LANE_INVALID = "lane.invalid"
    """Something in the lane was no entry; it is among the dead letters."""
    LANE_NEWER = "lane.newer"
    """A fetch in the lane was written for newer workers: it is left to them."""
    LANE_RESCUED = "lane.rescued"
    """The sweep woke a lane whose owner died or whose hand-off was lost."""
    LANE_DEAD = "lane.dead"
    """The host gives no answer any more: what waited for it has failed."""
    LANE_ROBOTS = "lane.robots"
    """An origin was asked for its robots.txt: what came, a status or a reason."""
    LANE_CANCELLED = "lane.cancelled"
    """The fetches of cancelled batches in the lane have their results."""
    INTAKE_TAKEN = "intake.taken"
    """Messages of the inbox are enqueued."""
    INTAKE_REFUSED = "intake.refused"
    """A message, or an arq job, was no fetch; it is among the dead letters."""
    INTAKE_NEWER = "intake.newer"
    """Messages, or arq jobs, are for a newer worker and wait for one; at most once a minute."""
    INTAKE_FULL = "intake.full"
    """The inbox waits: there is no room for more fetches."""
    RESULTS_LAGGING = "results.lagging"
    """A consumer group has not read the oldest results, and they are soon to be trimmed."""
    RESULTS_TRIMMED = "results.trimmed"
    """Results that a consumer group has not acknowledged are trimmed now."""
    POLICY_CHANGED = "policy.changed"
    """Tables of the policy were set at run time; they hold from now on."""
    POLICY_REFUSED = "policy.refused"
    """The tables in Redis do not go with this worker's policy file: the old ones hold on."""
    WORKER_STARTED = "worker.started"
    WORKER_HEARTBEAT = "worker.heartbeat"
    """Every ten seconds, and at the end: connections, waits, the loop's lag, memory, open files."""
    WORKER_STOPPING = "worker.stopping"
    WORKER_STOPPED = "worker.stopped"
    WORKER_BUG = "worker.bug"
    """An error of ours in a loop of the worker's own; the loop is begun again."""
    REDIS_TROUBLE = "redis.trouble"
    """Redis did not answer; we keep what we hold and ask again."""
    REDIS_REFUSAL = "redis.refusal"
    """Redis does not let this worker in, or not do its work: its password or its ACL must be mended. Said
    once a minute; the worker asks on."""
    REDIS_LOADING = "redis.loading"
    """Redis is still reading what it kept; the worker starts when that is done."""
    REDIS_FOREIGN = "redis.foreign"
    """Something else has written to one of our keys: it is put aside, a dead letter says which and what."""
    DISK_FULL = "disk.full"
    """No room for bodies, said once: the worker takes no lanes. Wanting: bytes, files or, where the disk is
    read-only or refuses what is written (a quota, a failing disk), writing."""
    DISK_OK = "disk.ok"
    """There is room again: the worker takes lanes."""
    DISK_IN_THE_WAY = "disk.in_the_way"
    """In the out folder a link, a folder or a file stands where a body was to go; error names it."""
    LIBRARY = "library"
    """A warning of a library that we use."""


def configure(stream: TextIO = sys.stderr, *, pretty: bool | None = None, level: str = "info") -> None:
    """Send every line of that level on, ours and the libraries' warnings, to the stream."""
    if stream.isatty() if pretty is None else pretty:
        _configure_pretty(stream, logging.getLevelNamesMapping()[level.upper()])
    else:
        _configure_json(stream, logging.getLevelNamesMapping()[level.upper()])
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(logging.WARNING)


def get_logger(**fields: Any) -> Any:
    """A logger whose lines all carry the fields."""
    return structlog.get_logger(**fields).bind()


class _LibraryHandler(logging.Handler):
    """Warnings of libraries as events of ours. Their INFO lines hold URLs with secrets: never asked for."""

    def emit(self, record: logging.LogRecord) -> None:
        log = get_logger(library=record.name)
        log.warning(Event.LIBRARY, message=redact.text(record.getMessage()))


def _configure_json(stream: TextIO, level: int) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def _configure_pretty(stream: TextIO, level: int) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(pad_event_to=20),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


_encode = msgspec.json.Encoder(enc_hook=str).encode


def _json(line: dict[str, Any], **_: Any) -> str:
    return _encode(line).decode()
