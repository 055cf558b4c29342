"""The decision after an attempt: result, retry or move to another lane. Pure.

Only failures charge an attempt; throttles and interruptions have counters of their own. The deadline bounds
all three.
"""

import msgspec

from fetchfleet.jobs.contract.checks.field_checks import IDEMPOTENT_METHODS
from fetchfleet.jobs.contract.entry import MAX_RETRY_WAITS, Entry
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.fetch.rules.accept import requirements_of
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
"""The number of doublings of the pause after the disk refuses a body: 5 s, 10 s, up to 80 s by default."""


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
    """The entry with its counters after this attempt."""
    wait_s: float
    reason: Reason | None
    """None if the worker interrupted the attempt without a reason, or a redirect asks to wait."""


class MoveLane(msgspec.Struct, frozen=True, kw_only=True):
    """The fetch continues in another lane."""

    entry: Entry


Decision = Finish | Retry | MoveLane


class HostState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the host's gate at the time of a decision."""

    opens_ms: int = 0
    """The time when the lane opens, by Redis's clock."""
    retry_ms: int = 0
    """The time when the retry budget allows one more retry, by Redis's clock."""
    dead: bool = False
    """True if the host has been down for so long that its fetches end."""


def decide(
    entry: Entry,
    outcome: AttemptOutcome,
    policy: LanePolicy,
    now_ms: int,
    host: HostState,
    chance: float,
) -> Decision:
    """Return the decision about the fetch. chance: a random number in [0, 1), for jitter."""
    match outcome:
        case Stored():
            return STORED
        case Unchanged() | AlreadyExists() | Answered(status=304):
            return UNCHANGED
        case Answered(status=status, wait_s=wait_s) if is_throttle(status, wait_s):
            return _throttled(entry, now_ms, host.opens_ms)
        case Answered(status=status, wait_s=wait_s) if (
            is_retried(status, wait_s) or status in requirements_of(entry.fetch, policy).retry_statuses
        ):
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
    """Return the decision about a fetch whose host did not provide a usable robots.txt.

    No attempt is charged, since the fetch's own URL was not requested.
    """
    if host.dead:
        return HOST_DEAD
    if throttle_of(outcome):
        return _throttled(entry, now_ms, host.opens_ms)
    reason = outcome.reason if isinstance(outcome, Failed) else Reason.HTTP_STATUS
    after = msgspec.structs.replace(entry, last=reason)
    return _retry_in_time(after, max(0, host.opens_ms - now_ms) / 1000, reason, now_ms)


def may_repeat(entry: Entry) -> bool:
    """Return whether the request may be sent twice: by its method, an Idempotency-Key or `retry_unsafe`."""
    if entry.method in IDEMPOTENT_METHODS or entry.fetch.retry_unsafe:
        return True
    return any(name.lower() == "idempotency-key" for name, _ in entry.request.headers)


def expired(entry: Entry, now_ms: int, *, cooling: bool = False) -> Finish | None:
    """Return the end of a fetch whose deadline has passed, else None.

    cooling: the host is in a cool-down, whichever fetch caused it.
    """
    if now_ms < entry.deadline_ms:
        return None
    throttled = cooling or entry.last is Reason.THROTTLED
    return Finish(outcome=Outcome.FAILED, reason=Reason.THROTTLED if throttled else Reason.DEADLINE)


def waiting(entry: Entry, now_ms: int, wait_s: float) -> Entry:
    """Return the entry with a note of its wait for the next attempt, for its log line."""
    wait = (now_ms, now_ms + int(wait_s * 1000))
    return msgspec.structs.replace(entry, retry_waits=(*entry.retry_waits, wait)[-MAX_RETRY_WAITS:])


def _failed(
    entry: Entry,
    reason: Reason,
    policy: LanePolicy,
    now_ms: int,
    host: HostState,
    chance: float,
    retry_after_s: float | None = None,
    *,
    safe: bool,
) -> Finish | Retry:
    """Charge an attempt. safe: the request may be sent again."""
    attempts = entry.attempts + 1
    if not safe or attempts >= policy.attempts:
        return Finish(outcome=Outcome.FAILED, reason=reason)
    if host.dead:
        return HOST_DEAD
    wait_s = full_jitter_s(attempts, policy.retry_base_s, policy.retry_cap_s, chance)
    wait_s = max(wait_s, (host.retry_ms - now_ms) / 1000)
    if retry_after_s is not None:
        wait_s = max(wait_s, upward_jitter_s(min(retry_after_s, policy.throttle_cap_s), chance))
    # The retry repeats the hop: the fetch's own URL may belong to another lane or have an unsafe method.
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
    """Return a retry if the wait ends before the deadline, else the end of the fetch."""
    if now_ms + wait_s * 1000 < entry.deadline_ms:
        return Retry(entry=entry, wait_s=wait_s, reason=reason)
    end_reason = reason if reason in {Reason.THROTTLED, Reason.DISK} else Reason.DEADLINE
    return Finish(outcome=Outcome.FAILED, reason=end_reason)
