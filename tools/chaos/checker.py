"""Whether the fleet kept its promises: a pure function of the history."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from fetchfleet.jobs.contract.ids import batch_of
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.worker.fetch.rules.crashes import MAX_CRASHES
from tools.chaos import hosts
from tools.chaos.history import Acknowledged, Attempted, Cancelling, Ended, Fault, Record, Saw
from tools.chaos.schedule import Kind

ON_THE_WIRE_S = 0.4
"""Requests that were on their way when the host said 429 are nobody's fault."""

LEASE_MARGIN_S = 1.0
"""A worker stops using a lane so long before Redis gives it to another. One that is stopped cannot: what it
has in flight counts for so long, since its connections stay open."""

ALL_THE_TIME_S = float("inf")
SHOWN = 5

TAKES_ITS_LANES = frozenset(
    {
        Kind.WORKER_KILLED,
        Kind.WORKER_STOPPED,
        Kind.WORKER_REPLACED,
        Kind.LINE_BLACK,
        Kind.LINE_CUT,
        Kind.LINE_SLOW,
    }
)


DEADLY = frozenset(
    {
        Kind.WORKER_KILLED,
        Kind.WORKER_STOPPED,
        Kind.LINE_BLACK,
        Kind.REDIS_RESTARTED,
        Kind.REDIS_KILLED,
        Kind.REDIS_FROZEN,
    }
)
"""What may make orphans of the fetches that a worker has claimed: it dies, or cannot renew its leases."""


class Recovery(NamedTuple):
    """How often a kind of fault came, and how long it took each time until the work went on."""

    faults: int
    took_s: list[float]


class Verdict(NamedTuple):
    """breaches: what was promised and not kept, in sentences. The rest is to be looked at."""

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
    """The record by what is asked of it."""

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
        self.targets = Counter(saw.target for saw in record.saw)
        charged = (saw for saw in record.saw if saw.act in hosts.CHARGED)
        self.charged = Counter(hosts.name_of(saw.target) for saw in charged)
        self.deaths = [fault for fault in record.faults if fault.kind in DEADLY]

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
    """What the history say."""
    facts = _Facts(record)
    most_at_once = {host: _most_at_once(record, host) for host in sorted({saw.host for saw in record.saw})}
    stored = sum(one.outcome == Outcome.STORED for one in record.ended)
    whole = sum(_is_whole(saw) for saw in record.saw)
    return Verdict(
        breaches=[*_breaches(facts), *_impolite(record, most_at_once)],
        recoveries={kind: _recovery(record, kind) for kind in Kind},
        most_at_once=most_at_once,
        outcomes=Counter(one.outcome for one in record.ended),
        acknowledged=len(facts.ids) + len(facts.without_id),
        perhaps=len(facts.attempted - set(facts.ids.values()) - facts.without_id),
        requests=len(record.saw),
        repeats=max(0, whole - stored),
        lost=len(facts.lost),
        unexpected=len(facts.unexpected),
        doubled=len(facts.doubled),
    )


def _is_whole(saw: Saw) -> bool:
    return saw.status == 200 and saw.act in hosts.GOOD and not saw.aborted


def _breaches(facts: _Facts) -> Iterator[str]:
    record = facts.record
    yield from _some("acknowledged and lost", facts.lost)
    yield from _some("ended though never asked for", facts.unexpected)
    yield from _some("ended twice", facts.doubled)
    yield from _some("ended wrongly", [said for one in record.ended if (said := _wrong_end(one, facts))])
    yield from _some("not on disk as its result says", list(_wrong_bodies(record)))
    yield from _some("on disk though no fetch explains it", list(_wrong_files(facts)))
    twice = [target for target, n in facts.targets.items() if n > 1 and target.startswith("/post/")]
    yield from _some("sent twice though it may not be", twice)
    yield from _some("left in Redis", record.remains.lines)
    yield from _some("a worker's end", [f"{died.by}: {died.how}" for died in record.died])


def _some(what: str, found: Sequence[str]) -> Iterator[str]:
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield f"{what}: {'; '.join(found[:SHOWN])}{more}"


def _wrong_end(one: Ended, facts: _Facts) -> str | None:
    """What is wrong with a result; None if the faults and its host explain it."""
    name, kind = hosts.name_of(one.url), urlsplit(one.url).path.split("/")[1]
    if one.attempts > 1 + facts.charged[name]:
        return f"{one.id}: {one.attempts} attempts, though its hosts failed it {facts.charged[name]} times"
    match one.outcome:
        case Outcome.STORED:
            fits = kind != "gone"
        case Outcome.CANCELLED:
            fits = batch_of(one.id) in facts.cancelled
        case Outcome.FAILED:
            fits = _may_fail(one, kind, facts)
        case _:
            fits = False
    return None if fits else f"{one.id} {one.url}: {one.outcome} ({one.reason}, {one.status})"


def _may_fail(one: Ended, kind: str, facts: _Facts) -> bool:
    if one.reason == Reason.POISON:
        return len(facts.deaths) >= MAX_CRASHES and _was_in_hand(hosts.name_of(one.url), facts)
    if kind == "gone":
        return (one.reason, one.status) == (Reason.HTTP_STATUS, 404)
    return kind == "post" and one.reason == Reason.INTERRUPTED


def _was_in_hand(name: str, facts: _Facts) -> bool:
    """Whether the fetch was under way in a death: the last of the three must have met it begun."""
    asked = [saw for saw in facts.record.saw if hosts.name_of(saw.target) == name]
    return any(_meets(death, saw) for death in facts.deaths for saw in asked)


def _meets(death: Fault, saw: Saw) -> bool:
    ends_s = ALL_THE_TIME_S if saw.finished_s is None else saw.finished_s
    of_its_worker = death.by in {saw.by, ""}
    return of_its_worker and saw.arrived_s <= death.until_s and death.from_s <= ends_s + ON_THE_WIRE_S


def _wrong_bodies(record: Record) -> Iterator[str]:
    files = {file.path: file.sha256 for file in record.found}
    for one in record.ended:
        if one.outcome == Outcome.STORED:
            right = _digest(one.url)
            if one.sha256 != right or files.get(one.path or "") != right:
                yield f"{one.id} {one.url} at {one.path}"


def _wrong_files(facts: _Facts) -> Iterator[str]:
    """Files at final names whose bytes are not those of their fetch, whatever became of it."""
    urls = facts.ids | {one.id: one.url for one in facts.record.ended}
    for file in facts.record.found:
        url = facts.dests.get(file.path) or urls.get(hosts.name_of(file.path))
        if url is None or file.sha256 != _digest(url):
            yield f"{file.path} (of {url})"


def _digest(url: str) -> str:
    return hashlib.sha256(hosts.body_of(hosts.name_of(url))).hexdigest()


def _impolite(record: Record, most_at_once: dict[str, int]) -> Iterator[str]:
    for host, most in most_at_once.items():
        if most > hosts.CONCURRENCY:
            yield f"{host} had {most} requests at once, {hosts.CONCURRENCY} may be"
    windows = defaultdict(list)
    for quiet in record.quiet:
        windows[quiet.host].append(quiet)
    inside = [
        f"{saw.host}{saw.target} by {saw.by}, {saw.arrived_s - quiet.from_s:.2f} s after a 429"
        for saw in record.saw
        for quiet in windows[saw.host]
        if quiet.from_s + ON_THE_WIRE_S < saw.arrived_s < quiet.until_s
    ]
    yield from _some("asked of a host that wanted quiet", inside)


def _most_at_once(record: Record, host: str) -> int:
    stops = [fault for fault in record.faults if fault.kind is Kind.WORKER_STOPPED]
    steps = []
    for saw in record.saw:
        if saw.host == host:
            steps += [(saw.arrived_s, 1), (max(saw.arrived_s, _counts_until_s(saw, stops)), -1)]
    most = running = 0
    for _, step in sorted(steps):  # an end before a beginning of the same moment
        running += step
        most = max(most, running)
    return most


def _counts_until_s(saw: Saw, stops: Sequence[Fault]) -> float:
    until_s = ALL_THE_TIME_S if saw.finished_s is None else saw.finished_s
    for stop in stops:
        if stop.by == saw.by and saw.arrived_s < stop.until_s and stop.from_s < until_s:
            until_s = min(until_s, stop.from_s + LEASE_MARGIN_S)
    return until_s


def _recovery(record: Record, kind: Kind) -> Recovery:
    faults = [fault for fault in record.faults if fault.kind is kind]
    took = [
        _of_lanes(record, fault) if fault.kind in TAKES_ITS_LANES else _of_all(record, fault)
        for fault in faults
    ]
    return Recovery(len(faults), [took_s for all_of_one in took for took_s in all_of_one])


def _of_all(record: Record, fault: Fault) -> list[float]:
    """From the fault's end to the first result, unless Redis is in trouble again before it."""
    results = (one.at_ms / 1000 - record.remains.unix_s for one in record.ended)
    first_s = min((at_s for at_s in results if at_s > fault.until_s), default=None)
    others = [other for other in _of_redis(record) if other is not fault]
    if first_s is None or _overlaps(others, fault.until_s, first_s):
        return []
    return [first_s - fault.until_s]


def _of_redis(record: Record) -> list[Fault]:
    of_workers = TAKES_ITS_LANES | {Kind.ALL_REPLACED}
    return [fault for fault in record.faults if fault.kind not in of_workers]


def _of_lanes(record: Record, fault: Fault) -> list[float]:
    """From the fault to the next request of another worker, for each host that this one was at work on.

    Where Redis was in trouble meanwhile nothing can be said of the worker.
    """
    took = []
    for host in {saw.host for saw in record.saw}:
        seen = [saw for saw in record.saw if saw.host == host]
        before = max((saw for saw in seen if saw.arrived_s <= fault.from_s), key=_arrival, default=None)
        after = min(
            (saw for saw in seen if saw.arrived_s > fault.from_s and saw.by != fault.by),
            key=_arrival,
            default=None,
        )
        if before and after and before.by == fault.by and before.arrived_s > fault.from_s - LEASE_MARGIN_S:
            took.append(after.arrived_s - fault.from_s)
    troubles = _of_redis(record)
    return [took_s for took_s in took if not _overlaps(troubles, fault.from_s, fault.from_s + took_s)]


def _overlaps(faults: Sequence[Fault], from_s: float, until_s: float) -> bool:
    return any(fault.from_s < until_s and from_s < fault.until_s for fault in faults)


def _arrival(saw: Saw) -> float:
    return saw.arrived_s
