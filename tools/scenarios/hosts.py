"""The hostile hosts of the scenarios: what each may be sent, and what its record must not show."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from fetchfleet import Fetch
from tools.origin import judge, limits
from tools.origin.behaviours import by_path, latency, ok, reset, retry_after, slow, status
from tools.origin.limits import Announce, Capacity, Quota
from tools.origin.process import Report
from tools.origin.server import Behaviour, Seen, requests_inside

ON_THE_WIRE_S = 0.4
"""Requests that were on their way when the host said 429 are nobody's fault."""

CONCURRENCY = 4
CAP_S = 5.0
BREAKER_FAILURES, BREAKER_RESET_S, GIVE_UP_S = 5, 2.0, 20
RATE_PER_S, BURST = 10, 3
CAPACITY, LESS, LESS_FROM_S, LEARNT_S, ENDS_S = 12, 4, 15.0, 18.0, 45.0
QUOTA, WINDOW_S = 12, 3.0
DEAD_FETCHES = 3000


class Host(NamedTuple):
    """A host of the scenarios.

    may: what the fleet may send it. policy: its table. faults: what is wrong with its record. measured: what
    else is worth a look.
    """

    name: str
    may: str
    behaviour: Behaviour
    fetches: Callable[[str], Sequence[Fetch]]
    faults: Callable[[Report], Iterator[str]]
    measured: Callable[[Report], str] = lambda _: ""
    policy: str = ""


def many(count: int, path: str = "/files") -> Callable[[str], Sequence[Fetch]]:
    """That many GETs of a host."""
    return lambda url: [Fetch(url=f"{url}{path}/{i}") for i in range(count)]


def quiet(report: Report) -> Iterator[str]:
    """Whether the windows were kept, and each host's concurrency."""
    inside = requests_inside(judge.quiet_for(report.windows, CAP_S), report.requests, ON_THE_WIRE_S)
    if inside:
        yield f"{len(inside)} requests inside a forbidden window"
    if report.high_water > CONCURRENCY:
        yield f"{report.high_water} requests at once"


def curved(report: Report) -> Iterator[str]:
    """Whether each quiet of ours was as long as the curve has it."""
    waits = judge.waits_after(report.requests, 429)
    if any(wait_s < min(2**n, CAP_S) - 0.05 for n, wait_s in enumerate(waits)):
        yield f"quiet for {', '.join(f'{wait_s:.1f}' for wait_s in waits)} s"


def waits(report: Report) -> str:
    """The quiets, in seconds."""
    return "quiet for " + ", ".join(f"{wait_s:.1f}" for wait_s in judge.waits_after(report.requests, 429))


def unrefused(report: Report) -> Iterator[str]:
    """Whether the quota was ever overrun."""
    refused = sum(seen.status == 429 for seen in report.requests)
    if refused:
        yield f"{refused} requests above the quota"


def rate_of(report: Report) -> str:
    """How many requests a window saw on average."""
    arrivals = judge.arrivals_of(report.requests)
    return f"{len(arrivals) * WINDOW_S / (arrivals[-1] - arrivals[0] + WINDOW_S):.1f} a window"


def paced(report: Report) -> Iterator[str]:
    """Whether the pace was kept by every stretch of the record."""
    early = judge.closer_than(report.requests, 1 / RATE_PER_S, BURST, 0.1)
    if early:
        yield f"{len(early)} requests too early, by {max(early):.2f} s at most"


def stretches(report: Report) -> Iterator[tuple[int, list[Seen]]]:
    """The capacity, and what arrived while it was known: before the change, and long after it."""
    first_s = min(judge.arrivals_of(report.requests))
    for capacity, from_s, until_s in (
        (CAPACITY, LESS_FROM_S / 3, LESS_FROM_S - 0.1),
        (LESS, LESS_FROM_S + LEARNT_S, ENDS_S),
    ):
        seen = [seen for seen in report.requests if from_s <= seen.arrived_s - first_s <= until_s]
        yield capacity, seen


def adapted(report: Report) -> Iterator[str]:
    """Whether each capacity was found, used and not pressed."""
    for capacity, seen in stretches(report):
        most = judge.most_at_once(seen)
        if not 0.6 * capacity <= most <= capacity + 1:
            yield f"{most} at once where {capacity} can be"
        if judge.refused(seen) >= 0.02:
            yield f"{judge.refused(seen):.1%} refused where {capacity} can be"


def found(report: Report) -> str:
    """Most at once, refusals and goodput, for each capacity."""
    told = []
    for capacity, seen in stretches(report):
        arrivals = judge.arrivals_of(seen)
        good = sum(one.status == 200 for one in seen) / max(0.1, arrivals[-1] - arrivals[0])
        most = judge.most_at_once(seen)
        told.append(f"{most} of {capacity} used, {judge.refused(seen):.1%} refused, {good:.0f}/s")
    return "; ".join(told)


def probes(report: Report) -> list[Seen]:
    """The requests from the first pause on that a breaker makes."""
    seen = sorted(report.requests, key=lambda request: request.arrived_s)
    for place, (before, after) in enumerate(pairwise(seen), 1):
        if after.arrived_s - before.arrived_s >= BREAKER_RESET_S - 0.1:
            return seen[place:]
    return []


def probed(report: Report) -> Iterator[str]:
    """Whether few requests came before the breaker opened, and single ones after."""
    after = probes(report)
    first = len(report.requests) - len(after)
    if first > BREAKER_FAILURES + CONCURRENCY - 1:
        yield f"{first} requests before the breaker opened"
    if judge.most_at_once(after) > 1:
        yield f"{judge.most_at_once(after)} probes at once"
    if any(later < sooner * 0.8 for sooner, later in pairwise(judge.gaps_of(after))):
        yield "probes come closer and closer"


def after_opening(report: Report) -> str:
    """How many probes, and how far apart."""
    after = probes(report)
    gaps = ", ".join(f"{gap_s:.1f}" for gap_s in judge.gaps_of(after))
    return f"{len(report.requests) - len(after)} and {len(after)} single probes, {gaps} s apart"


def barely(report: Report) -> Iterator[str]:
    """Whether thousands of fetches cost tens of connections."""
    if report.connections_opened > 40:
        yield f"{report.connections_opened} connections"
    yield from probed(report)


def budgeted(report: Report) -> Iterator[str]:
    """Whether retries kept to a fifth of the traffic, or three in ten seconds, and a burst of three."""
    arrivals = judge.arrivals_of(report.requests)
    most = max(0.2 * len(arrivals), 0.3 * (arrivals[-1] - arrivals[0])) + 3
    if len(judge.repeats(report.requests)) > most:
        yield f"{len(judge.repeats(report.requests))} retries"


def retried(report: Report) -> str:
    """How many were retries."""
    return f"{len(judge.repeats(report.requests))} retries of {len(report.requests)} requests"


QUIET = f"nothing while quiet is asked, {CONCURRENCY} at once"
CURVE = "nothing for 1, 2, 4 … s, once an incident"
IN_QUOTA = f"{QUOTA} in {WINDOW_S:.0f} s"
ADAPTIVE = "concurrency = {min = 1, max = 64}\nattempts = 100"
IN_CAPACITY = f"{CAPACITY} at once, {LESS} after {LESS_FROM_S:.0f} s"


def throttled(name: str, throttle: Behaviour, *, said: bool = True) -> Host:
    """A host that asks for quiet ten times."""
    behaviour = latency(0.02, limits.after(10, 10, throttle))
    if said:
        return Host(f"429, {name}", QUIET, behaviour, many(60), quiet, waits)
    return Host(f"429, {name}", CURVE, behaviour, many(60), curved, waits)


def capacity(name: str, refuse: Behaviour) -> Host:
    """A host that can take so many at once."""
    behaviour = Capacity([(0, CAPACITY), (LESS_FROM_S, LESS)], refuse, 0.05)
    return Host(f"capacity, {name}", IN_CAPACITY, behaviour, many(9000), adapted, found, ADAPTIVE)


def limited(name: str, announce: Announce) -> Host:
    """A host that tells its quota."""
    behaviour = latency(0.02, Quota(QUOTA, WINDOW_S, announce))
    return Host(name, IN_QUOTA, behaviour, many(150), unrefused, rate_of)


HOSTS = (
    throttled("no Retry-After", limits.vague(None), said=False),
    throttled("Retry-After: junk", limits.vague("in a while"), said=False),
    throttled("Retry-After: 0", limits.vague("0"), said=False),
    throttled("Retry-After: 3", retry_after(3)),
    throttled("a date, clock an hour off", limits.retry_on(3, 3600)),
    throttled(f"Retry-After: 1000000, cap {CAP_S:.0f} s", retry_after(1_000_000)),
    limited("RateLimit", limits.ietf),
    limited("RateLimit-Remaining", limits.trio),
    limited("X-RateLimit, epoch", limits.epoch),
    Host(
        "paced",
        f"{RATE_PER_S} a second, burst {BURST}",
        latency(0.01),
        many(300),
        paced,
        policy=f"rate_per_s = {RATE_PER_S}\nburst = {BURST}",
    ),
    capacity("503 above", status(503)),
    capacity("429 above", status(429)),
    Host(
        "fails (500)",
        f"{BREAKER_FAILURES} (+{CONCURRENCY - 1} in flight), then single probes",
        latency(0.05, status(500)),
        many(500),
        probed,
        after_opening,
        "attempts = 100\ngive_up_s = 3600",
    ),
    Host(
        f"dead, {DEAD_FETCHES:,} fetches",
        f"tens of connections in {GIVE_UP_S} s",
        reset,
        many(DEAD_FETCHES),
        barely,
        after_opening,
    ),
    Host(
        "half of it fails",
        "a fifth of the traffic as retries",
        latency(0.02, by_path({"/bad": status(500), "/good": ok()})),
        lambda url: [
            fetch for i in range(1500) for fetch in many(2, f"/{'good' if i % 2 else 'bad'}/{i}")(url)
        ],
        budgeted,
        retried,
        "breaker_failures = 1000",
    ),
)

HEALTHY = 8
ROUNDS = 3
BAD: Mapping[str, Callable[[], Behaviour]] = {
    "throttled": lambda: retry_after(3600),
    "slow": lambda: slow(b"drip", 0.5, 100_000),
    "dead": lambda: reset,
}
