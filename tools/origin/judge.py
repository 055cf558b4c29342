"""What a host's record says of our politeness. All of it is counted out of what the origin saw."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from tools.origin.server import Seen as Seen  # noqa: PLC0414
from tools.origin.server import Window

REFUSALS = frozenset({429, 503})


def arrivals_of(seen: Iterable[Seen]) -> list[float]:
    """When the requests arrived, in this order."""
    return sorted(request.arrived_s for request in seen)


def gaps_of(seen: Iterable[Seen]) -> list[float]:
    """The pauses between one request's arrival and the next one's."""
    return [after - before for before, after in pairwise(arrivals_of(seen))]


def most_at_once(seen: Iterable[Seen], since_s: float = 0.0) -> int:
    """How many requests were in progress together, at a moment from since_s on."""
    most = running = 0
    steps = [(request.arrived_s, 1) for request in seen] + [(request.finished_s, -1) for request in seen]
    for at_s, step in sorted(steps):  # an end before a beginning of the same moment
        running += step
        if at_s >= since_s:
            most = max(most, running)
    return most


def refused(seen: Iterable[Seen], since_s: float = 0.0) -> float:
    """The share of refusals among the answers to what arrived from since_s on."""
    answered = [request for request in seen if request.arrived_s >= since_s and request.status is not None]
    return sum(request.status in REFUSALS for request in answered) / max(1, len(answered))


def closer_than(seen: Iterable[Seen], interval_s: float, burst: int, slack_s: float) -> list[float]:
    """By how much requests came too early for a pace; the slack forgives what the way takes or adds.

    Of any burst + n requests the last comes n intervals after the first, whoever sent them.
    """
    arrivals = arrivals_of(seen)
    early: list[float] = []
    for place, first_s in enumerate(arrivals):
        for n, last_s in enumerate(arrivals[place + burst :], 1):
            too_early_s = n * interval_s - (last_s - first_s) - slack_s
            if too_early_s > 0:
                early.append(too_early_s)
    return early


def waits_after(seen: Iterable[Seen], status: int, together_s: float = 0.5) -> list[float]:
    """How long nothing arrived after answers of that status; those that came together count once."""
    waits: list[float] = []
    among = False
    for before, after in pairwise(sorted(seen, key=lambda request: request.arrived_s)):
        among = among or before.status == status
        gap_s = after.arrived_s - before.arrived_s
        if gap_s >= together_s:
            waits += [gap_s] if among else []
            among = False
    return waits


def quiet_for(windows: Sequence[Window], most_s: float) -> list[Window]:
    """The windows as they bind a fleet whose policy caps a cool-down."""
    return [(from_s, min(until_s, from_s + most_s)) for from_s, until_s in windows]


def repeats(seen: Iterable[Seen]) -> list[Seen]:
    """The requests for what had been asked for before: retries."""
    known: set[tuple[str, str]] = set()
    found: list[Seen] = []
    for request in sorted(seen, key=lambda request: request.arrived_s):
        name = (request.method, request.target)
        if name in known:
            found.append(request)
        known.add(name)
    return found
