"""The decision to use a body stored before while the host is down. Pure."""

from fetchfleet.jobs.contract.checks.field_checks import Fallback
from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.fetch.rules.decide import Finish
from fetchfleet.worker.fetch.rules.outcome import Answered, AttemptOutcome, Failed, is_host_failure
from fetchfleet.worker.gate.gate import WaitReason
from fetchfleet.worker.policy.model import LanePolicy

_DOWN = frozenset(
    {
        Reason.CONNECT,
        Reason.CONNECT_TIMEOUT,
        Reason.DNS,
        Reason.DNS_NXDOMAIN,
        Reason.DNS_SERVFAIL,
        Reason.DNS_TIMEOUT,
        Reason.HOST_DEAD,
    }
)
_CLOSED_BY_THE_HOST = frozenset({WaitReason.BREAKER, WaitReason.COOL_DOWN, WaitReason.ROBOTS})


def is_allowed(fetch: Fetch, policy: LanePolicy) -> bool:
    """Return whether the fetch accepts a body stored before. policy: of the host in the fetch's own URL."""
    return fetch.method == "GET" and (fetch.fallback or policy.fallback) == Fallback.STALE


def is_host_down(entry: Entry, finish: Finish, outcome: AttemptOutcome, closed: WaitReason | None) -> bool:
    """Return whether the fetch ends because its host is down.

    A host that responds with a 4xx counts as up, and so does one that the egress policy refuses.
    closed: why the lane is closed, None if it is open.
    """
    if finish.outcome is not Outcome.FAILED or finish.reason is None:
        return False
    if finish.reason is Reason.THROTTLED or finish.reason in _DOWN:
        return True
    if finish.reason is Reason.HTTP_STATUS:
        return _is_failing(outcome)
    if finish.reason is Reason.DEADLINE:
        return closed in _CLOSED_BY_THE_HOST or _is_failing(outcome) or entry.last in _DOWN
    return False


def _is_failing(outcome: AttemptOutcome) -> bool:
    if isinstance(outcome, Failed):
        return outcome.reason in _DOWN
    return isinstance(outcome, Answered) and is_host_failure(outcome.status)
