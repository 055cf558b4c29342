"""The log lines of lanes, with their fields."""

from structlog.typing import FilteringBoundLogger

from fetchfleet.jobs.notifications import LaneNotification
from fetchfleet.worker.gate.gate import Closed
from fetchfleet.worker.gate.state import Breaker, GateState
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.observability.log import Event

_BREAKER_EVENTS = {
    Breaker.OPEN: Event.LANE_BREAKER_OPEN,
    Breaker.HALF_OPEN: Event.LANE_BREAKER_HALF_OPEN,
    Breaker.CLOSED: Event.LANE_BREAKER_CLOSED,
}


def gate_changed(lane: Lane, before: GateState, log: FilteringBoundLogger) -> None:
    """Log a cool-down that begins or grows, and a breaker that changes."""
    after = lane.gate
    if after.cool_until_ms > before.cool_until_ms:
        wait_s = (after.cool_until_ms - lane.clock.now_ms()) / 1000
        log.info(
            Event.LANE_COOLING,
            lane=lane.name,
            until_ms=after.cool_until_ms,
            wait_s=round(wait_s, 3),
            incidents=after.incidents,
        )
    if after.breaker is not before.breaker:
        event = _BREAKER_EVENTS[after.breaker]
        log.info(event, lane=lane.name, failures=after.failures, until_ms=after.open_until_ms)


def released(
    lane: Lane,
    closed: Closed | None,
    due: LaneNotification | None,
    handed_back: int,
    log: FilteringBoundLogger,
) -> None:
    """Log that the lane was given back."""
    log.info(
        Event.LANE_RELEASED,
        lane=lane.name,
        more=due is not None,
        due_in_ms=due.due_in_ms if due else None,
        why=closed.why.value if closed else None,
        handed_back=handed_back,
    )


def yielded(lane: Lane, held: int, busy: int, workers: int, log: FilteringBoundLogger) -> None:
    """Log that the lane is given back for another worker; held: how many lanes this one has with it."""
    log.info(
        Event.LANE_YIELDED,
        lane=lane.name,
        in_flight=len(lane.in_flight),
        held=held,
        busy=busy,
        workers=workers,
    )


def unverified_tls(lane: Lane, log: FilteringBoundLogger) -> None:
    """Log that the policy turns certificate verification off for the lane's host."""
    log.warning(Event.LANE_UNVERIFIED_TLS, lane=lane.name)
