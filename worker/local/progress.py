"""The progress display: live on a terminal, plain lines elsewhere, a summary at the end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

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
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, WorkerReport, lack_text, snapshot
from fetchfleet.worker.observability.percentiles import Rate
from fetchfleet.worker.util import aio
from fetchfleet.worker.util.clock import mono_s

LIVE_EVERY_S = 0.5
PLAIN_EVERY_S = 5.0
LANES_SHOWN = 16
WAITS_NAMED = 4
LACKS_NAMED = 2
HOSTS_NAMED = 3


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


class Look(NamedTuple):
    """The state of a batch at one moment."""

    counts: Counts
    lanes: Sequence[LaneSnapshot] = ()
    done_per_s: float = 0.0
    bytes_per_s: float = 0.0
    elapsed_s: float = 0.0
    lacks: Sequence[str] = ()
    """The workers that cannot store bodies, with what each lacks."""
    worst: Sequence[tuple[str, int]] = ()
    """The hosts with the most failed fetches, and their number."""

    @property
    def left_s(self) -> float | None:
        """The estimated time until the batch ends, None while nothing ends."""
        left = self.counts.total - self.counts.done
        return left / self.done_per_s if left and self.done_per_s else None


class Tally:
    """The results so far, counted."""

    def __init__(self) -> None:
        self.started_s = mono_s()
        self.ends: Counter[tuple[str, str]] = Counter()
        self.failed_hosts: Counter[str] = Counter()
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
            if result.outcome == Outcome.FAILED:
                self.failed_hosts[urlsplit(result.url).netloc] += 1
            if result.attempts > 1:
                self.retries += result.attempts - 1
            self.throttles += result.throttles
            self.interruptions += result.interruptions

    def worst(self) -> list[tuple[str, int]]:
        """Return the hosts with the most failed fetches, and their number."""
        return self.failed_hosts.most_common(HOSTS_NAMED)


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
        self._received, self._done = Rate(), Rate()
        self._received.add(self.tally.started_s, 0)
        self._done.add(self.tally.started_s, self.tally.done_before or 0)

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show it while the block runs."""

        async def show_live() -> None:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                while True:
                    with suppress(RedisError, OSError):
                        live.update(picture(await self._look(), self._console.height), refresh=True)
                    await asyncio.sleep(LIVE_EVERY_S)

        async def show_lines() -> None:
            while True:
                await asyncio.sleep(PLAIN_EVERY_S)
                with suppress(RedisError, OSError):
                    self._console.print(plain_line(await self._look()), soft_wrap=True)

        showing = asyncio.create_task(show_live() if self._console.is_terminal else show_lines())
        try:
            yield
        finally:
            await aio.end(showing)

    async def _look(self) -> Look:
        counts = await self._batch.counts()
        lanes, lacks, received_bytes = list[LaneSnapshot](), list[str](), counts.bytes
        if self._may_see_lanes:
            try:
                fleet = await snapshot(self._redis)
                lanes, lacks, received_bytes = fleet.lanes, lacks_of(fleet.workers), fleet.received_bytes
            except NoPermissionError:  # a producer's user sees its batch only (ops/users.acl)
                self._may_see_lanes = False
        now_s = mono_s()
        return Look(
            counts,
            lanes,
            self._done.add(now_s, counts.done),
            self._received.add(now_s, received_bytes),
            now_s - self.tally.started_s,
            lacks,
            self.tally.worst(),
        )


def lacks_of(workers: Mapping[str, WorkerReport]) -> list[str]:
    """Return for each worker that cannot store bodies what it lacks."""
    return [
        f"{name} cannot store bodies, it lacks {lack_text(of.lacking, of.lacking_error)}"
        for name, of in sorted(workers.items())
        if of.lacking
    ]


def picture(look: Look, height: int) -> RenderableType:
    """Return the live display: progress, problems, then the lanes with the most to do. It fits 80 columns."""
    counts = look.counts
    head = Table.grid(padding=(0, 2))
    numbers = f"{counts.done:,} of {counts.total:,}"
    failed = Text(f"{counts.failed:,} failed", style="red" if counts.failed else "dim")
    head.add_row(ProgressBar(total=max(counts.total, 1), completed=counts.done, width=24), numbers, failed)
    rates = (
        f"{look.done_per_s:,.0f} fetches/s, {size(look.bytes_per_s)}/s, {duration(look.elapsed_s)} elapsed"
    )
    if look.left_s is not None:
        rates += f", about {duration(look.left_s)} left"
    problems = [Text(shown(lack), style="red") for lack in look.lacks[:LACKS_NAMED]]
    if look.worst:
        problems.append(
            Text(
                shown(f"most failures: {_hosts(look.worst)}"), style="red", no_wrap=True, overflow="ellipsis"
            )
        )
    rows = max(3, min(LANES_SHOWN, height - 7 - len(problems)))
    table = Rows(box=None, pad_edge=False, header_style="dim")
    table.add_column("host", no_wrap=True, max_width=36)
    table.add_column("in flight", justify="right")
    table.add_column("waiting", justify="right")
    table.add_column("", no_wrap=True)
    for lane in look.lanes[:rows]:
        table.add_row(lane.name, str(lane.in_flight), f"{lane.waiting:,}", why(lane))
    if len(look.lanes) > rows:
        table.add_row(f"and {len(look.lanes) - rows} more hosts", "", "", "")
    return Group(head, Text(rates), *problems, table)


def why(lane: LaneSnapshot) -> str:
    """Return why a lane waits and for how long."""
    if not lane.why:
        return ""
    return f"{lane.why}, {lane.opens_in_s:.1f} s" if lane.opens_in_s else lane.why


def plain_line(look: Look) -> str:
    """Return one line for a log: progress, rates, problems, and the lanes that wait, with the reason."""
    waits = [f"{lane.name} ({lane.waiting}: {why(lane)})" for lane in look.lanes if lane.why]
    more = f" and {len(waits) - WAITS_NAMED} more" if len(waits) > WAITS_NAMED else ""
    parts = [
        f"{look.elapsed_s:.0f} s: {look.counts.done} of {look.counts.total} done",
        f"{look.counts.failed} failed",
        f"{sum(lane.in_flight for lane in look.lanes)} in flight",
        f"{look.done_per_s:.0f} fetches/s",
        f"{size(look.bytes_per_s)}/s",
    ]
    if look.left_s is not None:
        parts.append(f"about {duration(look.left_s)} left")
    parts += look.lacks[:LACKS_NAMED]
    if look.worst:
        parts.append(f"most failures: {_hosts(look.worst)}")
    if waits:
        parts.append(f"waiting: {', '.join(waits[:WAITS_NAMED])}{more}")
    return shown(", ".join(parts))


def _hosts(worst: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{host} ({failed:,})" for host, failed in worst)


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
    if worst := tally.worst():
        table.add_section()
        for host, failed in worst:
            table.add_row("most failures", host, f"{failed:,}", style="red")
    return table


def duration(seconds: float) -> str:
    """Format a duration for people: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Format a number of bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
