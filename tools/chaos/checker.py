"""Check a history for breaches of the guarantees. Pure."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.contract.result import Outcome, Reason
from tools.chaos import hosts
from tools.chaos.history import Acknowledged, Attempted, Cancelling, Fault, FetchEnd, ObservedRequest, Record
from tools.chaos.schedule import Kind

ON_THE_WIRE_S = 0.4
"""Requests may arrive this long after a 429: they were in transit when it was sent."""

LEASE_MARGIN_S = 1.0
"""A worker stops using a lane this long before its lease ends. A stopped worker (SIGSTOP) cannot close its
connections, so its requests in flight count against the concurrency only for this time after the stop."""

NEVER_S = float("inf")
SHOWN = 5

MAX_KILLS = 9
"""A fetch becomes a dead letter after it has killed three workers. While workers also die of other causes,
that takes five kills, or nine of a fetch that kills slowly."""

LANE_LOSING = frozenset(
    {
        Kind.WORKER_KILLED,
        Kind.WORKER_STOPPED,
        Kind.WORKER_REPLACED,
        Kind.CONNECTION_BLACK_HOLED,
        Kind.CONNECTION_CUT,
        Kind.CONNECTION_SLOW,
    }
)


class Recovery(NamedTuple):
    """The recoveries from one kind of fault."""

    faults: int
    """The number of faults of the kind."""
    took_s: list[float]
    """The times until work resumed, where they could be measured."""


class Verdict(NamedTuple):
    """The outcome of a check: the breaches, and statistics."""

    breaches: list[str]
    """Broken guarantees, a sentence each."""
    recoveries: dict[Kind, Recovery]
    most_at_once: dict[str, int]
    """Peak of concurrent requests by host."""
    outcomes: Counter[str]
    acknowledged: int
    unacknowledged: int
    """Fetches that may have been enqueued."""
    requests: int
    repeats: int
    """Complete responses in excess of stored results."""
    lost: int
    unexpected: int
    duplicated: int


class _Facts:
    """Indexes over a record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.ids: dict[str, str] = {}
        self.without_id: set[str] = set()
        self.attempted: set[str] = set()
        self.cancelled: set[str] = set()
        self.dests: dict[str, str] = {}
        for line in record.producer:
            self._note(line)
        self.ended = {one.id: one for one in record.ended}
        self.ended_urls = {one.url for one in record.ended}
        self.targets = Counter(request.target for request in record.requests)
        charged = (request for request in record.requests if request.act in hosts.CHARGED)
        self.charged = Counter(hosts.name_of(request.target) for request in charged)

    def _note(self, line: Attempted | Acknowledged | Cancelling) -> None:
        match line:
            case Attempted():
                self.attempted |= set(line.urls)
                self.dests |= {dest: url for url, dest in line.dests.items()}
            case Acknowledged():
                for fetch_id, url in zip(line.ids, line.urls, strict=True):
                    if fetch_id:
                        self.ids[fetch_id] = url
                    else:
                        self.without_id.add(url)
            case Cancelling():
                self.cancelled.add(line.batch)

    @property
    def lost(self) -> list[str]:
        return sorted([*(self.ids.keys() - self.ended.keys()), *(self.without_id - self.ended_urls)])

    @property
    def unexpected(self) -> list[str]:
        return sorted(one.id for one in self.record.ended if one.url not in self.attempted)

    @property
    def duplicated(self) -> list[str]:
        ids = Counter(one.id for one in self.record.ended)
        urls = Counter(one.url for one in self.record.ended)
        return sorted(name for counts in (ids, urls) for name, count in counts.items() if count > 1)


def judge(record: Record) -> Verdict:
    """Return the breaches and statistics of a history."""
    facts = _Facts(record)
    most_at_once = {host: _most_at_once(record, host) for host in _hosts(record)}
    stored = sum(one.outcome == Outcome.STORED for one in record.ended)
    complete = sum(_is_complete(request) for request in record.requests)
    return Verdict(
        breaches=[*_breaches(facts), *_over_limits(record, most_at_once)],
        recoveries={kind: _recovery(record, kind) for kind in Kind},
        most_at_once=most_at_once,
        outcomes=Counter(one.outcome for one in record.ended),
        acknowledged=len(facts.ids) + len(facts.without_id),
        unacknowledged=len(facts.attempted - set(facts.ids.values()) - facts.without_id),
        requests=len(record.requests),
        repeats=max(0, complete - stored),
        lost=len(facts.lost),
        unexpected=len(facts.unexpected),
        duplicated=len(facts.duplicated),
    )


def _hosts(record: Record) -> list[str]:
    return sorted({request.host for request in record.requests})


def _is_complete(request: ObservedRequest) -> bool:
    return request.status == 200 and request.act in hosts.GOOD and not request.aborted


def _breaches(facts: _Facts) -> Iterator[str]:
    record = facts.record
    yield from _breach("acknowledged and lost", facts.lost)
    yield from _breach("ended although never submitted", facts.unexpected)
    yield from _breach("ended twice", facts.duplicated)
    yield from _breach("results read incorrectly during the faults", list(_wrong_readings(record)))
    yield from _breach(
        "unexplained result", [fault for one in record.ended if (fault := _wrong_end(one, facts))]
    )
    yield from _breach("body on disk differs from the result", list(_wrong_bodies(record)))
    yield from _breach("file on disk that belongs to no fetch", list(_wrong_files(facts)))
    twice = [target for target, n in facts.targets.items() if n > 1 and target.startswith("/post/")]
    yield from _breach("sent twice although not idempotent", twice)
    yield from _breach("left in Redis", record.remains.lines)
    killed = {request.by for request in record.requests if request.target.startswith("/kill/")}
    yield from _breach(
        "worker exited unexpectedly",
        [f"{died.worker}: {died.description}" for died in record.died if died.worker not in killed],
    )
    yield from _breach("fetch killed too many workers", [*_excessive_kills(facts)])


def _breach(name: str, cases: Sequence[str]) -> Iterator[str]:
    """Yield one sentence with the first cases, if there are cases."""
    if cases:
        more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
        yield f"{name}: {'; '.join(cases[:SHOWN])}{more}"


def _wrong_end(one: FetchEnd, facts: _Facts) -> str | None:
    """Describe why a result is wrong; None if the faults and the host's behaviour explain it."""
    name, kind = hosts.name_of(one.url), urlsplit(one.url).path.split("/")[1]
    if one.attempts > 1 + facts.charged[name]:
        return f"{one.id}: {one.attempts} attempts, although its hosts failed {facts.charged[name]} times"
    match one.outcome:
        case Outcome.STORED:
            explained = kind not in {"gone", "kill"}
        case Outcome.CANCELLED:
            explained = batch_of(one.id) in facts.cancelled
        case Outcome.FAILED:
            explained = _may_fail(one, kind)
        case _:
            explained = False
    return None if explained else f"{one.id} {one.url}: {one.outcome} ({one.reason}, {one.status})"


def _may_fail(one: FetchEnd, kind: str) -> bool:
    if kind == "kill":
        return one.reason == Reason.POISON
    if kind == "gone":
        return (one.reason, one.status) == (Reason.HTTP_STATUS, 404)
    return kind == "post" and one.reason == Reason.INTERRUPTED


def _excessive_kills(facts: _Facts) -> Iterator[str]:
    """Describe the fetches that killed more workers than MAX_KILLS."""
    for target, times in facts.targets.items():
        if target.startswith("/kill/") and times > MAX_KILLS:
            yield f"{target}: {times} workers"


def _wrong_readings(record: Record) -> Iterator[str]:
    """Describe the batches whose producer did not read every result once and in order."""
    written = defaultdict(list)
    for one in record.ended:
        written[batch_of(one.id)].append(one.id)
    for reading in record.followed:
        if not reading.ended:
            yield f"{reading.batch}: not read to the end"
        elif reading.ids != written[reading.batch]:
            yield f"{reading.batch}: {len(reading.ids)} results read, {len(written[reading.batch])} written"


def _wrong_bodies(record: Record) -> Iterator[str]:
    files = {file.path: file.sha256 for file in record.found}
    for one in record.ended:
        if one.outcome == Outcome.STORED:
            expected = _digest(one.url)
            if one.sha256 != expected or files.get(one.path or "") != expected:
                yield f"{one.id} {one.url} at {one.path}"


def _wrong_files(facts: _Facts) -> Iterator[str]:
    """Describe the files at final names that belong to no fetch, or differ from the body of their fetch."""
    urls = facts.ids | {one.id: one.url for one in facts.record.ended}
    for file in facts.record.found:
        url = facts.dests.get(file.path) or urls.get(hosts.name_of(file.path))
        if url is None or file.sha256 != _digest(url):
            yield f"{file.path} (of {url})"


def _digest(url: str) -> str:
    return hashlib.sha256(hosts.body_of(hosts.name_of(url))).hexdigest()


def _over_limits(record: Record, most_at_once: dict[str, int]) -> Iterator[str]:
    for host, most in most_at_once.items():
        if most > hosts.CONCURRENCY:
            yield f"{host}: {most} requests at once; the limit is {hosts.CONCURRENCY}"
    windows = defaultdict(list)
    for window in record.backoffs:
        windows[window.host].append(window)
    inside = [
        f"{request.host}{request.target} by {request.by},"
        f" {request.arrived_s - window.from_s:.2f} s after a 429"
        for request in record.requests
        for window in windows[request.host]
        if window.from_s + ON_THE_WIRE_S < request.arrived_s < window.until_s
    ]
    yield from _breach("sent while the host asked the client to back off", inside)


def _most_at_once(record: Record, host: str) -> int:
    stops = [fault for fault in record.faults if fault.kind is Kind.WORKER_STOPPED]
    steps = []
    for request in record.requests:
        if request.host == host:
            steps += [(request.arrived_s, 1), (max(request.arrived_s, _counts_until_s(request, stops)), -1)]
    most = running = 0
    for _, step in sorted(steps):  # at equal times an end comes before a start
        running += step
        most = max(most, running)
    return most


def _counts_until_s(request: ObservedRequest, stops: Sequence[Fault]) -> float:
    until_s = NEVER_S if request.finished_s is None else request.finished_s
    for stop in stops:
        if stop.worker == request.by and request.arrived_s < stop.until_s and stop.from_s < until_s:
            until_s = min(until_s, stop.from_s + LEASE_MARGIN_S)
    return until_s


def _recovery(record: Record, kind: Kind) -> Recovery:
    faults = [fault for fault in record.faults if fault.kind is kind]
    took = [
        _lane_recoveries(record, fault) if fault.kind in LANE_LOSING else _fleet_recovery(record, fault)
        for fault in faults
    ]
    return Recovery(len(faults), [took_s for times_s in took for took_s in times_s])


def _fleet_recovery(record: Record, fault: Fault) -> list[float]:
    """Return the time from the end of the fault to the next result, none if another Redis fault overlaps."""
    results = (one.at_ms / 1000 - record.remains.unix_s for one in record.ended)
    first_s = min((at_s for at_s in results if at_s > fault.until_s), default=None)
    others = [other for other in _redis_faults(record) if other is not fault]
    if first_s is None or _overlaps(others, fault.until_s, first_s):
        return []
    return [first_s - fault.until_s]


def _redis_faults(record: Record) -> list[Fault]:
    worker_faults = LANE_LOSING | {Kind.ALL_REPLACED}
    return [fault for fault in record.faults if fault.kind not in worker_faults]


def _lane_recoveries(record: Record, fault: Fault) -> list[float]:
    """Return the time from the fault to the next request of another worker, for each lane in progress.

    Times that overlap a fault of Redis are left out.
    """
    took = []
    for host in _hosts(record):
        seen = [request for request in record.requests if request.host == host]
        before = max(
            (request for request in seen if request.arrived_s <= fault.from_s), key=_arrival, default=None
        )
        after = min(
            (request for request in seen if request.arrived_s > fault.from_s and request.by != fault.worker),
            key=_arrival,
            default=None,
        )
        if (
            before
            and after
            and before.by == fault.worker
            and before.arrived_s > fault.from_s - LEASE_MARGIN_S
        ):
            took.append(after.arrived_s - fault.from_s)
    redis_faults = _redis_faults(record)
    return [took_s for took_s in took if not _overlaps(redis_faults, fault.from_s, fault.from_s + took_s)]


def _overlaps(faults: Sequence[Fault], from_s: float, until_s: float) -> bool:
    return any(fault.from_s < until_s and from_s < fault.until_s for fault in faults)


def _arrival(request: ObservedRequest) -> float:
    return request.arrived_s
