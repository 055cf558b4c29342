"""The wait of a fetch by cause: the closed periods of its lane, and the waits for a retry. Pure."""

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from fetchfleet.worker.gate.gate import Closed
from fetchfleet.worker.gate.state import ClosedPeriod, GateState

MAX_PERIODS = 8
"""The number of closed periods that a lane remembers. Waits before them count as `queue`."""

JOIN_MS = 50
"""The longest gap between two closed periods with one reason that count as one, as under a rate limit."""

RETRY, QUEUE = "retry", "queue"
"""The causes of a wait besides the reasons of a closed lane."""


def closed(state: GateState, closing: Closed, now_ms: int) -> GateState:
    """Return the state after the lane was found closed. The period lasts until the lane is due to open."""
    why, until_ms, before = closing.why.value, closing.until_ms, state.closed
    last = before[-1] if before else None
    if last is not None and last.why == why and last.until_ms >= now_ms - JOIN_MS:
        if last.until_ms == until_ms:
            return state
        periods = (*before[:-1], replace(last, until_ms=until_ms))
    else:
        periods = (*opened(state, now_ms).closed, ClosedPeriod(why, now_ms, until_ms))
    return replace(state, closed=periods[-MAX_PERIODS:])


def opened(state: GateState, now_ms: int) -> GateState:
    """Return the state after the lane was found open. It may have opened early."""
    if not state.closed or state.closed[-1].until_ms <= now_ms:
        return state
    *before, last = state.closed
    return replace(state, closed=(*before, replace(last, until_ms=max(last.from_ms, now_ms))))


def waited_ms(
    queue_ms: float,
    submitted_ms: int,
    closed_periods: Iterable[ClosedPeriod],
    retry_waits: Iterable[tuple[int, int]],
) -> dict[str, float]:
    """Return the parts of a wait by cause, in ms. Their sum is the whole wait.

    A closed lane precedes a wait for a retry. The rest is QUEUE, earlier attempts included.
    queue_ms: from submitted_ms (Unix ms) to the start of the last attempt. retry_waits: (start, end) each.
    """
    until_ms = submitted_ms + int(queue_ms)
    waited: dict[str, float] = {}
    shut: list[tuple[int, int]] = []
    for why, from_ms, to_ms in _disjoint(
        ((period.why, period.from_ms, period.until_ms) for period in closed_periods), submitted_ms, until_ms
    ):
        waited[why] = waited.get(why, 0) + to_ms - from_ms
        shut.append((from_ms, to_ms))
    retries = ((RETRY, from_ms, to_ms) for from_ms, to_ms in retry_waits)
    retry_ms = 0
    for _, from_ms, to_ms in _disjoint(retries, submitted_ms, until_ms):
        retry_ms += to_ms - from_ms
        retry_ms -= sum(max(0, min(to_ms, end_ms) - max(from_ms, start_ms)) for start_ms, end_ms in shut)
    if retry_ms:
        waited[RETRY] = retry_ms
    waited[QUEUE] = round(max(0.0, queue_ms - sum(waited.values())), 1)
    return waited


def _disjoint(
    periods: Iterable[tuple[str, int, int]], from_ms: int, until_ms: int
) -> Iterator[tuple[str, int, int]]:
    """Yield the parts of the periods between two times, without those that an earlier one covers."""
    at_ms = from_ms
    for why, start_ms, end_ms in periods:
        start_ms, end_ms = max(start_ms, at_ms), min(end_ms, until_ms)  # noqa: PLW2901
        if end_ms > start_ms:
            yield why, start_ms, end_ms
            at_ms = end_ms
