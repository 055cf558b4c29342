"""What an attempt's outcome means for the fetch. Pure: the clock and chance are arguments.

Three ledgers are kept apart: failures cost an attempt, throttles and interruptions never do. One
deadline bounds them all.
"""

import msgspec

from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.model import Outcome, Reason
from fetchfleet.worker.gate.gate import Seen, Signal
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.backoff import full_jitter_s

RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 §9.2.2
DISK_PAUSE_S = 5.0
DISK_DOUBLINGS = 4
"""A fetch that a disk refuses waits 5 s, then 10, up to 80."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The body came whole and is at its path; coding: it is kept coded so; lines: its records.

    unverified: it is whole as far as anybody can tell. offset, length: of its record, if path is a segment.
    """

    status: int
    path: str | None
    size_bytes: int
    sha256: str | None
    etag: str | None = None
    last_modified: str | None = None
    coding: str | None = None
    lines: int | None = None
    unverified: bool = False
    offset: int | None = None
    length: int | None = None


class Unchanged(msgspec.Struct, frozen=True, kw_only=True):
    """The host has nothing newer (304); path, size and sha256 are those of what is here, if it is."""

    status: int = 304
    path: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    etag: str | None = None
    last_modified: str | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A file stands at the fetch's dest, and stays; status: of an answer whose body came all the same."""

    path: str
    size_bytes: int
    status: int | None = None
    sha256: None = None
    etag: None = None
    last_modified: None = None


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The host answered, without a body for us. wait_s is what its Retry-After asks for."""

    status: int
    wait_s: float | None = None


class Broke(msgspec.Struct, frozen=True, kw_only=True):
    """No usable answer came. sent: the request may have reached the host. final: trying again is vain.

    line: of the body, where that line is at fault.
    """

    reason: Reason
    sent: bool = True
    final: bool = False
    status: int | None = None
    line: int | None = None
    note: str = ""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """We stopped it ourselves, after the request may have reached the host: nobody's fault."""

    reason: Reason | None = None
    wait_s: float = 0.0
    note: str = ""


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A redirect leads where other limits hold."""

    hop: Hop
    hops: int
    status: int


Happened = Stored | Unchanged | Found | Answered | Broke | Held | Moved


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The fetch ends."""

    outcome: Outcome
    reason: Reason | None = None


CANCELLED = Finish(outcome=Outcome.CANCELLED)
UNCHANGED = Finish(outcome=Outcome.UNCHANGED)
EXISTS = Finish(outcome=Outcome.FAILED, reason=Reason.EXISTS)
HOST_DEAD = Finish(outcome=Outcome.FAILED, reason=Reason.HOST_DEAD)


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """The fetch waits in its lane; entry holds the ledgers after this attempt."""

    entry: Entry
    wait_s: float
    reason: Reason | None


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """The fetch goes on in another lane."""

    entry: Entry


Decision = Finish | Again | Transfer


def is_throttle(status: int, wait_s: float | None) -> bool:
    """429 (RFC 6585 §4), or 503 that says when to come back (RFC 9110 §15.6.4)."""
    return status == 429 or (status == 503 and wait_s is not None)


def asks_for_quiet(happened: Happened) -> Answered | None:
    """The answer, if it is a throttle."""
    if isinstance(happened, Answered) and is_throttle(happened.status, happened.wait_s):
        return happened
    return None


def seen_of(happened: Happened) -> Seen:
    """Whether the attempt counts for or against the host: a 4xx is an answer, our own faults nothing."""
    match happened:
        case Answered(status=status, wait_s=wait_s):
            if is_throttle(status, wait_s) or status == 503:
                return Seen.REFUSED
            return Seen.FAILED if status >= 500 else Seen.ANSWERED
        case Broke(reason=reason):
            return _BROKEN_SAYS.get(reason, Seen.FAILED)
        case Held():
            return Seen.NOTHING
        case Stored() | Unchanged() | Found() | Moved():
            return Seen.ANSWERED


def signal_of(happened: Happened, started_ms: int, in_flight: int, latency_ms: float | None) -> Signal:
    """What the attempt teaches the gate; latency_ms: until the head of the answer came."""
    seen = seen_of(happened)
    match happened:
        case Broke(reason=reason):
            what = reason.value
        case Held():
            what = ""
        case _:
            what = str(happened.status)
    good = latency_ms if seen is Seen.ANSWERED and not isinstance(happened, Broke) else None
    throttle = asks_for_quiet(happened) is not None
    return Signal(seen, started_ms, in_flight, good, what, throttle)


_BROKEN_SAYS = {
    Reason.BAD_DEST: Seen.ANSWERED,
    Reason.BAD_ENCODING: Seen.ANSWERED,
    Reason.BAD_LINE: Seen.ANSWERED,
    Reason.CONNECT_TIMEOUT: Seen.TIMED_OUT,
    Reason.DEADLINE: Seen.TIMED_OUT,
    Reason.DIGEST_MISMATCH: Seen.ANSWERED,
    Reason.DNS_NXDOMAIN: Seen.NAMELESS,
    Reason.EGRESS_REFUSED: Seen.NOTHING,
    Reason.EXISTS: Seen.ANSWERED,
    Reason.FIRST_BYTE_TIMEOUT: Seen.TIMED_OUT,
    Reason.INTERNAL: Seen.NOTHING,
    Reason.NO_BODY_FILE: Seen.NOTHING,
    Reason.POOL_TIMEOUT: Seen.NOTHING,
    Reason.READ_TIMEOUT: Seen.TIMED_OUT,
    Reason.REDIRECT_REFUSED: Seen.ANSWERED,
    Reason.ROBOTS_DISALLOWED: Seen.ANSWERED,
    Reason.TLS_TIMEOUT: Seen.TIMED_OUT,
    Reason.TOO_LARGE: Seen.ANSWERED,
    Reason.TOO_MANY_REDIRECTS: Seen.ANSWERED,
    Reason.TOO_SLOW: Seen.TIMED_OUT,
    Reason.TOTAL_TIMEOUT: Seen.TIMED_OUT,
    Reason.WRITE_TIMEOUT: Seen.TIMED_OUT,
}


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of the host as a decision is made.

    opens_ms: when its lane opens; retry_ms: when its budget allows one more retry; dead: it gives no answer
    any more.
    """

    opens_ms: int = 0
    retry_ms: int = 0
    dead: bool = False


def decide(
    entry: Entry,
    happened: Happened,
    policy: LanePolicy,
    now_ms: int,
    host: Host,
    chance: float,
) -> Decision:
    """What becomes of the fetch; chance in [0, 1)."""
    match happened:
        case Stored():
            return Finish(outcome=Outcome.STORED)
        case Unchanged() | Found() | Answered(status=304):
            return UNCHANGED
        case Answered(status=status, wait_s=wait_s) if is_throttle(status, wait_s):
            return _throttled(entry, now_ms, host.opens_ms)
        case Answered(status=status) if status in RETRY_STATUSES:
            may = may_repeat(entry)
            return _failed(entry, Reason.HTTP_STATUS, policy, now_ms, host, chance, may_repeat=may)
        case Answered():
            return Finish(outcome=Outcome.FAILED, reason=Reason.HTTP_STATUS)
        case Broke(final=True, reason=reason):
            return Finish(outcome=Outcome.FAILED, reason=reason)
        case Broke(reason=reason, sent=sent):
            may = not sent or may_repeat(entry)
            return _failed(entry, reason, policy, now_ms, host, chance, may_repeat=may)
        case Held(reason=reason, wait_s=wait_s):
            return _interrupted(entry, reason, now_ms, wait_s)
        case Moved(hop=hop, hops=hops):
            return Transfer(entry=msgspec.structs.replace(entry, hop=hop, hops=hops))


def put_off(entry: Entry, happened: Happened, now_ms: int, host: Host) -> Decision:
    """What becomes of a fetch whose host does not say what its robots.txt allows.

    No attempt is charged: nothing was asked of the fetch's own URL.
    """
    if host.dead:
        return Finish(outcome=Outcome.FAILED, reason=Reason.HOST_DEAD)
    if asks_for_quiet(happened):
        return _throttled(entry, now_ms, host.opens_ms)
    reason = happened.reason if isinstance(happened, Broke) else Reason.HTTP_STATUS
    after = msgspec.structs.replace(entry, last=reason)
    return _unless_too_late(after, max(0, host.opens_ms - now_ms) / 1000, reason, now_ms)


def may_repeat(entry: Entry) -> bool:
    """Whether its request may reach the host twice: by its method, an Idempotency-Key, or its caller."""
    if entry.method in IDEMPOTENT_METHODS or entry.fetch.retry_unsafe:
        return True
    return any(name.lower() == "idempotency-key" for name, _ in entry.request.headers)


def expired(entry: Entry, now_ms: int, *, cooling: bool = False) -> Finish | None:
    """The end of a fetch whose deadline has passed, None while there is time.

    cooling: it waits because its host has asked for quiet, be it of another fetch.
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
    host: Host,
    chance: float,
    *,
    may_repeat: bool,
) -> Decision:
    attempts = entry.attempts + 1
    if not may_repeat or attempts >= policy.attempts:
        return Finish(outcome=Outcome.FAILED, reason=reason)
    if host.dead:
        return HOST_DEAD
    wait_s = full_jitter_s(attempts, policy.retry_base_s, policy.retry_cap_s, chance)
    wait_s = max(wait_s, (host.retry_ms - now_ms) / 1000)
    # Its hop stays: the fetch's own URL belongs to another lane, and its method may not be repeatable.
    after = msgspec.structs.replace(entry, attempts=attempts, last=reason)
    return _unless_too_late(after, wait_s, reason, now_ms)


def _throttled(entry: Entry, now_ms: int, shut_until_ms: int) -> Decision:
    after = msgspec.structs.replace(entry, throttles=entry.throttles + 1, last=Reason.THROTTLED)
    wait_s = max(0, shut_until_ms - now_ms) / 1000
    return _unless_too_late(after, wait_s, Reason.THROTTLED, now_ms)


def _interrupted(entry: Entry, reason: Reason | None, now_ms: int, wait_s: float) -> Decision:
    if not may_repeat(entry):
        return Finish(outcome=Outcome.FAILED, reason=reason or Reason.INTERRUPTED)
    after = msgspec.structs.replace(entry, interruptions=entry.interruptions + 1)
    if reason is Reason.DISK:  # each time its host sends the body again
        wait_s *= 2 ** min(entry.interruptions, DISK_DOUBLINGS)
    return _unless_too_late(after, wait_s, reason, now_ms)


def _unless_too_late(entry: Entry, wait_s: float, reason: Reason | None, now_ms: int) -> Decision:
    if now_ms + wait_s * 1000 < entry.deadline_ms:
        return Again(entry=entry, wait_s=wait_s, reason=reason)
    late = reason if reason in {Reason.THROTTLED, Reason.DISK} else Reason.DEADLINE
    return Finish(outcome=Outcome.FAILED, reason=late)
