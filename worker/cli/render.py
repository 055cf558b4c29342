"""How the operating commands show what they found to people."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fetchfleet.jobs.client.batch import BatchSummary
from fetchfleet.jobs.client.dead_letters import DeadLetter
from fetchfleet.jobs.contract.model import Result
from fetchfleet.worker.inspect.fleet_status import FleetStatus, WorkerStatus
from fetchfleet.worker.inspect.snapshot import LaneSnapshot
from fetchfleet.worker.local.progress import size
from fetchfleet.worker.observability import redact

LANES_SHOWN = 30


def status_of(status: FleetStatus) -> RenderableType:
    """Workers, backlog, then the lanes with the most to do."""
    rate = f"{status.finished_per_s:.1f} fetches/s, {size(status.received_bytes_per_s)}/s"
    oldest = f", the oldest has waited {age(status.oldest_s)}" if status.oldest_s is not None else ""
    head = [
        f"{count(len(status.workers), 'worker')}, {rate}",
        f"{count(status.backlog, 'fetch', 'fetches')} to do in {count(status.lanes_in_all, 'lane')}{oldest}",
        f"{count(status.inbox, 'message')} in the inbox, {count(status.dead, 'dead letter')}",
    ]
    if not status.workers and (status.backlog or status.inbox):
        head.append("[red]no worker is running; start one: fetchfleet worker[/red]")
    parts: list[RenderableType] = ["\n".join(head)]
    if status.workers:
        parts.append(_workers(status.workers))
    if status.lanes:
        parts.append(_lanes(status.lanes, status.lanes_in_all))
    return Group(*parts)


def batches_of(batches: Iterable[BatchSummary], now_ms: int) -> Table:
    """One line a batch."""
    table = _table("batch", "age", "state", "total", "done", "stored", "failed", "cancelled", "bytes")
    for batch in batches:
        counts = batch.counts
        table.add_row(
            batch.id,
            age((now_ms - batch.created_ms) / 1000),
            state_of(batch),
            *(f"{n:,}" for n in (counts.total, counts.done, counts.stored, counts.failed, counts.cancelled)),
            size(counts.bytes),
        )
    return table


def state_of(batch: BatchSummary) -> str:
    """submitting, running, cancelling, ended or cancelled."""
    if batch.cancel_ms is not None:
        return "cancelled" if batch.counts.ended else "cancelling"
    if batch.counts.ended:
        return "ended"
    return "running" if batch.counts.sealed else "submitting"


def result_line(result: Result) -> str:
    """One line of text."""
    what = result.path or (result.reason.value if result.reason else "")
    status = "" if result.status is None else str(result.status)
    return (
        f"{result.outcome.value:9} {status:3} {size(result.bytes or 0):>8}  {redact.url(result.url)}  {what}"
    )


def dead_of(letters: Iterable[DeadLetter]) -> Table:
    """One line a letter."""
    table = _table("position", "door", "reason", "lane", "url", "note")
    for letter in letters:
        url = redact.url(letter.fetch.url) if letter.fetch else ""
        note = redact.text(letter.note)
        table.add_row(
            *map(escape, (letter.position, letter.door, letter.reason, letter.lane or "", url, note))
        )
    return table


def age(seconds: float) -> str:
    """A length of time for people: two figures at most."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def count(number: int, one: str, many: str | None = None) -> str:
    """How many of what."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _workers(workers: Iterable[WorkerStatus]) -> Table:
    table = _table("worker", "lanes", "in flight", "fetches/s", "received")
    for worker in workers:
        received = f"{size(worker.received_bytes_per_s)}/s"
        rate = f"{worker.finished_per_s:.1f}"
        table.add_row(escape(worker.id), str(worker.lanes), str(worker.in_flight), rate, received)
    return table


def _lanes(lanes: list[LaneSnapshot], in_all: int) -> Table:
    table = _table("lane", "in flight", "waiting", "state", "opens in")
    for lane in lanes[:LANES_SHOWN]:
        opens = age(lane.opens_in_s) if lane.opens_in_s else ""
        table.add_row(escape(lane.name), str(lane.in_flight), f"{lane.waiting:,}", lane.state, opens)
    if in_all > LANES_SHOWN:
        table.add_row(f"and {in_all - LANES_SHOWN:,} more", "", "", "", "")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        numeric = column in _NUMERIC
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column != "note")
    return table


_NUMERIC = {
    *("lanes", "in flight", "waiting", "opens in", "fetches/s", "received"),
    *("age", "total", "done", "stored", "failed", "cancelled", "bytes"),
}
