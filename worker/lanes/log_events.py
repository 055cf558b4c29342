"""The log lines of lanes, with their fields."""

from typing import Any

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


def gate_changed(lane: Lane, before: GateState, log: Any) -> None:
    """A line for each thing that the gate has newly learnt of the host."""
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
    lane: Lane, shut: Closed | None, wake: LaneNotification | None, handed_back: int, log: Any
) -> None:
    """The lane was given back."""
    log.info(
        Event.LANE_RELEASED,
        lane=lane.name,
        more=wake is not None,
        due_in_ms=wake.due_in_ms if wake else None,
        why=shut.why.value if shut else None,
        handed_back=handed_back,
    )


def yielded(lane: Lane, held: int, busy: int, workers: int, log: Any) -> None:
    """The lane is given back for another worker to have it; held: how many we have with it."""
    log.info(
        Event.LANE_YIELDED,
        lane=lane.name,
        in_flight=len(lane.in_flight),
        held=held,
        busy=busy,
        workers=workers,
    )


def unverified_tls(lane: Lane, log: Any) -> None:
    """Whoever answers for the lane's host is believed, because its policy says so."""
    log.warning(Event.LANE_UNVERIFIED_TLS, lane=lane.name)
