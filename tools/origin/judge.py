"""Measure politeness by the requests that an origin recorded."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from tools.origin.server import Seen as Seen  # noqa: PLC0414
from tools.origin.server import Window

REFUSALS = frozenset({429, 503})


def arrivals_of(seen: Iterable[Seen]) -> list[float]:
    """Return the arrival times, sorted."""
    return sorted(request.arrived_s for request in seen)


def gaps_of(seen: Iterable[Seen]) -> list[float]:
    """Return the intervals between arrivals."""
    return [after - before for before, after in pairwise(arrivals_of(seen))]


def most_at_once(seen: Iterable[Seen], since_s: float = 0.0) -> int:
    """Return the peak number of concurrent requests from since_s on."""
    most = running = 0
    steps = [(request.arrived_s, 1) for request in seen] + [(request.finished_s, -1) for request in seen]
    for at_s, step in sorted(steps):  # at equal times an end comes before a start
        running += step
        if at_s >= since_s:
            most = max(most, running)
    return most


def refused(seen: Iterable[Seen], since_s: float = 0.0) -> float:
    """Return the share of 429 and 503 among the responses to requests from since_s on."""
    responded = [request for request in seen if request.arrived_s >= since_s and request.status is not None]
    return sum(request.status in REFUSALS for request in responded) / max(1, len(responded))


def closer_than(seen: Iterable[Seen], interval_s: float, burst: int, slack_s: float) -> list[float]:
    """Return the time in s by which each request arrived too early for a rate limit.

    The last of any burst + n requests may arrive n intervals after the first. slack_s: allowance for jitter.
    """
    arrivals = arrivals_of(seen)
    early: list[float] = []
    for index, first_s in enumerate(arrivals):
        for n, last_s in enumerate(arrivals[index + burst :], 1):
            too_early_s = n * interval_s - (last_s - first_s) - slack_s
            if too_early_s > 0:
                early.append(too_early_s)
    return early


def waits_after(seen: Iterable[Seen], status: int, together_s: float = 0.5) -> list[float]:
    """Return the pauses after responses with this status. Requests less than together_s apart count once."""
    waits: list[float] = []
    pending = False
    for before, after in pairwise(sorted(seen, key=lambda request: request.arrived_s)):
        pending = pending or before.status == status
        gap_s = after.arrived_s - before.arrived_s
        if gap_s >= together_s:
            waits += [gap_s] if pending else []
            pending = False
    return waits


def capped(windows: Sequence[Window], most_s: float) -> list[Window]:
    """Return the back-off windows, shortened to most_s, the cap of the policy."""
    return [(from_s, min(until_s, from_s + most_s)) for from_s, until_s in windows]


def repeats(seen: Iterable[Seen]) -> list[Seen]:
    """Return the requests that repeat an earlier one: retries."""
    known: set[tuple[str, str]] = set()
    found: list[Seen] = []
    for request in sorted(seen, key=lambda request: request.arrived_s):
        key = (request.method, request.target)
        if key in known:
            found.append(request)
        known.add(key)
    return found
