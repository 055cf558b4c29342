"""The log events and their output: JSON, or formatted for reading on a terminal."""

import asyncio
import logging
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from fetchfleet.jobs.contract import trace_context
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.jobs.contract.safe_text import safe_json, shown
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.util.clock import mono_s


class Event(StrEnum):
    """The closed list of events. docs/operations.md lists their fields.

    A condition that lasts is logged at once, then once a minute (worker/observability/repeats.py).
    """

    FETCH_FINISHED = "fetch.finished"
    """The result of a fetch is in Redis. Exactly one line for each fetch."""
    FETCH_RETRY = "fetch.retry"
    """An attempt has ended and the fetch waits for the next: wait_s, reason."""
    FETCH_LOST = "fetch.lost"
    """Fetches whose entries were lost or damaged in Redis ended after their deadlines: batch, fetches."""
    FETCH_EXCHANGE = "fetch.exchange"
    """A response was received: status, version, ms, whether the connection was reused. Level debug."""
    FETCH_BUG = "fetch.bug"
    """A bug. The fetch continues as after a failed attempt."""
    LANE_TAKEN = "lane.taken"
    """The worker acquired a lane: token, orphans (claims of a dead owner)."""
    LANE_UNVERIFIED_TLS = "lane.unverified_tls"
    """The policy of the acquired lane has `verify = false`, so no certificate of the host is verified."""
    LANE_COOLING = "lane.cooling"
    """The host asked the client to back off: until_ms (Unix), wait_s, incidents."""
    LANE_BREAKER_OPEN = "lane.breaker_open"
    """The breaker opened: failures, until_ms (Unix)."""
    LANE_BREAKER_HALF_OPEN = "lane.breaker_half_open"
    """A probe may start."""
    LANE_BREAKER_CLOSED = "lane.breaker_closed"
    """The host recovered."""
    LANE_RESET = "lane.reset"
    """An operator reset the lane: reset (the parts of the gate state that were cleared), by."""
    LANE_RELEASED = "lane.released"
    """The lane was released: more (whether fetches wait), why, due_in_ms."""
    LANE_YIELDED = "lane.yielded"
    """The worker releases the lane to another worker, because it holds more than its share."""
    LANE_LAPSED = "lane.lapsed"
    """The lease ended by the clock of the worker, because Redis did not answer. The work was stopped."""
    LANE_LOST = "lane.lost"
    """Another worker holds the lane. The work was stopped."""
    LANE_INVALID = "lane.invalid"
    """An element of the lane is not a fetch. It became a dead letter: why, error."""
    LANE_NEWER = "lane.newer"
    """A fetch in the lane was written for newer workers and is left to them: id, error."""
    LANE_UNSERVED = "lane.unserved"
    """No live worker can do a fetch of the lane, so it waits: id, needs."""
    LANE_RESCUED = "lane.rescued"
    """The sweep reclaimed a lane whose owner died or whose notification was lost: owner."""
    LANE_DEAD = "lane.dead"
    """The host has been down for too long. Its waiting fetches failed: fetches, down_since_ms (Unix)."""
    LANE_ROBOTS = "lane.robots"
    """robots.txt of an origin was requested: status, or reason and note."""
    LANE_CANCELLED = "lane.cancelled"
    """The fetches of cancelled batches in the lane have their results: batches, fetches."""
    INTAKE_TAKEN = "intake.taken"
    """Inbox messages were enqueued: batch, messages, refused."""
    INTAKE_REFUSED = "intake.refused"
    """A message or an arq job is invalid. It became a dead letter: door (inbox or arq), error."""
    INTAKE_NEWER = "intake.newer"
    """Messages or arq jobs of an unsupported version wait for a newer worker: door, error."""
    INTAKE_FULL = "intake.full"
    """The inbox waits, because the backlog limit is reached or Redis is out of memory: error."""
    RESULTS_LAGGING = "results.lagging"
    """Results that a consumer group has not read will soon be trimmed: groups, results, most."""
    RESULTS_TRIMMED = "results.trimmed"
    """Results that a consumer group has not acknowledged are trimmed: groups, results, most."""
    POLICY_CHANGED = "policy.changed"
    """Policy tables set at run time are in force: tables."""
    POLICY_REFUSED = "policy.refused"
    """The tables in Redis do not fit the policy file of this worker; the previous ones stay: error."""
    WORKER_STARTED = "worker.started"
    """The worker is ready: instance, version, python, engine, sink, policy (digest), out, loop."""
    WORKER_NAME_TAKEN = "worker.name_taken"
    """Other live workers have the name of this worker (FETCHFLEET_WORKER_ID): instance, others."""
    WORKERS_DIFFER = "workers.differ"
    """Live workers have different settings. Fetches that some of them cannot do wait for the others."""
    WORKER_HEARTBEAT = "worker.heartbeat"
    """Statistics of the worker, every ten seconds and at its end."""
    FLEET_STATUS = "fleet.status"
    """The state of the fleet in numbers, every ten seconds from one of its workers."""
    WORKER_DRAINING = "worker.draining"
    """An operator drains the worker. It releases its lanes and takes no messages or jobs: lanes."""
    WORKER_DRAINED = "worker.drained"
    """The drained worker has released its last lane."""
    WORKER_UNDRAINED = "worker.undrained"
    """An operator ended the drain. The worker acquires lanes again."""
    WORKER_STOPPING = "worker.stopping"
    """Shutdown begins: lanes."""
    WORKER_STOPPED = "worker.stopped"
    """Shutdown is complete."""
    WORKER_BUG = "worker.bug"
    """A bug ended a loop of the worker. The loop is restarted: loop, error, trace."""
    REDIS_TROUBLE = "redis.trouble"
    """A call to Redis failed. The worker keeps its lanes and tries again: error."""
    REDIS_BACK = "redis.back"
    """No call to Redis has failed for some seconds: lasted_s, failed (the number of failed calls)."""
    REDIS_REFUSAL = "redis.refusal"
    """Redis rejects the credentials or denies a command. The worker keeps trying: error."""
    REDIS_LOADING = "redis.loading"
    """Redis is loading its data. The worker starts afterwards."""
    REDIS_FOREIGN = "redis.foreign"
    """Another program wrote to a key of the fleet. The value became a dead letter: key, found."""
    DISK_FULL = "disk.full"
    """No space for bodies. The worker starts no fetch: wanting (bytes, files, or writing if the disk is
    read-only or refuses data), free_bytes, free_files, error."""
    DISK_REFUSED = "disk.refused"
    """Bodies cannot be stored although the disk has space: the worker lacks descriptors, memory or
    permissions, the disk does not answer, or the out folder was moved. Effect and fields as for disk.full."""
    DISK_REOPENED = "disk.reopened"
    """The out folder was moved, removed or replaced. Bodies go to the folder that has its path now: out."""
    DISK_OK = "disk.ok"
    """Bodies can be stored again: free_bytes, free_files."""
    DISK_IN_THE_WAY = "disk.in_the_way"
    """A link, folder or file in the out folder blocks the path of a body: id, lane, error."""
    CONSOLE_STARTED = "console.started"
    """The server of the console listens: listen, token (whether one is required), read_only."""
    CONSOLE_STOPPED = "console.stopped"
    """The server of the console has stopped."""
    CONSOLE_ACTION = "console.action"
    """A caller of the console or the HTTP API changed something: action, target, by, peer, result."""
    CONSOLE_DENIED = "console.denied"
    """The console refused a request: why, peer, method, path."""
    CONSOLE_REDIS = "console.redis"
    """Redis does not answer the console, or answers it again, or a response was cut off: message."""
    CONSOLE_BUG = "console.bug"
    """A bug ended a request of the console: error, trace, path."""
    LIBRARY = "library"
    """A warning of a library: library, message."""


COMMON_FIELDS = frozenset({"event", "level", "timestamp", "worker"})
"""The fields of every line."""
ADDED_FIELDS = COMMON_FIELDS - {"worker"}
"""The common fields that the processors add to a line."""


class LogCounts:
    """The log lines of this process since its start."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        """The number of lines of each event."""
        self.dropped = 0
        """The number of lines that the stream did not accept, as on a full disk."""


COUNTS = LogCounts()

TAPS: list[Callable[[str, Sequence[Mapping[str, Any] | msgspec.Struct]], None]] = []
"""Functions that receive the level and the fields of each line too, as when the lines of a fleet are watched.

Empty most of the time. Lines of level debug, and lines below the level of the log, are not passed.
"""


class LineWriter:
    """Writes lines to a stream, in order. Lines of one iteration of the event loop are written together.

    A line of level warning or above is written at once, after the waiting ones. Lines that the stream does
    not accept, as on a full disk, are lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._flushes_in: asyncio.AbstractEventLoop | None = None
        """The event loop that will write the lines in its next iteration; None if no write is scheduled."""
        weakref.finalize(self, _write, stream, self._lines)  # also called at exit

    def info(self, line: str) -> None:
        """Write lines in the next iteration of the event loop, or at once outside of one."""
        self._lines.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._flushes_in is not loop:
            self._flushes_in = loop
            loop.call_soon(self.flush)

    def warning(self, line: str) -> None:
        """Write a line at once, after the waiting ones."""
        self._lines.append(line)
        self.flush()

    def flush(self) -> None:
        """Write the waiting lines."""
        self._flushes_in = None
        with self._lock:
            _write(self._stream, self._lines)

    debug = info
    error = critical = warning


def _write(stream: TextIO, lines: list[str]) -> None:
    """Write the lines and remove them from the list. Other threads may append to it meanwhile."""
    count = len(lines)
    if count == 0:
        return
    text = "\n".join([*lines[:count], ""])
    del lines[:count]
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        COUNTS.dropped += text.count("\n")


class JsonLines:
    """Encodes lines as JSON: a processor of structlog, and a faster path for lines that are structs."""

    def __init__(self, writer: LineWriter, level: int) -> None:
        self._writer = writer
        self._has_info = level <= logging.INFO
        encoder = msgspec.json.Encoder(enc_hook=str)
        self._encode, self._encode_lines = encoder.encode, encoder.encode_lines

    def __call__(self, _: WrappedLogger, level: str, line: EventDict) -> str:
        """Return the line as JSON, with its level and timestamp."""
        COUNTS.events[line["event"]] += 1
        line = {**line, "level": level, "timestamp": timestamp()}
        for tap in TAPS:
            tap(level, [line])
        return safe_json(self._encode(line)).decode()

    def info(self, event: Event, lines: Sequence[msgspec.Struct]) -> None:
        """Write lines of an event of level info, if that level is logged."""
        if self._has_info:
            COUNTS.events[event] += len(lines)
            for tap in TAPS:
                tap("info", lines)
            self._writer.info(safe_json(self._encode_lines(lines)[:-1]).decode())


def timestamp() -> str:
    """Return the current time in UTC as ISO 8601, with microseconds."""
    second, us = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_up_to_the_second(second)}.{us:06d}Z"


@lru_cache(maxsize=1)
def _up_to_the_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def configure(stream: TextIO = sys.stderr, *, pretty: bool | None = None, level: str = "info") -> None:
    """Configure structlog and logging to write to the stream from this level on.

    Warnings of libraries are included. pretty: format for reading instead of JSON; None: if the stream is a
    terminal.
    """
    writer, min_level = LineWriter(stream), logging.getLevelNamesMapping()[level.upper()]
    processors: list[Processor] = [JsonLines(writer, min_level)]
    if stream.isatty() if pretty is None else pretty:
        timestamps = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        renderer: Processor = structlog.dev.ConsoleRenderer(pad_event_to=20)
        processors = [structlog.processors.add_log_level, timestamps, _to_be_shown, renderer]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(min_level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(logging.WARNING)


def _to_be_shown(_: WrappedLogger, level: str, line: EventDict) -> EventDict:
    """Count a line, pass it to the taps, and make its texts safe for a terminal.

    Other values are rendered by repr, which is safe.
    """
    COUNTS.events[line["event"]] += 1
    for tap in TAPS:
        tap(level, [{**line, "timestamp": timestamp()}])
    return {name: shown(value) if isinstance(value, str) else value for name, value in line.items()}


def write_info(event: Event, lines: Sequence[msgspec.Struct]) -> None:
    """Write structs as lines of level info. The structs have COMMON_FIELDS among their fields.

    For JSON they are encoded together, without the processors of structlog.
    """
    first, *_ = structlog.get_config()["processors"]
    if isinstance(first, JsonLines):
        first.info(event, lines)
        return
    log = get_logger()
    for line in lines:
        values = msgspec.structs.asdict(line).items()
        fields = {name: value for name, value in values if value is not msgspec.UNSET}
        log.info(event, **{name: value for name, value in fields.items() if name not in ADDED_FIELDS})


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """Return a logger that adds the fields to each line."""
    log: FilteringBoundLogger = structlog.get_logger(**fields).bind()
    return log


class _LibraryHandler(logging.Handler):
    """Logs warnings of libraries as one event. Their INFO lines contain URLs with secrets and are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        left_out = self._repeats.admit((record.name, str(record.msg).partition("\n")[0]), mono_s())
        if left_out is not None:
            log = get_logger(library=record.name)
            log.warning(Event.LIBRARY, message=redact.text(record.getMessage()), **suppressed(left_out))


def suppressed(left_out: int) -> dict[str, int]:
    """Return the field `suppressed` of a line: how many lines of its condition were left out; {} if none."""
    return {"suppressed": left_out} if left_out else {}


def trace_fields(fetch: Fetch) -> dict[str, str]:
    """Return the field `trace_id` for the log lines of a fetch; {} if it has no trace."""
    return {} if fetch.traceparent is None else {"trace_id": trace_context.trace_id(fetch.traceparent)}
