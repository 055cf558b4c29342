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

from fetchfleet.jobs.contract.checks import trace_context
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.safe_text import safe_json, shown
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.hidden_packages import hidden

# For tracebacks, which no line has, structlog imports rich and pygments. A worker imports this module before
# any other that imports structlog.
with hidden("rich"):
    import structlog
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger


class Event(StrEnum):
    """The closed list of events. worker/observability/registry has their levels, fields and meanings.

    A condition that lasts is logged at once, then once a minute (worker/observability/repeats.py).
    """

    FETCH_FINISHED = "fetch.finished"
    FETCH_RETRY = "fetch.retry"
    FETCH_LOST = "fetch.lost"
    FETCH_EXCHANGE = "fetch.exchange"
    FETCH_BUG = "fetch.bug"
    LANE_TAKEN = "lane.taken"
    LANE_UNVERIFIED_TLS = "lane.unverified_tls"
    LANE_COOLING = "lane.cooling"
    LANE_BREAKER_OPEN = "lane.breaker_open"
    LANE_BREAKER_HALF_OPEN = "lane.breaker_half_open"
    LANE_BREAKER_CLOSED = "lane.breaker_closed"
    LANE_RESET = "lane.reset"
    LANE_RELEASED = "lane.released"
    LANE_YIELDED = "lane.yielded"
    LANE_LAPSED = "lane.lapsed"
    LANE_LOST = "lane.lost"
    LANE_INVALID = "lane.invalid"
    LANE_NEWER = "lane.newer"
    LANE_UNSERVED = "lane.unserved"
    LANE_RESCUED = "lane.rescued"
    LANE_DEAD = "lane.dead"
    LANE_ROBOTS = "lane.robots"
    LANE_CANCELLED = "lane.cancelled"
    INTAKE_TAKEN = "intake.taken"
    INTAKE_REFUSED = "intake.refused"
    INTAKE_NEWER = "intake.newer"
    INTAKE_FULL = "intake.full"
    WEBHOOK_ENQUEUED = "webhook.enqueued"
    WEBHOOK_REFUSED = "webhook.refused"
    RESULTS_LAGGING = "results.lagging"
    RESULTS_TRIMMED = "results.trimmed"
    POLICY_CHANGED = "policy.changed"
    POLICY_REFUSED = "policy.refused"
    WORKER_STARTED = "worker.started"
    WORKER_NAME_TAKEN = "worker.name_taken"
    WORKERS_DIFFER = "workers.differ"
    WORKER_HEARTBEAT = "worker.heartbeat"
    FLEET_STATUS = "fleet.status"
    WORKER_DRAINING = "worker.draining"
    WORKER_DRAINED = "worker.drained"
    WORKER_UNDRAINED = "worker.undrained"
    WORKER_STOPPING = "worker.stopping"
    WORKER_STOPPED = "worker.stopped"
    WORKER_BUG = "worker.bug"
    REDIS_TROUBLE = "redis.trouble"
    REDIS_BACK = "redis.back"
    REDIS_REFUSAL = "redis.refusal"
    REDIS_LOADING = "redis.loading"
    REDIS_FOREIGN = "redis.foreign"
    DISK_FULL = "disk.full"
    DISK_REFUSED = "disk.refused"
    DISK_REOPENED = "disk.reopened"
    DISK_OK = "disk.ok"
    DISK_IN_THE_WAY = "disk.in_the_way"
    CONSOLE_STARTED = "console.started"
    CONSOLE_STOPPED = "console.stopped"
    CONSOLE_ACTION = "console.action"
    CONSOLE_DENIED = "console.denied"
    CONSOLE_REDIS = "console.redis"
    CONSOLE_BUG = "console.bug"
    LIBRARY = "library"


COMMON_FIELDS = frozenset({"event", "level", "timestamp", "worker"})
"""The fields of every line."""
ADDED_FIELDS = COMMON_FIELDS - {"worker"}
"""The common fields that the processors add to a line."""


NATIVE = "native"
"""The log schema whose names are those of the registry."""


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
    """Encodes lines as JSON: a processor of structlog, and a faster path for lines that are structs.

    rename: returns the fields of a line with the names of another log schema.
    """

    def __init__(
        self,
        writer: LineWriter,
        level: int,
        rename: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._writer = writer
        self._has_info = level <= logging.INFO
        encoder = msgspec.json.Encoder(enc_hook=str)
        self._encode: Callable[[Any], bytes] = encoder.encode
        self._encode_lines: Callable[[Any], bytes] = encoder.encode_lines
        if rename is not None:
            self._encode = lambda line: encoder.encode(rename(line))
            self._encode_lines = lambda lines: encoder.encode_lines(rename(_fields(line)) for line in lines)

    def __call__(self, _: WrappedLogger, level: str, line: EventDict) -> str:
        """Return the line as JSON, with its level and timestamp."""
        COUNTS.events[line["event"]] += 1
        line = {**line, "level": level, "timestamp": timestamp()}
        for tap in TAPS:
            tap(level, [line])
        return safe_json(self._encode(line)).decode()

    def info(self, event: Event, lines: Sequence[msgspec.Struct]) -> None:
        """Write lines of an event of level info, if that level is logged."""
        if self._has_info and lines:
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


def configure(
    stream: TextIO = sys.stderr,
    *,
    pretty: bool | None = None,
    level: str = "info",
    schema: str = NATIVE,
    worker: str = "",
) -> None:
    """Configure structlog and logging to write to the stream from this level on.

    Warnings of libraries are included. pretty: format for reading instead of JSON; None: if the stream is a
    terminal. schema: of the names of fields in JSON. worker: its name, for the warnings of libraries.
    """
    writer, min_level = LineWriter(stream), logging.getLevelNamesMapping()[level.upper()]
    rename = None
    if schema != NATIVE:
        from fetchfleet.worker.observability import log_schemas  # noqa: PLC0415 few workers need it

        rename = log_schemas.renaming(schema)
    processors: list[Processor] = [JsonLines(writer, min_level, rename)]
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
    root.handlers = [_LibraryHandler(worker)]
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
        log.info(event, **{name: value for name, value in _fields(line).items() if name not in ADDED_FIELDS})


def _fields(line: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a line that are set."""
    fields = msgspec.structs.asdict(line)
    return {name: value for name, value in fields.items() if value is not msgspec.UNSET}


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """Return a logger that adds the fields to each line."""
    log: FilteringBoundLogger = structlog.get_logger(**fields).bind()
    return log


class _LibraryHandler(logging.Handler):
    """Logs warnings of libraries as one event. Their INFO lines contain URLs with secrets and are dropped."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        left_out = self._repeats.admit((record.name, str(record.msg).partition("\n")[0]), mono_s())
        if left_out is not None:
            log = get_logger(worker=self._worker, library=record.name)
            log.warning(Event.LIBRARY, message=redact.text(record.getMessage()), **suppressed(left_out))


def suppressed(left_out: int) -> dict[str, int]:
    """Return the field `suppressed` of a line: how many lines of its condition were left out; {} if none."""
    return {"suppressed": left_out} if left_out else {}


def trace_fields(fetch: Fetch) -> dict[str, str]:
    """Return the field `trace_id` for the log lines of a fetch; {} if it has no trace."""
    return {} if fetch.traceparent is None else {"trace_id": trace_context.trace_id(fetch.traceparent)}
