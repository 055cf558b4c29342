"""The decision after an attempt: result, retry or wait. Pure. The clock and chance are arguments.

Three counters are kept apart: failures cost an attempt, throttles and interruptions never do. One deadline
bounds them all.
"""

import msgspec

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.worker.fetch.rules.outcome import (
    AlreadyExists,
    Answered,
    AttemptOutcome,
    Failed,
    Interrupted,
    Redirected,
    Stored,
    Unchanged,
    is_retried,
    is_throttle,
    throttle_of,
)
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.backoff import full_jitter_s, upward_jitter_s

DISK_DOUBLINGS = 4
"""How often the pause of a fetch doubles whose body the disk refuses: 5 s, then 10, up to 80."""


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The fetch ends."""

    outcome: Outcome
    reason: Reason | None = None


STORED = Finish(outcome=Outcome.STORED)
CANCELLED = Finish(outcome=Outcome.CANCELLED)
UNCHANGED = Finish(outcome=Outcome.UNCHANGED)
EXISTS = Finish(outcome=Outcome.FAILED, reason=Reason.EXISTS)
DISALLOWED = Finish(outcome=Outcome.FAILED, reason=Reason.ROBOTS_DISALLOWED)
HOST_DEAD = Finish(outcome=Outcome.FAILED, reason=Reason.HOST_DEAD)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """The fetch waits in its lane for another attempt."""

    entry: Entry
    """With its counters after this attempt."""
    wait_s: float
    reason: Reason | None


class MoveLane(msgspec.Struct, frozen=True, kw_only=True):
    """The fetch continues in another lane."""

    entry: Entry


Decision = Finish | Retry | MoveLane


class HostState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the host's gate at the time of a decision."""

    opens_ms: int = 0
    """When the lane opens."""
    retry_ms: int = 0
    """When the retry budget allows one more retry."""
    dead: bool = False
    """Whether the host is given up."""


def decide(
    entry: Entry,
    outcome: AttemptOutcome,
    policy: LanePolicy,
    now_ms: int,
    host: HostState,
    chance: float,
) -> Decision:
    """Decide what becomes of the fetch; chance in [0, 1)."""
    match outcome:
        case Stored():
            return STORED
        case Unchanged() | AlreadyExists() | Answered(status=304):
            return UNCHANGED
        case Answered(status=status, wait_s=wait_s) if is_throttle(status, wait_s):
            return _throttled(entry, now_ms, host.opens_ms)
        case Answered(status=status, wait_s=wait_s) if is_retried(status, wait_s):
            safe = may_repeat(entry)
            return _failed(entry, Reason.HTTP_STATUS, policy, now_ms, host, chance, wait_s, safe=safe)
        case Answered():
            return Finish(outcome=Outcome.FAILED, reason=Reason.HTTP_STATUS)
        case Failed(final=True, reason=reason):
            return Finish(outcome=Outcome.FAILED, reason=reason)
        case Failed(reason=reason, sent=sent):
            safe = not sent or may_repeat(entry)
            return _failed(entry, reason, policy, now_ms, host, chance, safe=safe)
        case Interrupted(reason=interruption, wait_s=pause_s):
            return _interrupted(entry, interruption, now_ms, pause_s)
        case Redirected(hop=hop, hops=hops, wait_s=wait_s):
            moved = msgspec.structs.replace(entry, hop=hop, hops=hops)
            if wait_s is None:
                return MoveLane(entry=moved)
            wait_s = upward_jitter_s(min(wait_s, policy.throttle_cap_s), chance)
            return _retry_in_time(moved, wait_s, None, now_ms)


def defer_for_robots(entry: Entry, outcome: AttemptOutcome, now_ms: int, host: HostState) -> Finish | Retry:
    """Decide what becomes of a fetch whose host does not say what its robots.txt allows.

    No attempt is charged: the fetch's own URL was not requested.
    """
    if host.dead:
        return HOST_DEAD
    if throttle_of(outcome):
        return _throttled(entry, now_ms, host.opens_ms)
    reason = outcome.reason if isinstance(outcome, Failed) else Reason.HTTP_STATUS
    after = msgspec.structs.replace(entry, last=reason)
    return _retry_in_time(after, max(0, host.opens_ms - now_ms) / 1000, reason, now_ms)


def may_repeat(entry: Entry) -> bool:
    """Return whether the request may be sent twice: by its method, an Idempotency-Key, or its caller."""
    if entry.method in IDEMPOTENT_METHODS or entry.fetch.retry_unsafe:
        return True
    return any(name.lower() == "idempotency-key" for name, _ in entry.request.headers)


def expired(entry: Entry, now_ms: int, *, cooling: bool = False) -> Finish | None:
    """Return the end of a fetch whose deadline has passed, None while there is time.

    cooling: the host is in a cool-down, because of this fetch or another one.
    """
    if now_ms < entry.deadline_ms:
        return None
    throttled = cooling or entry.last is Reason.THROTTLED
    return Finish(outcome=Outcome.FAILED, reason=Reason.THROTTLED if throttled else Reason.DEADLINE)


def _failed(
    entry: Entry,
    reason: Reason,
    policy: LanePolicy,
    now_ms: int,
    host: HostState,
    chance: float,
    asked_s: float | None = None,
    *,
    safe: bool,
) -> Finish | Retry:
    """Charge an attempt. asked_s: the Retry-After. safe: the request may be sent again."""
    attempts = entry.attempts + 1
    if not safe or attempts >= policy.attempts:
        return Finish(outcome=Outcome.FAILED, reason=reason)
    if host.dead:
        return HOST_DEAD
    wait_s = full_jitter_s(attempts, policy.retry_base_s, policy.retry_cap_s, chance)
    wait_s = max(wait_s, (host.retry_ms - now_ms) / 1000)
    if asked_s is not None:
        wait_s = max(wait_s, upward_jitter_s(min(asked_s, policy.throttle_cap_s), chance))
    # The hop stays: the fetch's own URL belongs to another lane, and its method may not be repeatable.
    after = msgspec.structs.replace(entry, attempts=attempts, last=reason)
    return _retry_in_time(after, wait_s, reason, now_ms)


def _throttled(entry: Entry, now_ms: int, opens_ms: int) -> Finish | Retry:
    after = msgspec.structs.replace(entry, throttles=entry.throttles + 1, last=Reason.THROTTLED)
    return _retry_in_time(after, max(0, opens_ms - now_ms) / 1000, Reason.THROTTLED, now_ms)


def _interrupted(entry: Entry, reason: Reason | None, now_ms: int, wait_s: float) -> Finish | Retry:
    if not may_repeat(entry):
        return Finish(outcome=Outcome.FAILED, reason=reason or Reason.INTERRUPTED)
    after = msgspec.structs.replace(entry, interruptions=entry.interruptions + 1)
    if reason is Reason.DISK:  # each attempt makes the host send the body again
        wait_s *= 2 ** min(entry.interruptions, DISK_DOUBLINGS)
    return _retry_in_time(after, wait_s, reason, now_ms)


def _retry_in_time(entry: Entry, wait_s: float, reason: Reason | None, now_ms: int) -> Finish | Retry:
    """Retry if the wait ends before the deadline; else the fetch fails now."""
    if now_ms + wait_s * 1000 < entry.deadline_ms:
        return Retry(entry=entry, wait_s=wait_s, reason=reason)
    late = reason if reason in {Reason.THROTTLED, Reason.DISK} else Reason.DEADLINE
    return Finish(outcome=Outcome.FAILED, reason=late)
