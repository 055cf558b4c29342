"""Tables and lines in which commands show a fleet. A table fits 80 columns unless names are long."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fetchfleet.jobs.client.batch_list import BatchSummary
from fetchfleet.jobs.client.dead_letters import DeadLetter
from fetchfleet.jobs.contract.result import Result
from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.worker.inspect.explain import FetchExplained, LaneExplained, local_time
from fetchfleet.worker.inspect.fleet_status import FleetStatus, WorkerStatus
from fetchfleet.worker.inspect.policy_in_force import BUILT_IN, Origin, PolicyInForce, Source, short
from fetchfleet.worker.inspect.problems import vanished_problems
from fetchfleet.worker.inspect.snapshot import lack_text
from fetchfleet.worker.inspect.views.batches import state_of_batch
from fetchfleet.worker.lanes.reset import LaneReset
from fetchfleet.worker.local.output.progress import SafeTable, size
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.pairs import encoded
from fetchfleet.worker.policy.pauses import Pauses
from fetchfleet.worker.policy.published import NO_FILE
from fetchfleet.worker.util.quantities import age, count, time_left_s

LANES_SHOWN = 30

UNKNOWN = "?"
"""The text for a field that a worker of an older version does not publish."""


def status_of(status: FleetStatus) -> RenderableType:
    """Return the state of a fleet: totals, problems, workers, then the lanes with the most waiting."""
    rate = f"{status.finished_per_s:.1f} fetches/s, {size(status.received_bytes_per_s)}/s"
    for_newer = status.inbox_door.for_newer
    quarantined = f", {count(for_newer, 'message')} for a newer worker" if for_newer else ""
    parts: list[RenderableType] = [
        f"{count(len(status.workers), 'worker')}, {rate}",
        *backlog_lines(status),
        f"{count(status.inbox, 'message')} in the inbox{quarantined}, {count(status.dead, 'dead letter')}",
    ]
    parts += [
        Text(shown(problem.title), "red").append(shown(f": {problem.detail}"), "default")
        for problem in vanished_problems(status.vanished)
    ]
    if not status.workers and status.backlog:
        parts.append(Text("no worker is running; start one: fetchfleet worker", style="red"))
    draining = [worker.instance for worker in status.workers if worker.draining]
    if draining:
        every = len(draining) == len(status.workers)
        remedy = f"undrain one with: fetchfleet undrain {draining[0]}"
        problem = Text("every worker is drained", style="red") if every else Text("drained")
        parts.append(problem.append(shown(f": {', '.join(draining)}; {remedy}"), style="default"))
    lacking = [worker for worker in status.workers if worker.lacking]
    if lacking:
        lacks = (f"{of.instance} lacks {lack_text(of.lacking, of.lacking_error)}" for of in lacking)
        every = len(lacking) == len(status.workers)
        problem = Text("no worker can store bodies", style="red") if every else Text("cannot store bodies")
        parts.append(problem.append(shown(f": {', '.join(lacks)}"), style="default"))
    if status.workers:
        digests = Counter(worker.policy for worker in status.workers if worker.policy)
        if len(digests) > 1:
            using = ", ".join(f"{short(digest)} ({number})" for digest, number in sorted(digests.items()))
            parts.append(shown(f"workers differ in their policy files: {using}"))
        parts.append(workers_of(status.workers))
    if status.lanes:
        lanes = _table("lane", "in flight", "waiting", "state", "opens in")
        for lane in status.lanes[:LANES_SHOWN]:
            opens = "" if lane.known_wait_s is None else age(lane.known_wait_s)
            lanes.add_row(lane.name, lane.in_flight_text, f"{lane.waiting:,}", lane.state, opens)
        if status.lanes_in_all > LANES_SHOWN:
            lanes.add_row(f"and {status.lanes_in_all - LANES_SHOWN:,} more", "", "", "", "")
        parts.append(lanes)
    return Group(*parts)


def backlog_lines(status: FleetStatus) -> Iterator[str]:
    """Yield the backlog with its age, and its parts if some of it is not in lanes."""
    oldest = f", the oldest has waited {age(status.oldest_s)}" if status.oldest_s is not None else ""
    to_do = f"{count(status.backlog, 'fetch', 'fetches')} to do"
    waits_s = [lane.known_wait_s for lane in status.lanes if lane.waiting]
    left_s = time_left_s(status.backlog, [status.finished_per_s], waits_s)
    if left_s:
        to_do += f" (about {age(left_s)})"
    lanes = count(status.lanes_in_all, "lane")
    doors = [
        f"{'' if door.exact else 'at least '}{door.fetches:,} in {count(door.messages, message)}"
        for door, message in ((status.arq_door, "arq job"), (status.inbox_door, "inbox message"))
        if door.messages
    ]
    if not doors:
        yield f"{to_do} in {lanes}{oldest}"
        return
    unknown = "; the age of inbox messages is unknown" if status.inbox else ""
    yield f"{'' if status.backlog_exact else 'at least '}{to_do}{oldest}{unknown}"
    yield ", ".join([f"{status.in_lanes:,} of them in {lanes}", *doors])


def workers_of(workers: Sequence[WorkerStatus]) -> Table:
    """Return a table with a row for each worker.

    A worker that shares its name with others is shown by its instance.
    """
    names = [worker.id for worker in workers]
    table = _table(
        "worker", "version", "age", "engine", "policy", "lanes", "in\nflight", "fetches\n/s", "received\n/s"
    )
    table.padding = (0, 1, 0, 0)
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for worker in workers:
        table.add_row(
            worker.id if names.count(worker.id) == 1 else worker.instance,
            worker.version or UNKNOWN,
            age(worker.age_s) if worker.age_s is not None else UNKNOWN,
            worker.engine or UNKNOWN,
            short(worker.policy or UNKNOWN),
            str(worker.lanes),
            str(worker.in_flight),
            f"{worker.finished_per_s:.1f}",
            size(worker.received_bytes_per_s),
        )
    return table


def batches_of(batches: Iterable[BatchSummary], now_ms: int) -> Table:
    """Return a table with a row for each batch. It fits 80 columns with counts below a million."""
    table = _table("batch", "age", "state", "done", "total", "failed", "cancelled", "bytes")
    table.padding = (0, 1, 0, 0)
    for batch in batches:
        counts = batch.counts
        table.add_row(
            batch.id,
            age((now_ms - batch.created_ms) / 1000),
            state_of_batch(batch),
            *(f"{n:,}" for n in (counts.done, counts.total, counts.failed, counts.cancelled)),
            size(counts.bytes),
        )
    return table


def result_line(result: Result, *, reveal: bool = False) -> str:
    """Return one line for a result: outcome, status, size, URL, and path or reason with its note.

    reveal: show the secrets of the URL.
    """
    path_or_reason = result.path or _reason_of(result)
    status = "" if result.status is None else str(result.status)
    url = result.url if reveal else redact.url(result.url)
    return f"{result.outcome.value:9} {status:3} {size(result.bytes or 0):>8}  {url}  {path_or_reason}"


def _reason_of(result: Result) -> str:
    """Return the reason of a result with its note; empty without one."""
    reason = result.reason.value if result.reason else ""
    return f"{reason}: {redact.text(result.note)}" if reason and result.note else reason


def dead_of(letters: Iterable[DeadLetter], *, reveal: bool = False) -> Table:
    """Return a table with a row for each dead letter. reveal: show secrets."""
    table = _table("position", "door", "reason", "lane", "url", "note")
    for letter in letters:
        url, note = letter.fetch.url if letter.fetch else "", letter.note
        if not reveal:
            url, note = redact.url(url) if url else "", redact.text(note)
        table.add_row(letter.position, letter.door, letter.reason, letter.lane or "", url, note)
    return table


def fetch_lines(fetch: FetchExplained) -> Iterator[str]:
    """Yield the state of a fetch, then of its lane."""
    ahead = f", {fetch.ahead:,} ahead of it" if fetch.ahead is not None else ""
    yield f"{fetch.id}: {fetch.state}{ahead}; {fetch.why}"
    if fetch.result is not None and fetch.result.reason is not None:
        status = f", status {fetch.result.status}" if fetch.result.status is not None else ""
        note = f", {redact.text(fetch.result.note)}" if fetch.result.note else ""
        yield f"reason: {fetch.result.reason.value}{status}{note}"
    if fetch.lane is not None:
        yield from lane_lines(fetch.lane)


def lane_lines(lane: LaneExplained) -> Iterator[str]:
    """Yield the state of a lane, its counts, and the last responses of its host."""
    until = f" until {local_time(lane.until_ms)}" if lane.until_ms else ""
    yield f"{lane.lane}: {lane.state}{until}; {lane.why}"
    owner = f", held by {lane.owner}" if lane.owner else ""
    yield f"{lane.waiting:,} waiting, {lane.in_flight_text}{owner}"
    if lane.answers:
        answers = [f"{answer.what} at {local_time(answer.at_ms)}" for answer in lane.answers]
        yield f"last responses: {', '.join(answers)}"
    if lane.last_failure:
        yield f"last failure: {lane.last_failure}"


def policy_lines(in_force: PolicyInForce, lane: str) -> Iterator[str]:
    """Yield the policy file of a lane, the values that differ from the built-in defaults, and the notes."""
    policy = in_force.policy.for_lane(lane)
    values = [
        f"{key} {encoded(getattr(policy, key))} ({source_text(source)})"
        for key, source in in_force.sources(lane).items()
        if source != BUILT_IN
    ]
    rest = "; the rest are defaults" if values else "every value is the default"
    by = {Origin.WORKERS: "of the workers", Origin.GIVEN: "given by --policy", Origin.ASSUMED: "assumed"}
    file = f"file {short(in_force.digest)}, {by[in_force.origin]}"
    if in_force.digest == NO_FILE:
        file = "no file, assumed" if in_force.origin is Origin.ASSUMED else "the workers have no file"
    yield f"policy: {file}; {', '.join(values)}{rest}"
    yield from in_force.notes(lane)


def policy_of(in_force: PolicyInForce, lane: str) -> Table:
    """Return a table with each key of a lane's policy, its value and its source."""
    table = _table("key", "value", "source")
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    policy = in_force.policy.for_lane(lane)
    for key, source in in_force.sources(lane).items():
        table.add_row(key, encoded(getattr(policy, key)), source_text(source))
    return table


def source_text(source: Source) -> str:
    """Return the source of a value, with its table."""
    return source.source if source.table is None else f"{source.source}, {source.table}"


def reset_line(reset: LaneReset) -> str:
    """Return the effect of a reset on a lane."""
    due = f"; {count(reset.retries, 'retry', 'retries')} due now" if reset.retries else ""
    if not reset.reset:
        return f"{reset.lane}: nothing to clear{due}"
    when = " once a worker acquires the lane" if reset.pending else ""
    return f"{reset.lane}: reset{when}: {', '.join(reset.reset).replace('_', '-')}{due}"


def pauses_of(pauses: Pauses) -> Table:
    """Return a table with a row for each pause and each exception."""
    table = _table("host", "state", "since")
    for state, names in (("paused", pauses.paused), ("exception", pauses.excepted)):
        for name, since_ms in sorted(names.items()):
            table.add_row(name, state, local_time(since_ms) if since_ms else "")
    return table


def _table(*columns: str) -> Table:
    table = SafeTable(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        numeric = column.replace("\n", " ") in _NUMERIC
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column != "note")
    return table


_NUMERIC = {
    *("lanes", "in flight", "waiting", "opens in", "fetches /s", "received /s"),
    *("age", "total", "done", "failed", "cancelled", "bytes"),
}
