"""The hostile hosts of the scenarios: the limit of each, and checks of their records."""

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
"""Requests may arrive this long after a 429: they were in transit when it was sent."""

CONCURRENCY = 4
CAP_S = 5.0
BREAKER_FAILURES, BREAKER_RESET_S, GIVE_UP_S = 5, 2.0, 20
RATE_PER_S, BURST = 10, 3
CAPACITY, LESS, LESS_FROM_S, ADAPTED_S, ENDS_S = 12, 4, 15.0, 18.0, 45.0
QUOTA, WINDOW_S = 12, 3.0
DEAD_FETCHES = 3000


class Host(NamedTuple):
    """A host of the scenarios."""

    name: str
    limit: str
    """The limit, in words."""
    behaviour: Behaviour
    fetches: Callable[[str], Sequence[Fetch]]
    """Makes the fetches from the URL of the host."""
    faults: Callable[[Report], Iterator[str]]
    """Yields the ways in which the recorded requests exceed the limit."""
    measured: Callable[[Report], str] = lambda _: ""
    """Returns further figures to show."""
    policy: str = ""
    """Keys of the host's policy table."""


def many(count: int, path: str = "/files") -> Callable[[str], Sequence[Fetch]]:
    """Return a function that makes `count` fetches of a host."""
    return lambda url: [Fetch(url=f"{url}{path}/{i}") for i in range(count)]


def backed_off(report: Report) -> Iterator[str]:
    """Check that the back-off windows and the concurrency limit were respected."""
    inside = requests_inside(judge.capped(report.windows, CAP_S), report.requests, ON_THE_WIRE_S)
    if inside:
        yield f"{len(inside)} requests inside a back-off window"
    if report.high_water > CONCURRENCY:
        yield f"{report.high_water} requests at once"


def curved(report: Report) -> Iterator[str]:
    """Check that each cool-down was at least as long as the back-off curve requires."""
    waits = judge.waits_after(report.requests, 429)
    if any(wait_s < min(2**n, CAP_S) - 0.05 for n, wait_s in enumerate(waits)):
        yield f"cool-downs of {', '.join(f'{wait_s:.1f}' for wait_s in waits)} s"


def waits(report: Report) -> str:
    """Show the cool-downs, in seconds."""
    return "cool-downs of " + ", ".join(f"{wait_s:.1f}" for wait_s in judge.waits_after(report.requests, 429))


def unrefused(report: Report) -> Iterator[str]:
    """Check that the quota was never exceeded."""
    refused = sum(seen.status == 429 for seen in report.requests)
    if refused:
        yield f"{refused} requests above the quota"


def rate_of(report: Report) -> str:
    """Show the average number of requests in a window."""
    arrivals = judge.arrivals_of(report.requests)
    return f"{len(arrivals) * WINDOW_S / (arrivals[-1] - arrivals[0] + WINDOW_S):.1f} a window"


def rate_limited(report: Report) -> Iterator[str]:
    """Check the rate limit for every pair of requests."""
    early = judge.closer_than(report.requests, 1 / RATE_PER_S, BURST, 0.1)
    if early:
        yield f"{len(early)} requests too early, by {max(early):.2f} s at most"


def stretches(report: Report) -> Iterator[tuple[int, list[Seen]]]:
    """Yield each capacity with the requests while it was stable: before the change, and well after."""
    first_s = min(judge.arrivals_of(report.requests))
    for capacity, from_s, until_s in (
        (CAPACITY, LESS_FROM_S / 3, LESS_FROM_S - 0.1),
        (LESS, LESS_FROM_S + ADAPTED_S, ENDS_S),
    ):
        seen = [seen for seen in report.requests if from_s <= seen.arrived_s - first_s <= until_s]
        yield capacity, seen


def adapted(report: Report) -> Iterator[str]:
    """Check that concurrency adapted to each capacity: close to it, with few refusals."""
    for capacity, seen in stretches(report):
        most = judge.most_at_once(seen)
        if not 0.6 * capacity <= most <= capacity + 1:
            yield f"{most} at once, the capacity is {capacity}"
        if judge.refused(seen) >= 0.02:
            yield f"{judge.refused(seen):.1%} refused at a capacity of {capacity}"


def capacity_figures(report: Report) -> str:
    """Show the peak concurrency, refusals and goodput for each capacity."""
    shown = []
    for capacity, seen in stretches(report):
        arrivals = judge.arrivals_of(seen)
        good = sum(one.status == 200 for one in seen) / max(0.1, arrivals[-1] - arrivals[0])
        most = judge.most_at_once(seen)
        shown.append(f"{most} of {capacity} used, {judge.refused(seen):.1%} refused, {good:.0f}/s")
    return "; ".join(shown)


def probes(report: Report) -> list[Seen]:
    """Return the requests after the breaker first opened."""
    seen = sorted(report.requests, key=lambda request: request.arrived_s)
    for index, (before, after) in enumerate(pairwise(seen), 1):
        if after.arrived_s - before.arrived_s >= BREAKER_RESET_S - 0.1:
            return seen[index:]
    return []


def probed(report: Report) -> Iterator[str]:
    """Check that few requests came before the breaker opened, and single probes after."""
    after = probes(report)
    first = len(report.requests) - len(after)
    if first > BREAKER_FAILURES + CONCURRENCY - 1:
        yield f"{first} requests before the breaker opened"
    if judge.most_at_once(after) > 1:
        yield f"{judge.most_at_once(after)} probes at once"
    if any(later < sooner * 0.8 for sooner, later in pairwise(judge.gaps_of(after))):
        yield "the intervals between probes get shorter"


def probe_figures(report: Report) -> str:
    """Show the number of requests before the breaker opened, of probes after, and the probes' intervals."""
    after = probes(report)
    gaps = ", ".join(f"{gap_s:.1f}" for gap_s in judge.gaps_of(after))
    return f"{len(report.requests) - len(after)} and {len(after)} single probes, {gaps} s apart"


def few_connections(report: Report) -> Iterator[str]:
    """Check that thousands of fetches open only tens of connections."""
    if report.connections_opened > 40:
        yield f"{report.connections_opened} connections"
    yield from probed(report)


def budgeted(report: Report) -> Iterator[str]:
    """Check that the retries are at most three, plus a fifth of the requests or 0.3 a second."""
    arrivals = judge.arrivals_of(report.requests)
    most = max(0.2 * len(arrivals), 0.3 * (arrivals[-1] - arrivals[0])) + 3
    if len(judge.repeats(report.requests)) > most:
        yield f"{len(judge.repeats(report.requests))} retries"


def retried(report: Report) -> str:
    """Show the number of retries."""
    return f"{len(judge.repeats(report.requests))} retries of {len(report.requests)} requests"


BACKOFF = f"no request during back-off, {CONCURRENCY} at once"
CURVE = "no request for 1, 2, 4 … s, once per incident"
IN_QUOTA = f"{QUOTA} in {WINDOW_S:.0f} s"
ADAPTIVE = "concurrency = {min = 1, max = 64}\nattempts = 100"
IN_CAPACITY = f"{CAPACITY} at once, {LESS} after {LESS_FROM_S:.0f} s"


def throttled(name: str, throttle: Behaviour, *, windows: bool = True) -> Host:
    """Return a host that responds with 429 ten times. windows: True if its Retry-After is valid."""
    behaviour = latency(0.02, limits.after(10, 10, throttle))
    if windows:
        return Host(f"429, {name}", BACKOFF, behaviour, many(60), backed_off, waits)
    return Host(f"429, {name}", CURVE, behaviour, many(60), curved, waits)


def capacity(name: str, refuse: Behaviour) -> Host:
    """Return a host with a limited capacity."""
    behaviour = Capacity([(0, CAPACITY), (LESS_FROM_S, LESS)], refuse, 0.05)
    return Host(f"capacity, {name}", IN_CAPACITY, behaviour, many(9000), adapted, capacity_figures, ADAPTIVE)


def limited(name: str, announce: Announce) -> Host:
    """Return a host that announces its quota."""
    behaviour = latency(0.02, Quota(QUOTA, WINDOW_S, announce))
    return Host(name, IN_QUOTA, behaviour, many(150), unrefused, rate_of)


HOSTS = (
    throttled("no Retry-After", limits.throttle(None), windows=False),
    throttled("Retry-After: junk", limits.throttle("in a while"), windows=False),
    throttled("Retry-After: 0", limits.throttle("0"), windows=False),
    throttled("Retry-After: 3", retry_after(3)),
    throttled("a date, clock an hour off", limits.retry_on(3, 3600)),
    throttled(f"Retry-After: 1000000, cap {CAP_S:.0f} s", retry_after(1_000_000)),
    limited("RateLimit", limits.ietf),
    limited("RateLimit-Remaining", limits.trio),
    limited("X-RateLimit, epoch", limits.epoch),
    Host(
        "rate limit",
        f"{RATE_PER_S} a second, burst {BURST}",
        latency(0.01),
        many(300),
        rate_limited,
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
        probe_figures,
        "attempts = 100\ngive_up_s = 3600",
    ),
    Host(
        f"dead, {DEAD_FETCHES:,} fetches",
        f"tens of connections in {GIVE_UP_S} s",
        reset,
        many(DEAD_FETCHES),
        few_connections,
        probe_figures,
    ),
    Host(
        "every second fetch fails",
        "retries at most a fifth of the traffic",
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
