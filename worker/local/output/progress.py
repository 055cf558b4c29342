"""The progress display: live on a terminal, one line at a time elsewhere, and a summary at the end."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.batch import Batch, Counts
from fetchfleet.jobs.contract.result import Outcome
from fetchfleet.jobs.contract.safe_text import UNSAFE, shown, shown_lines
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, WorkerReport, lack_text, snapshot
from fetchfleet.worker.local.run_record import Tally
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.percentiles import Rate
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.quantities import time_left_s

LIVE_EVERY_S = 0.5
LINE_EVERY_S = 5.0
LANES_SHOWN = 16
LANES_READ = 500
WAITS_NAMED = 4
LACKS_NAMED = 2
FAILURE_CHARS = 80
MAX_HOSTS = 2_000
"""The maximum number of hosts of a batch to read. With more, the time left ignores waits for hosts."""


class SafeConsole(Console):
    """A console without markup and emoji codes, which escapes unsafe characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text of a string, a cell or a title. Unsafe characters are escaped; line breaks stay."""
        return super().render_str(shown_lines(text) if UNSAFE.search(text) else text, **options)


class SafeTable(Table):
    """A table whose cells are one line each, with unsafe characters escaped."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row. Strings are escaped."""
        safe = [shown(cell) if isinstance(cell, str) and UNSAFE.search(cell) else cell for cell in cells]
        super().add_row(*safe, **options)


class StandardError(SafeConsole):
    """Standard error. A full disk or a closed pipe does not end the command."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Console does, and drop the text after an error."""
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Print nothing more. The method of rich would end the process."""
        self.quiet = True


class BatchProgress(NamedTuple):
    """The progress of a batch at one time, with the state of the fleet."""

    counts: Counts
    lanes: Sequence[LaneSnapshot] = ()
    """The lanes that are not idle, those with the most waiting fetches first."""
    done_per_s: float = 0.0
    bytes_per_s: float = 0.0
    elapsed_s: float = 0.0
    """The time since this process began to follow the batch."""
    lacks: Sequence[str] = ()
    """A sentence for each worker that cannot store bodies."""
    worst: Sequence[tuple[str, int]] = ()
    """The hosts with the most failed fetches, and the number of these."""
    hosts: Collection[str] | None = None
    """The hosts of the batch; None if it has every lane."""

    @property
    def left_s(self) -> float | None:
        """The estimated time until the batch ends; None if no fetch has ended recently."""
        waits_s = (
            lane.known_wait_s
            for lane in self.lanes
            if lane.waiting and (self.hosts is None or lane.name in self.hosts)
        )
        return time_left_s(self.counts.total - self.counts.done, [self.done_per_s], waits_s) or None


class Progress:
    """The display of a batch's progress on standard error. The caller adds results to `tally`."""

    def __init__(
        self,
        redis: Redis,
        batch: Batch,
        console: Console | None = None,
        tally: Tally | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """alone: the fleet has no other batch."""
        self.tally = tally or Tally()
        self._alone = alone
        self._redis = redis
        self._batch = batch
        self._console = console or StandardError()
        self._may_see_lanes = True
        self._received, self._done = Rate(), Rate()
        self._received.add(self.tally.started_s, 0)
        self._done.add(self.tally.started_s, self.tally.done_before or 0)

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show the progress while the block runs."""

        async def show_live() -> None:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                while True:
                    with suppress(RedisError, OSError):
                        live.update(live_view(await self._read(), self._console.height), refresh=True)
                    await asyncio.sleep(LIVE_EVERY_S)

        async def show_lines() -> None:
            while True:
                await asyncio.sleep(LINE_EVERY_S)
                with suppress(RedisError, OSError):
                    self._console.print(progress_line(await self._read()), soft_wrap=True)

        showing = asyncio.create_task(show_live() if self._console.is_terminal else show_lines())
        try:
            yield
        finally:
            await aio.end(showing)

    async def _read(self) -> BatchProgress:
        counts = await self._batch.counts()
        lanes, lacks, received_bytes = list[LaneSnapshot](), list[str](), counts.bytes
        hosts: Collection[str] | None = None
        if self._may_see_lanes:
            try:
                fleet = await snapshot(self._redis, LANES_READ)
                lanes, lacks, received_bytes = fleet.lanes, lacks_of(fleet.workers), fleet.received_bytes
                hosts = None if self._alone else await self._hosts()
            except NoPermissionError:  # the user of a producer may read its batch only (ops/users.acl)
                self._may_see_lanes = False
        now_s = mono_s()
        return BatchProgress(
            counts,
            lanes,
            self._done.add(now_s, counts.done),
            self._received.add(now_s, received_bytes),
            now_s - self.tally.started_s,
            lacks,
            self.tally.worst(),
            hosts,
        )

    async def _hosts(self) -> Collection[str]:
        """Return the hosts that have had fetches of the batch; none if they are more than MAX_HOSTS."""
        key = keys.batch_lanes(self._batch.id)
        if await self._redis.scard(key) > MAX_HOSTS:  # type: ignore[misc]
            return ()
        return {text_of(name) for name in await self._redis.smembers(key)}  # type: ignore[misc]


def lacks_of(workers: Mapping[str, WorkerReport]) -> list[str]:
    """Return a sentence for each worker that cannot store bodies."""
    return [
        f"{name} cannot store bodies: it lacks {lack_text(of.lacking, of.lacking_error)}"
        for name, of in sorted(workers.items())
        if of.lacking
    ]


def live_view(progress: BatchProgress, height: int) -> RenderableType:
    """Return the live display: progress, problems, and the lanes with the most waiting fetches.

    It fits 80 columns and the height, in lines.
    """
    counts = progress.counts
    head = Table.grid(padding=(0, 2))
    numbers = f"{counts.done:,} of {counts.total:,}"
    failed = Text(f"{counts.failed:,} failed", style="red" if counts.failed else "dim")
    head.add_row(ProgressBar(total=max(counts.total, 1), completed=counts.done, width=24), numbers, failed)
    rates = (
        f"{progress.done_per_s:,.0f} fetches/s, {size(progress.bytes_per_s)}/s,"
        f" {duration(progress.elapsed_s)} elapsed"
    )
    if progress.left_s is not None:
        rates += f", about {duration(progress.left_s)} left"
    problems = [Text(shown(lack), style="red") for lack in progress.lacks[:LACKS_NAMED]]
    if progress.worst:
        worst = shown(f"most failures: {_hosts(progress.worst)}")
        problems.append(Text(worst, style="red", no_wrap=True, overflow="ellipsis"))
    rows = max(3, min(LANES_SHOWN, height - 7 - len(problems)))
    table = SafeTable(box=None, pad_edge=False, header_style="dim")
    table.add_column("host", no_wrap=True, max_width=36)
    table.add_column("in flight", justify="right")
    table.add_column("waiting", justify="right")
    table.add_column("")
    for lane in progress.lanes[:rows]:
        why = Text(shown(wait_text(lane)), no_wrap=True, overflow="ellipsis")
        table.add_row(lane.name, lane.in_flight_text, f"{lane.waiting:,}", why)
    if len(progress.lanes) > rows:
        table.add_row(f"and {len(progress.lanes) - rows} more hosts", "", "", "")
    return Group(head, Text(rates), *problems, table)


def wait_text(lane: LaneSnapshot) -> str:
    """Return the reason a lane waits, the time until it opens, and the last failure of its host.

    Empty if it does not wait.
    """
    if not lane.why:
        return ""
    wait = "" if lane.known_wait_s is None else f", {lane.known_wait_s:.1f} s"
    last = lane.last_failure
    if len(last) > FAILURE_CHARS:
        last = f"{last[:FAILURE_CHARS]}…"
    return f"{lane.why}{wait}{f'; last: {last}' if last else ''}"


def progress_line(progress: BatchProgress) -> str:
    """Return one line: counts, rates, problems, and the lanes that wait, with the reason."""
    waits = [f"{lane.name} ({lane.waiting}: {wait_text(lane)})" for lane in progress.lanes if lane.why]
    more = f" and {len(waits) - WAITS_NAMED} more" if len(waits) > WAITS_NAMED else ""
    parts = [
        f"{progress.elapsed_s:.0f} s: {progress.counts.done} of {progress.counts.total} done",
        f"{progress.counts.failed} failed",
        f"{sum(lane.in_flight for lane in progress.lanes)} in flight",
        f"{progress.done_per_s:.0f} fetches/s",
        f"{size(progress.bytes_per_s)}/s",
    ]
    if progress.left_s is not None:
        parts.append(f"about {duration(progress.left_s)} left")
    parts += progress.lacks[:LACKS_NAMED]
    if progress.worst:
        parts.append(f"most failures: {_hosts(progress.worst)}")
    if waits:
        parts.append(f"waiting: {', '.join(waits[:WAITS_NAMED])}{more}")
    return shown(", ".join(parts))


def _hosts(worst: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{host} ({failed:,})" for host, failed in worst)


def summary(counts: Counts, tally: Tally, elapsed_s: float, skipped: int = 0) -> Table:
    """Return the table that ends a run. skipped: the number of invalid lines that were skipped."""
    title = f"{counts.done:,} of {counts.total:,}"
    if tally.done_before is None:
        title += f" fetches in {elapsed_s:.1f} s"
    else:
        title += f"; {counts.done - tally.done_before:,} in this part, {elapsed_s:.1f} s"
    table = SafeTable(title=title)
    table.add_column("outcome")
    table.add_column("reason")
    table.add_column("fetches", justify="right")
    if tally.notes:
        table.add_column("note of one")
    for (outcome, reason), number in sorted(tally.ends.items(), key=lambda end: -end[1]):
        style = "" if outcome != Outcome.FAILED else "red"
        note = [redact.text(of)] if (of := tally.notes.get((outcome, reason))) else []
        table.add_row(outcome, reason, f"{number:,}", *note, style=style)
    table.add_section()
    table.add_row("bytes stored", "", size(counts.bytes))
    table.add_row("retries", "", f"{tally.retries:,}")
    table.add_row("throttles waited out", "", f"{tally.throttles:,}")
    if tally.interruptions:
        table.add_row("interruptions", "", f"{tally.interruptions:,}")
    if skipped:
        table.add_row("lines skipped", "invalid", f"{skipped:,}", style="red")
    if worst := tally.worst():
        table.add_section()
        for host, failed in worst:
            table.add_row("most failures", host, f"{failed:,}", style="red")
    return table


def duration(seconds: float) -> str:
    """Format a duration as 42 s, 3 min 5 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: float) -> str:
    """Format a number of bytes, with units in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
