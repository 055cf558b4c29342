"""The progress display: live on a terminal, plain lines elsewhere, a summary at the end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fetchfleet.jobs.client.batch import Batch, Counts
from fetchfleet.jobs.contract.model import Outcome, Result
from fetchfleet.jobs.contract.safe_text import UNSAFE, shown, shown_lines
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, WorkerReport, lack_in_words, snapshot
from fetchfleet.worker.observability.percentiles import Rate
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

LIVE_EVERY_S = 0.5
PLAIN_EVERY_S = 5.0
LANES_SHOWN = 16
WAITS_NAMED = 4
LACKS_NAMED = 2


class Screen(Console):
    """A console that shows text as it is: no markup, no emoji codes, and unsafe characters escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a string, also one in a cell or a title, into text to show; its line breaks stay."""
        return super().render_str(shown_lines(text) if UNSAFE.search(text) else text, **options)


class Rows(Table):
    """A table whose cells are one line each, safe to show."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; strings are escaped."""
        safe = [shown(cell) if isinstance(cell, str) and UNSAFE.search(cell) else cell for cell in cells]
        super().add_row(*safe, **options)


class StandardError(Screen):
    """Standard error, for people. A full disk or a reader that has gone does not end the command."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def print(self, *what: Any, **options: Any) -> None:
        """Print as Console does; an error drops the text."""
        with suppress(OSError):
            super().print(*what, **options)

    def on_broken_pipe(self) -> None:
        """Print no more: rich would end the process."""
        self.quiet = True


class Tally:
    """The results so far, counted."""

    def __init__(self) -> None:
        self.started_s = mono_s()
        self.ends: Counter[tuple[str, str]] = Counter()
        self.retries = self.throttles = self.interruptions = 0
        self.read = 0
        """The results that this process has counted."""
        self.done_before: int | None = None
        """The results that earlier parts of a run have seen; None in its first part."""

    def complete(self, counts: Counts) -> None:
        """Add results of earlier parts of which only the outcome is known: their part was killed."""
        for outcome in Outcome:
            known = sum(count for (of, _), count in self.ends.items() if of == outcome)
            if (missing := getattr(counts, outcome.value) - known) > 0:
                self.ends[outcome.value, "of an earlier part"] += missing

    def add(self, *results: Result) -> None:
        """Count results."""
        self.read += len(results)
        self.ends.update([(result.outcome, result.reason or "") for result in results])
        for result in results:
            if result.attempts > 1:
                self.retries += result.attempts - 1
            self.throttles += result.throttles
            self.interruptions += result.interruptions


class Progress:
    """Shows the progress of a batch on standard error. The caller adds its results to `tally`."""

    def __init__(
        self, redis: Redis, batch: Batch, console: Console | None = None, tally: Tally | None = None
    ) -> None:
        self.tally = tally or Tally()
        self._redis = redis
        self._batch = batch
        self._console = console or StandardError()
        self._may_see_lanes = True
        self._rate: Rate | None = None

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show it while the block runs."""

        async def show_live() -> None:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                while True:
                    with suppress(RedisError, OSError):
                        counts, lanes, rate, elapsed_s, lacks = await self._look()
                        height = self._console.height
                        live.update(picture(counts, lanes, rate, elapsed_s, height, lacks), refresh=True)
                    await asyncio.sleep(LIVE_EVERY_S)

        async def show_lines() -> None:
            while True:
                await asyncio.sleep(PLAIN_EVERY_S)
                with suppress(RedisError, OSError):
                    line = plain_line(*await self._look())
                    self._console.print(line, soft_wrap=True)

        showing = asyncio.create_task(show_live() if self._console.is_terminal else show_lines())
        try:
            yield
        finally:
            await aio.end(showing)

    async def _look(self) -> tuple[Counts, list[LaneSnapshot], float, float, list[str]]:
        """Return counts, lanes, received bytes a second, the seconds since the start, and `lacks`."""
        if self._rate is None:
            self._rate = Rate()
            self._rate.add(self.tally.started_s, 0)
        counts = await self._batch.counts()
        lanes, lacks, received_bytes = list[LaneSnapshot](), list[str](), counts.bytes
        if self._may_see_lanes:
            try:
                fleet = await snapshot(self._redis)
                lanes, lacks, received_bytes = fleet.lanes, lacks_of(fleet.workers), fleet.received_bytes
            except NoPermissionError:  # a producer's user sees its batch only (ops/users.acl)
                self._may_see_lanes = False
        now_s = mono_s()
        return counts, lanes, self._rate.add(now_s, received_bytes), now_s - self.tally.started_s, lacks


def lacks_of(workers: Mapping[str, WorkerReport]) -> list[str]:
    """Return for each worker that cannot store bodies what it lacks."""
    return [
        f"{name} cannot store bodies, it lacks {lack_in_words(of.lacking, of.lacking_error)}"
        for name, of in sorted(workers.items())
        if of.lacking
    ]


def picture(
    counts: Counts,
    lanes: list[LaneSnapshot],
    rate: float,
    elapsed_s: float,
    height: int,
    lacks: Sequence[str] = (),
) -> RenderableType:
    """Return the live display: a bar, what the workers lack, then the lanes with the most to do."""
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(counts.total, 1), completed=counts.done, width=40)
    failed = Text(f"{counts.failed} failed", style="red" if counts.failed else "dim")
    numbers = f"{counts.done:,} of {counts.total:,}"
    head.add_row(bar, numbers, failed, f"{size(rate)}/s", f"{elapsed_s:.0f} s")
    rows = max(3, min(LANES_SHOWN, height - 6))
    table = Rows(box=None, pad_edge=False, header_style="dim")
    table.add_column("lane", no_wrap=True)
    table.add_column("in flight", justify="right")
    table.add_column("waiting", justify="right")
    table.add_column("", no_wrap=True)
    for lane in lanes[:rows]:
        table.add_row(lane.name, str(lane.in_flight), f"{lane.waiting:,}", why(lane))
    if len(lanes) > rows:
        table.add_row(f"and {len(lanes) - rows} more lanes", "", "", "")
    return Group(head, *(Text(shown(lack), style="red") for lack in lacks[:LACKS_NAMED]), table)


def why(lane: LaneSnapshot) -> str:
    """Return why a lane waits and for how long."""
    if not lane.why:
        return ""
    return f"{lane.why}, {lane.opens_in_s:.1f} s" if lane.opens_in_s else lane.why


def plain_line(
    counts: Counts, lanes: list[LaneSnapshot], rate: float, elapsed_s: float, lacks: Sequence[str] = ()
) -> str:
    """Return one line for a log: progress, rate, what workers lack, and which lanes wait and why."""
    waits = [f"{lane.name} ({lane.waiting}: {why(lane)})" for lane in lanes if lane.why]
    more = f" and {len(waits) - WAITS_NAMED} more" if len(waits) > WAITS_NAMED else ""
    in_flight = sum(lane.in_flight for lane in lanes)
    parts = [
        f"{elapsed_s:.0f} s: {counts.done} of {counts.total} done",
        f"{counts.failed} failed",
        f"{in_flight} in flight",
        f"{size(rate)}/s",
    ]
    parts += lacks[:LACKS_NAMED]
    if waits:
        parts.append(f"waiting: {', '.join(waits[:WAITS_NAMED])}{more}")
    return shown(", ".join(parts))


def summary(counts: Counts, tally: Tally, elapsed_s: float, skipped: int = 0) -> Table:
    """Return the table that a run ends with. skipped: the lines of the list that were not enqueued."""
    title = f"{counts.done:,} of {counts.total:,}"
    if tally.done_before is None:
        title += f" fetches in {elapsed_s:.1f} s"
    else:
        title += f"; {counts.done - tally.done_before:,} in this part, {elapsed_s:.1f} s"
    table = Rows(title=title)
    table.add_column("outcome")
    table.add_column("reason")
    table.add_column("fetches", justify="right")
    for (outcome, reason), count in sorted(tally.ends.items(), key=lambda end: -end[1]):
        style = "" if outcome != Outcome.FAILED else "red"
        table.add_row(outcome, reason, f"{count:,}", style=style)
    table.add_section()
    table.add_row("bytes stored", "", size(counts.bytes))
    table.add_row("retries", "", f"{tally.retries:,}")
    table.add_row("throttles waited out", "", f"{tally.throttles:,}")
    if tally.interruptions:
        table.add_row("interruptions", "", f"{tally.interruptions:,}")
    if skipped:
        table.add_row("lines skipped", "invalid", f"{skipped:,}", style="red")
    return table


def size(count: float) -> str:
    """Format a number of bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
