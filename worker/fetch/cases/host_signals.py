"""The signals of a host besides good responses: throttles, failures, quotas, probes, Retry-After."""

from fetchfleet.jobs.contract.result import Reason
from fetchfleet.worker.fetch.rules.decide import Finish, HostState
from fetchfleet.worker.fetch.rules.outcome import (
    AttemptOutcome,
    is_host_failure,
    observation_of,
    throttle_of,
)
from fetchfleet.worker.fetch.services import FetchSession
from fetchfleet.worker.gate import breaker, gate, quota, retry_budget
from fetchfleet.worker.gate.gate import HostSignal, Observation
from fetchfleet.worker.gate.retry_after import retry_after_s
from fetchfleet.worker.gate.state import Breaker
from fetchfleet.worker.http.exchange import Answer, Trace


def learn_from_head(session: FetchSession, trace: Trace, answer: Answer) -> None:
    """Close the breaker if this is a probe that succeeds, and apply the host's quota.

    The response head is enough: the breaker does not wait for the end of a large body.
    """
    lane, before = session.lane, session.lane.gate
    now_ms = lane.clock.now_ms()
    if before.breaker is Breaker.HALF_OPEN and not is_host_failure(answer.status):
        answered = Observation(HostSignal.ANSWERED, lane.since_ms(trace.started_s), lane.requests)
        session.change_gate(gate.attempt_ended(before, lane.policy, answered, now_ms, 0.0))
    host_quota = quota.quota_of(answer.header, now_ms) if lane.policy.quota else None
    # A Retry-After takes precedence (draft-ietf-httpapi-ratelimit-headers-11 §5).
    if host_quota is not None and answer.header("retry-after") is None:
        max_in_flight = gate.max_in_flight(lane.gate, lane.policy)
        in_flight = lane.requests - 1
        session.change_gate(gate.quota_received(lane.gate, host_quota, in_flight, now_ms, max_in_flight))
    if lane.gate is not before:
        lane.notify()


def requested_wait_s(answer: Answer, now_ms: int) -> float | None:
    """Return the Retry-After of the response in seconds; None if it has no valid one."""
    value = ", ".join(answer.values("retry-after"))
    return retry_after_s(value, answer.header("date"), now_ms)


def learn(session: FetchSession, trace: Trace, outcome: AttemptOutcome, fetch_id: str = "") -> None:
    """Report the outcome of an exchange to the lane's gate.

    fetch_id: of the fetch whose request it was; empty for a request of robots.txt.
    """
    lane, services = session.lane, session.services
    now_ms, sent_ms = lane.clock.now_ms(), lane.since_ms(trace.started_s)
    observation = observation_of(outcome, sent_ms, lane.requests, trace.latency_ms, fetch_id)
    state = gate.attempt_ended(lane.gate, lane.policy, observation, now_ms, services.chance())
    throttle = throttle_of(outcome)
    if throttle is not None:
        services.settler.totals.throttles += 1
        state = gate.throttled(state, lane.policy, throttle.wait_s, now_ms, services.chance())
    session.change_gate(state, save=True)


def note_of_dead_host(session: FetchSession, finish: Finish) -> str | None:
    """Return for how long a dead host has been down, and its last failure; None for another end."""
    if finish.reason is not Reason.HOST_DEAD:
        return None
    return breaker.down_text(session.lane.gate, session.lane.clock.now_ms())


def host_state(session: FetchSession) -> HostState:
    """Return the state of the host's gate for a decision."""
    lane = session.lane
    now_ms, closed = lane.clock.now_ms(), lane.closed()
    return HostState(
        opens_ms=closed.until_ms if closed else now_ms,
        retry_ms=retry_budget.retry_not_before_ms(lane.gate, now_ms),
        dead=gate.is_dead(lane.gate, lane.policy, now_ms),
    )
