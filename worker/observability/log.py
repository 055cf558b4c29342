"""The log events, and their output: JSON, or pretty on a terminal."""

import asyncio
import logging
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
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
    """The closed list of events.

    A condition that lasts is logged at once, then once a minute (worker/observability/repeats.py).
    """

    FETCH_FINISHED = "fetch.finished"
    """The result of a fetch is in Redis; exactly one line a fetch."""
    FETCH_RETRY = "fetch.retry"
    """An attempt failed and the fetch waits for the next: wait_s, reason."""
    FETCH_LOST = "fetch.lost"
    """Fetches whose entries were lost in Redis ended after their deadlines: batch, fetches."""
    FETCH_EXCHANGE = "fetch.exchange"
    """A request was answered: status, version, ms, whether the connection was reused; at level debug."""
    FETCH_BUG = "fetch.bug"
    """An internal error; the fetch goes on as after a failed attempt."""
    LANE_TAKEN = "lane.taken"
    LANE_UNVERIFIED_TLS = "lane.unverified_tls"
    """The policy says `verify = false`: no certificate of the host is verified. Logged when the lane is
    acquired."""
    LANE_COOLING = "lane.cooling"
    """The host asked the client to back off, until_ms (Unix)."""
    LANE_BREAKER_OPEN = "lane.breaker_open"
    LANE_BREAKER_HALF_OPEN = "lane.breaker_half_open"
    LANE_BREAKER_CLOSED = "lane.breaker_closed"
    LANE_RESET = "lane.reset"
    """An operator reset the lane: what of its host's state ended, and by whom."""
    LANE_RELEASED = "lane.released"
    """The lane was given back: whether fetches wait, why and until when (due_in_ms)."""
    LANE_YIELDED = "lane.yielded"
    """The worker has more than its share of lanes and gives this one to another."""
    LANE_LAPSED = "lane.lapsed"
    """The lease ended by the worker's own clock, because Redis does not answer; the lane's work stops."""
    LANE_LOST = "lane.lost"
    """Another worker has the lane, which was not given back; the lane's work stops."""
    LANE_INVALID = "lane.invalid"
    """An entry of the lane could not be read; it is a dead letter."""
    LANE_NEWER = "lane.newer"
    """A fetch in the lane was written for newer workers and is left to them."""
    LANE_UNSERVED = "lane.unserved"
    """A fetch in the lane needs what no live worker can do, and waits for one that can."""
    LANE_RESCUED = "lane.rescued"
    """A sweep reclaimed a lane whose owner died or whose notification was lost."""
    LANE_DEAD = "lane.dead"
    """The host stopped answering; the fetches that waited for it failed."""
    LANE_ROBOTS = "lane.robots"
    """An origin's robots.txt was requested; the status or the reason."""
    LANE_CANCELLED = "lane.cancelled"
    """The fetches of cancelled batches in the lane have their results."""
    INTAKE_TAKEN = "intake.taken"
    """Messages of the inbox are enqueued."""
    INTAKE_REFUSED = "intake.refused"
    """A message or an arq job was invalid; it is a dead letter."""
    INTAKE_NEWER = "intake.newer"
    """Messages or arq jobs of an unsupported version wait for a newer worker."""
    INTAKE_FULL = "intake.full"
    """The inbox waits: the backlog limit or Redis's memory is reached."""
    RESULTS_LAGGING = "results.lagging"
    """Results that a consumer group has not read will soon be trimmed."""
    RESULTS_TRIMMED = "results.trimmed"
    """Results that a consumer group has not acknowledged are trimmed."""
    POLICY_CHANGED = "policy.changed"
    """Policy tables set at run time are in force."""
    POLICY_REFUSED = "policy.refused"
    """The policy tables in Redis do not fit this worker's policy file; the previous ones stay in force."""
    WORKER_STARTED = "worker.started"
    WORKER_NAME_TAKEN = "worker.name_taken"
    """Other live workers have this worker's name (FETCHFLEET_WORKER_ID); at most once a minute."""
    WORKERS_DIFFER = "workers.differ"
    """Live workers differ in their sink, in folder, egress rules or policy file: a fetch that some of them
    cannot do waits for another."""
    WORKER_HEARTBEAT = "worker.heartbeat"
    """Statistics, every ten seconds and at the end: connections, waits, loop lag, memory, open files."""
    WORKER_DRAINING = "worker.draining"
    """An operator drains the worker: it gives its lanes back and takes nothing in."""
    WORKER_DRAINED = "worker.drained"
    """The drained worker holds no lane any more."""
    WORKER_UNDRAINED = "worker.undrained"
    """An operator has ended the drain: the worker takes lanes again."""
    WORKER_STOPPING = "worker.stopping"
    WORKER_STOPPED = "worker.stopped"
    WORKER_BUG = "worker.bug"
    """An internal error ended one of the worker's own loops; it is started again."""
    REDIS_TROUBLE = "redis.trouble"
    """Redis did not answer; the worker keeps what it holds and tries again."""
    REDIS_BACK = "redis.back"
    """Redis has answered every call for some seconds: how long the trouble lasted, and how many failed."""
    REDIS_REFUSAL = "redis.refusal"
    """Redis rejects the worker's password or denies a command; the worker keeps trying."""
    REDIS_LOADING = "redis.loading"
    """Redis is loading its data; the worker starts when that is done."""
    REDIS_FOREIGN = "redis.foreign"
    """Another program wrote to one of the fleet's keys; the value is a dead letter."""
    DISK_FULL = "disk.full"
    """No space for bodies: the worker starts no fetch. Wanting: bytes, files, or writing if the disk is
    read-only or refuses data (a quota, a failing disk)."""
    DISK_REFUSED = "disk.refused"
    """Bodies cannot be stored although the disk is well: the worker lacks descriptors, memory or permissions.
    It starts no fetch."""
    DISK_REOPENED = "disk.reopened"
    """The out folder was moved, removed or replaced; bodies go to the folder that has its path now."""
    DISK_OK = "disk.ok"
    """Bodies can be stored again: the worker starts fetches."""
    DISK_IN_THE_WAY = "disk.in_the_way"
    """A link, folder or file in the out folder blocks the path of a body; error names it."""
    LIBRARY = "library"
    """A warning of a library."""


OF_EVERY_LINE = frozenset({"event", "level", "timestamp", "worker"})
"""The fields that each line has."""
ADDED_FIELDS = OF_EVERY_LINE - {"worker"}
"""Those that structlog's chain adds."""


class LineWriter:
    """Writes lines to a stream in their order: those of one iteration of the event loop together.

    A line of level warning or above is written at once, and with it those before. Lines that the stream does
    not take, as on a full disk, are lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._flushes_in: asyncio.AbstractEventLoop | None = None
        """The event loop in whose next iteration the lines are written."""
        weakref.finalize(self, _write, stream, self._lines)  # at exit too

    def info(self, line: str) -> None:
        """Write one line or several in the next iteration of the event loop, or at once if none runs here."""
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
        """Write a line at once."""
        self._lines.append(line)
        self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        self._flushes_in = None
        with self._lock:
            _write(self._stream, self._lines)

    debug = info
    error = critical = warning


def _write(stream: TextIO, lines: list[str]) -> None:
    """Write lines and remove them from the list, to which other threads may append meanwhile."""
    count = len(lines)
    if count == 0:
        return
    text = "\n".join([*lines[:count], ""])
    del lines[:count]
    with suppress(OSError):
        stream.write(text)
        stream.flush()


class JsonLines:
    """Encodes lines as JSON: the processor of structlog, and the short way of lines that are structs."""

    def __init__(self, writer: LineWriter, level: int) -> None:
        self._writer = writer
        self._has_info = level <= logging.INFO
        encoder = msgspec.json.Encoder(enc_hook=str)
        self._encode, self._encode_lines = encoder.encode, encoder.encode_lines

    def __call__(self, _: WrappedLogger, level: str, line: EventDict) -> str:
        """Return the line with its level and its time."""
        return safe_json(self._encode({**line, "level": level, "timestamp": timestamp()})).decode()

    def info(self, lines: Sequence[msgspec.Struct]) -> None:
        """Write lines of level info, unless such lines are left out."""
        if self._has_info:
            self._writer.info(safe_json(self._encode_lines(lines)[:-1]).decode())


def timestamp() -> str:
    """Return the time in UTC as ISO 8601."""
    second, us = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_up_to_the_second(second)}.{us:06d}Z"


@lru_cache(maxsize=1)
def _up_to_the_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def configure(stream: TextIO = sys.stderr, *, pretty: bool | None = None, level: str = "info") -> None:
    """Write every line from that level on to the stream, the libraries' warnings included.

    pretty: for people instead of JSON; None: if the stream is a terminal.
    """
    writer, least = LineWriter(stream), logging.getLevelNamesMapping()[level.upper()]
    processors: list[Processor] = [JsonLines(writer, least)]
    if stream.isatty() if pretty is None else pretty:
        timestamps = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        renderer: Processor = structlog.dev.ConsoleRenderer(pad_event_to=20)
        processors = [structlog.processors.add_log_level, timestamps, _shown_fields, renderer]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(logging.WARNING)


def _shown_fields(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Make the text of a line safe to show; the values of other types are shown by their `repr`, which is."""
    return {name: shown(value) if isinstance(value, str) else value for name, value in line.items()}


def write_info(event: Event, lines: Sequence[msgspec.Struct]) -> None:
    """Write lines of level info that are structs: with the fields of every line, in the order of the class.

    As JSON they are encoded together, not each through structlog's chain.
    """
    first, *_ = structlog.get_config()["processors"]
    if isinstance(first, JsonLines):
        first.info(lines)
        return
    log = get_logger()
    for line in lines:
        fields = {name: of for name, of in msgspec.structs.asdict(line).items() if of is not msgspec.UNSET}
        log.info(event, **{name: of for name, of in fields.items() if name not in ADDED_FIELDS})


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """Return a logger whose lines all carry the fields."""
    log: FilteringBoundLogger = structlog.get_logger(**fields).bind()
    return log


class _LibraryHandler(logging.Handler):
    """Logs the libraries' warnings as one event. Their INFO lines hold URLs with secrets and are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        left_out = self._repeats.admit((record.name, str(record.msg).partition("\n")[0]), mono_s())
        if left_out is not None:
            log = get_logger(library=record.name)
            log.warning(Event.LIBRARY, message=redact.text(record.getMessage()), **suppressed(left_out))


def suppressed(left_out: int) -> dict[str, int]:
    """Return the field that says how many lines of a lasting condition were not written, if any."""
    return {"suppressed": left_out} if left_out else {}


def trace_fields(fetch: Fetch) -> dict[str, str]:
    """Return the trace fields of every log line of a fetch; empty if it has no trace."""
    return {} if fetch.traceparent is None else {"trace_id": trace_context.trace_id(fetch.traceparent)}
