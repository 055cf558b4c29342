"""Check a history for broken promises. A pure function of the history."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.contract.model import Outcome, Reason
from tools.chaos import hosts
from tools.chaos.history import Acknowledged, Attempted, Cancelling, Fault, FetchEnd, ObservedRequest, Record
from tools.chaos.schedule import Kind

ON_THE_WIRE_S = 0.4
"""Requests may arrive this long after a 429: they were in transit when it was sent."""

LEASE_MARGIN_S = 1.0
"""A worker stops using a lane this long before its lease ends. A stopped worker (SIGSTOP) cannot close its
connections, so its requests in flight count against the concurrency for this long only."""

NEVER_S = float("inf")
SHOWN = 5

MOST_DEATHS = 9
"""A fetch that kills its worker is given up after three; while workers die otherwise after five, or nine if
it takes a while to kill."""

LOSES_ITS_LANES = frozenset(
    {
        Kind.WORKER_KILLED,
        Kind.WORKER_STOPPED,
        Kind.WORKER_REPLACED,
        Kind.LINE_BLACK,
        Kind.LINE_CUT,
        Kind.LINE_SLOW,
    }
)


class Recovery(NamedTuple):
    """The occurrences of a kind of fault, and the time after each until work resumed."""

    faults: int
    took_s: list[float]


class Verdict(NamedTuple):
    """The outcome of a check. breaches: broken promises, in sentences; the other fields are statistics."""

    breaches: list[str]
    recoveries: dict[Kind, Recovery]
    most_at_once: dict[str, int]
    outcomes: Counter[str]
    acknowledged: int
    perhaps: int
    requests: int
    repeats: int
    lost: int
    unexpected: int
    doubled: int


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
                for of, url in zip(line.ids, line.urls, strict=True):
                    if of:
                        self.ids[of] = url
                    else:
                        self.without_id.add(url)
            case Cancelling():
                self.cancelled.add(line.batch)

    @property
    def lost(self) -> list[str]:
        return sorted(
            [*(of for of in self.ids if of not in self.ended), *(self.without_id - self.ended_urls)]
        )

    @property
    def unexpected(self) -> list[str]:
        return sorted(one.id for one in self.record.ended if one.url not in self.attempted)

    @property
    def doubled(self) -> list[str]:
        ids = Counter(one.id for one in self.record.ended)
        urls = Counter(one.url for one in self.record.ended)
        return sorted(what for counts in (ids, urls) for what, count in counts.items() if count > 1)


def judge(record: Record) -> Verdict:
    """Check a history."""
    facts = _Facts(record)
    most_at_once = {host: _most_at_once(record, host) for host in _hosts(record)}
    stored = sum(one.outcome == Outcome.STORED for one in record.ended)
    whole = sum(_is_whole(request) for request in record.requests)
    return Verdict(
        breaches=[*_breaches(facts), *_over_limits(record, most_at_once)],
        recoveries={kind: _recovery(record, kind) for kind in Kind},
        most_at_once=most_at_once,
        outcomes=Counter(one.outcome for one in record.ended),
        acknowledged=len(facts.ids) + len(facts.without_id),
        perhaps=len(facts.attempted - set(facts.ids.values()) - facts.without_id),
        requests=len(record.requests),
        repeats=max(0, whole - stored),
        lost=len(facts.lost),
        unexpected=len(facts.unexpected),
        doubled=len(facts.doubled),
    )


def _hosts(record: Record) -> list[str]:
    return sorted({request.host for request in record.requests})


def _is_whole(request: ObservedRequest) -> bool:
    return request.status == 200 and request.act in hosts.GOOD and not request.aborted


def _breaches(facts: _Facts) -> Iterator[str]:
    record = facts.record
    yield from _some("acknowledged and lost", facts.lost)
    yield from _some("ended although never submitted", facts.unexpected)
    yield from _some("ended twice", facts.doubled)
    yield from _some("read wrongly while the faults came", list(_wrong_readings(record)))
    yield from _some("ended wrongly", [fault for one in record.ended if (fault := _wrong_end(one, facts))])
    yield from _some("not on disk as its result says", list(_wrong_bodies(record)))
    yield from _some("on disk although no fetch explains it", list(_wrong_files(facts)))
    twice = [target for target, n in facts.targets.items() if n > 1 and target.startswith("/post/")]
    yield from _some("sent twice although not idempotent", twice)
    yield from _some("left in Redis", record.remains.lines)
    killed = {request.by for request in record.requests if request.target.startswith("/kill/")}
    yield from _some(
        "a worker ended unexpectedly",
        [f"{died.by}: {died.how}" for died in record.died if died.by not in killed],
    )
    yield from _some("killed more workers than a fetch may", [*_too_deadly(facts)])


def _some(breach: str, found: Sequence[str]) -> Iterator[str]:
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield f"{breach}: {'; '.join(found[:SHOWN])}{more}"


def _wrong_end(one: FetchEnd, facts: _Facts) -> str | None:
    """Describe why a result is wrong; None if the faults and the host's behaviour explain it."""
    name, kind = hosts.name_of(one.url), urlsplit(one.url).path.split("/")[1]
    if one.attempts > 1 + facts.charged[name]:
        return f"{one.id}: {one.attempts} attempts, although its hosts failed it {facts.charged[name]} times"
    match one.outcome:
        case Outcome.STORED:
            fits = kind not in {"gone", "kill"}
        case Outcome.CANCELLED:
            fits = batch_of(one.id) in facts.cancelled
        case Outcome.FAILED:
            fits = _may_fail(one, kind)
        case _:
            fits = False
    return None if fits else f"{one.id} {one.url}: {one.outcome} ({one.reason}, {one.status})"


def _may_fail(one: FetchEnd, kind: str) -> bool:
    if kind == "kill":
        return one.reason == Reason.POISON
    if kind == "gone":
        return (one.reason, one.status) == (Reason.HTTP_STATUS, 404)
    return kind == "post" and one.reason == Reason.INTERRUPTED


def _too_deadly(facts: _Facts) -> Iterator[str]:
    """Describe the fetches that killed more workers than it takes to give them up."""
    for target, times in facts.targets.items():
        if target.startswith("/kill/") and times > MOST_DEATHS:
            yield f"{target}: {times} workers"


def _wrong_readings(record: Record) -> Iterator[str]:
    """Yield batches whose producer did not read every result once and in order."""
    written = defaultdict(list)
    for one in record.ended:
        written[batch_of(one.id)].append(one.id)
    for reading in record.followed:
        if not reading.ended:
            yield f"{reading.batch}: its reader did not come to the end"
        elif reading.ids != written[reading.batch]:
            yield f"{reading.batch}: {len(reading.ids)} results read, {len(written[reading.batch])} written"


def _wrong_bodies(record: Record) -> Iterator[str]:
    files = {file.path: file.sha256 for file in record.found}
    for one in record.ended:
        if one.outcome == Outcome.STORED:
            right = _digest(one.url)
            if one.sha256 != right or files.get(one.path or "") != right:
                yield f"{one.id} {one.url} at {one.path}"


def _wrong_files(facts: _Facts) -> Iterator[str]:
    """Yield files at final names whose bytes are not those of their fetch, whatever its result."""
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
            yield f"{host} had {most} requests at once, the limit is {hosts.CONCURRENCY}"
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
    yield from _some("sent while the host asked the client to back off", inside)


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
        if stop.by == request.by and request.arrived_s < stop.until_s and stop.from_s < until_s:
            until_s = min(until_s, stop.from_s + LEASE_MARGIN_S)
    return until_s


def _recovery(record: Record, kind: Kind) -> Recovery:
    faults = [fault for fault in record.faults if fault.kind is kind]
    took = [
        _of_lanes(record, fault) if fault.kind in LOSES_ITS_LANES else _of_all(record, fault)
        for fault in faults
    ]
    return Recovery(len(faults), [took_s for all_of_one in took for took_s in all_of_one])


def _of_all(record: Record, fault: Fault) -> list[float]:
    """Return the time from the fault's end to the first result, unless another Redis fault overlaps it."""
    results = (one.at_ms / 1000 - record.remains.unix_s for one in record.ended)
    first_s = min((at_s for at_s in results if at_s > fault.until_s), default=None)
    others = [other for other in _of_redis(record) if other is not fault]
    if first_s is None or _overlaps(others, fault.until_s, first_s):
        return []
    return [first_s - fault.until_s]


def _of_redis(record: Record) -> list[Fault]:
    of_workers = LOSES_ITS_LANES | {Kind.ALL_REPLACED}
    return [fault for fault in record.faults if fault.kind not in of_workers]


def _of_lanes(record: Record, fault: Fault) -> list[float]:
    """Return the time from the fault to the next request of another worker, for each host in progress.

    Times that overlap a fault of Redis are left out.
    """
    took = []
    for host in _hosts(record):
        seen = [request for request in record.requests if request.host == host]
        before = max(
            (request for request in seen if request.arrived_s <= fault.from_s), key=_arrival, default=None
        )
        after = min(
            (request for request in seen if request.arrived_s > fault.from_s and request.by != fault.by),
            key=_arrival,
            default=None,
        )
        if before and after and before.by == fault.by and before.arrived_s > fault.from_s - LEASE_MARGIN_S:
            took.append(after.arrived_s - fault.from_s)
    redis_faults = _of_redis(record)
    return [took_s for took_s in took if not _overlaps(redis_faults, fault.from_s, fault.from_s + took_s)]


def _overlaps(faults: Sequence[Fault], from_s: float, until_s: float) -> bool:
    return any(fault.from_s < until_s and from_s < fault.until_s for fault in faults)


def _arrival(request: ObservedRequest) -> float:
    return request.arrived_s
