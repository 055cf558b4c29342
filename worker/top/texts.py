"""The texts of the display: the head, the problems, and the pages of a host and of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from rich.text import Text

from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.worker.inspect.problems import FleetFigures, Severity, fleet_problems
from fetchfleet.worker.inspect.views.batches import BatchDetail
from fetchfleet.worker.inspect.views.hosts import HostDetail
from fetchfleet.worker.local.output.progress import size
from fetchfleet.worker.policy.pairs import encoded
from fetchfleet.worker.top.columns import STYLES, progress_bar, share_done
from fetchfleet.worker.top.picture import Picture
from fetchfleet.worker.util.quantities import age, count, some, time_left_s

SEVERITY_STYLES = {Severity.BAD: "bold red", Severity.WARN: "yellow", Severity.NOTE: "magenta"}
_LAST_SHOWN_MS = 253_370_764_800_000
"""The beginning of the year 9999, Unix ms."""


def clock(at_ms: int) -> str:
    """Return the time of day in UTC."""
    return datetime.fromtimestamp(max(0, min(at_ms, _LAST_SHOWN_MS)) / 1000, UTC).strftime("%H:%M:%S")


def head(fleet: Picture) -> list[Text]:
    """Return three lines: workers and rates, backlog, and hosts by state."""
    of = fleet.overview
    idle = [(of.draining, "drained"), (of.lacking, "without disk")]
    apart = ", ".join(f"{number} {what}" for number, what in idle if number)
    workers = f"{count(of.workers + of.draining + of.lacking, 'worker')}{f' ({apart})' if apart else ''}"
    waits_s = [(host.until_ms - of.now_ms) / 1000 for host in fleet.hosts if host.waiting and host.until_ms]
    left_s = time_left_s(of.backlog, [of.finished_per_s], waits_s)
    left = f" (about {age(left_s)})" if left_s else ""
    oldest = f", oldest {age(of.oldest_s)}" if of.oldest_s is not None else ""
    doors = [(of.inbox, "inbox message"), (of.arq, "arq job")]
    states = Text.assemble(count(of.lanes_in_all, "host"))
    for state, number in of.lanes.items():
        if number:
            states.append("   ").append(f"{number:,} {state}", STYLES.get(state, ""))
    if of.lanes_read < of.lanes_in_all:
        states.append(f"   ({of.lanes_read:,} of them read)", "dim")
    return [
        Text.assemble(
            (workers, "bold"),
            f"   {of.finished_per_s:,.1f} fetches/s   {size(of.received_bytes_per_s)}/s",
            f"   {of.in_flight:,} in flight",
        ),
        Text.assemble(
            (f"{count(of.backlog, 'fetch', 'fetches')} to do", "bold"),
            f"{left}{oldest}   ",
            *(f"{count(number, what)}   " for number, what in doors if number),
            (count(of.dead, "dead letter"), "" if of.dead else "dim"),
        ),
        states,
    ]


def problems(fleet: Picture) -> Iterator[Text]:
    """Yield a line for each problem, the worst first."""
    for problem in fleet_problems(FleetFigures(fleet.overview, fleet.workers, fleet.hosts, fleet.vanished)):
        yield Text.assemble(
            (shown(problem.title), SEVERITY_STYLES[problem.severity]), ("  " + shown(problem.detail), "dim")
        )


def worst(found: Sequence[Text], height: int) -> list[Text]:
    """Return the problems that fit, the worst first, and the number of the others."""
    if len(found) <= height:
        return [*found] or [Text("no problems", "dim")]
    return [*found[: height - 1], Text(f"and {count(len(found) - height + 1, 'other problem')}")]


def host_page(of: HostDetail) -> Iterator[Text]:
    """Yield the page of a host: state, last responses, and the limits that are not the defaults."""
    lane = of.lane
    until = f" until {clock(lane.until_ms)}" if lane.until_ms is not None else ""
    yield Text.assemble((shown(lane.state), STYLES.get(lane.state, "bold")), f"{until}: {shown(lane.why)}")
    yield Text(f"{lane.waiting:,} waiting, {lane.in_flight_text}")
    if lane.owner:
        yield Text(f"held by {shown(lane.owner)}")
    for unserved in lane.unserved:
        yield Text(
            f"{count(unserved.fetches, 'fetch', 'fetches')} need {shown(some(unserved.needs))}",
            SEVERITY_STYLES[Severity.WARN],
        )
    if not of.known:
        yield Text("no fetch was sent to it recently", "dim")
    yield _title("last responses")
    for answer in reversed(lane.answers):
        yield Text(f"  {clock(answer.at_ms)}  {shown(answer.what)}")
    if not lane.answers:
        yield Text("  none", "dim")
    if lane.last_failure:
        yield Text(f"last failure: {shown(lane.last_failure)}")
    yield _title("limits")
    for limit in sorted(of.limits, key=lambda limit: limit.source == "default"):
        table = f", {limit.table}" if limit.table else ""
        style = "dim" if limit.source == "default" else ""
        yield Text(shown(f"  {limit.key} = {encoded(limit.value)}  ({limit.source}{table})"), style)
    for note in of.notes:
        yield Text(shown(note), "dim")


def batch_page(of: BatchDetail) -> Iterator[Text]:
    """Yield the page of a batch: progress, counts, failures by reason, and the hosts it waits for."""
    row, counts = of.batch, of.batch.counts
    rate = f"   {row.rate_per_s:,.1f} results/s" if row.rate_per_s is not None else ""
    left = f"   about {age(row.eta_s)} left" if row.eta_s is not None else ""
    yield Text.assemble(
        (row.state, STYLES.get(row.state, "bold")), f"   {progress_bar(share_done(row))}{rate}{left}"
    )
    yield Text(f"{row.done:,} of {count(counts.total, 'fetch', 'fetches')} done, {size(counts.bytes)}")
    yield Text(
        f"{counts.stored:,} stored, {counts.unchanged:,} unchanged, {counts.failed:,} failed,"
        f" {counts.cancelled:,} cancelled"
    )
    yield Text(f"submitted {age((of.now_ms - row.created_ms) / 1000)} ago, to {count(of.lanes, 'host')}")
    for other in row.retried_as:
        yield Text(f"its failed fetches were retried as {other}")
    yield _title("failures by reason")
    yield from _counts(of.failures, of.notes)
    if not of.failures_exact:
        yield Text(f"  of the newest {count(of.results_read, 'result')} only", "dim")
    if of.hosts:
        yield _title("hosts with work")
        for host in of.hosts:
            waiting = f"{host.waiting:,} waiting, {host.in_flight:,} in flight"
            yield Text.assemble(
                f"  {shown(host.host)}  ", (shown(host.state), STYLES.get(host.state, "")), f"  {waiting}"
            )


def _counts(counts: Mapping[str, int], notes: Mapping[str, str]) -> Iterator[Text]:
    for reason, number in counts.items():
        note = f"  {shown(notes[reason])}" if reason in notes else ""
        yield Text.assemble(f"  {number:>8,}  {shown(reason) or 'none'}", (note, "dim"))
    if not counts:
        yield Text("  none", "dim")


def _title(text: str) -> Text:
    return Text(f"\n{text}", "bold")
