"""The reason a host or a fetch waits, from its state in Redis: `fetchfleet explain`."""

from collections.abc import Callable, Mapping
from datetime import datetime, tzinfo
from typing import Any

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of
from fetchfleet.jobs.contract.result import Reason, Result, decode_result
from fetchfleet.jobs.redis_connection import number_of, redis_now_ms, text_of
from fetchfleet.worker.fetch.rules.abilities import describe_worker, parse
from fetchfleet.worker.fetch.rules.outcome import Failed, host_signal_of, is_host_failure
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import HostSignal, WaitReason
from fetchfleet.worker.gate.saved_state import bounded
from fetchfleet.worker.gate.state import GateState, from_json, reset, resettable
from fetchfleet.worker.inspect.doors import waiting_at_doors
from fetchfleet.worker.inspect.snapshot import (
    LaneSnapshot,
    WorkerReport,
    lack_text,
    lane_snapshots,
    living,
    worker_reports,
)
from fetchfleet.worker.inspect.unserved import sentence, unserved
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.policy.names import in_shell
from fetchfleet.worker.policy.pauses import Stop, exception_of
from fetchfleet.worker.util.quantities import count

LOOK_AT = 1000
MAX_LOOKED_AT = 200_000
RESULTS_AT_ONCE = 1000

FAILURES = frozenset(
    reason
    for reason in Reason
    if host_signal_of(Failed(reason=reason)) in {HostSignal.FAILED, HostSignal.TIMED_OUT, HostSignal.NAMELESS}
)
"""The reasons of failures that count against the host."""

BROKEN_ANSWERS = frozenset(
    {Reason.PROTOCOL, Reason.READ, Reason.READ_TIMEOUT, Reason.TOO_SLOW, Reason.TRUNCATED}
)
"""The reasons of failures after the host has begun to respond."""

CALENDAR_END_S = 253_370_764_800
"""The beginning of the year 9999 in every time zone, Unix seconds."""

NO_WORKER = "no worker"

RESETTABLE = {WaitReason.COOL_DOWN.value, WaitReason.BREAKER.value, WaitReason.ROBOTS.value}
"""The states of a lane that a reset ends."""


class HostAnswer(msgspec.Struct, frozen=True):
    """An outcome of a request to the host."""

    at_ms: int
    """Unix ms."""
    what: str
    """The status of the response, or the reason of the failure."""


class UnservedFetches(msgspec.Struct, frozen=True, kw_only=True):
    """The fetches that no live worker can do."""

    needs: list[str]
    """The abilities that they need (worker/fetch/rules/abilities.py)."""
    fetches: int
    """Their number."""


class LaneExplained(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a lane, with the reason in words."""

    lane: str
    state: str
    """`busy`, `idle`, `retry`, `waiting`, NO_WORKER, or a reason the gate is closed."""
    until_ms: int | None
    """The end of the state, Unix ms; None if unknown."""
    why: str
    """The reason of the state, in words."""
    in_flight: int
    waiting: int
    concurrency: int
    """The maximum number of fetches that may be in flight now."""
    owner: str | None
    """The instance of the worker that holds the lane."""
    answers: list[HostAnswer]
    """The last outcomes of requests to the host, the oldest first."""
    unserved: list[UnservedFetches] = []
    ranges: int = 0
    """The requests for further ranges of bodies in segments, which count against `concurrency` too."""
    last_failure: str = ""
    """The last failure that counts against the host, in words; empty after a good response."""

    @property
    def in_flight_text(self) -> str:
        """The places under the concurrency limit that are taken, and by what."""
        return in_flight_text(self.in_flight, self.ranges, self.concurrency)


class FetchExplained(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a fetch, and of its lane."""

    id: str
    state: str
    """`claimed`, `waiting`, `retry`, `unknown`, or the outcome of its result."""
    why: str
    """The reason of the state, in words."""
    ahead: int | None = None
    """The number of fetches before it in its queue."""
    lane: LaneExplained | None = None
    """The lane, unless the fetch has ended or is unknown."""
    result: Result | None = None
    """The result, if it has ended."""


MAX_OWNER_BYTES = 300


async def explain_lane(
    redis: Redis, policy: Policy, name: str, *, zone: tzinfo | None = None, reset_command: str | None = None
) -> LaneExplained:
    """Return the state of a lane and why it waits. zone: of times in the reason; None for the local one.

    reset_command: the command that resets the lane, if it is more than `fetchfleet reset NAME`.
    """
    now_ms = await redis_now_ms(redis)
    (snapshot,) = await lane_snapshots(redis, [name], now_ms)
    owner, lane_status, due, saved, reset_by, handed_to = await redis.hmget(  # type: ignore[misc]
        keys.lane(name), ["owner", "state", "due_ms", "gate", "reset", "needs"]
    )
    lane_policy = policy.for_lane(name)
    gate_state = bounded(from_json(saved or b""), lane_policy, now_ms)
    if reset_by:  # the next owner applies it
        gate_state = reset(gate_state)
    due_ms = min(number_of(due) or 0, now_ms + keys.LONGEST_WAIT_MS)
    retry_ms = due_ms if lane_status == b"scheduled" and due_ms > now_ms else None
    state, until_ms, why = lane_state(
        snapshot,
        gate_state,
        lane_policy,
        now_ms,
        retry_ms=retry_ms,
        has_workers=bool(await living(redis, now_ms)),
    )
    if handed_to and state == "retry":
        why = f"its worker leaves it to {describe_worker(parse(text_of(handed_to)).abilities)}"
    if state == NO_WORKER:
        why = why_no_worker(await worker_reports(redis)) or why
    if state in RESETTABLE and resettable(gate_state, now_ms):
        why += f"; if the host works again: {reset_command or f'fetchfleet reset {name}'}"
    if state == WaitReason.PAUSED.value:
        why = why_paused(name, policy.pauses.stop(name), zone)
    if snapshot.held_up and snapshot.held_up not in why and state != NO_WORKER:
        why += f"; {snapshot.held_up}"
    unserved_counts = await unserved(redis, name) if snapshot.waiting else {}
    if unserved_counts:
        unserved_text = sentence(unserved_counts)
        why = unserved_text if state == "retry" else f"{why}; {unserved_text}"
    if state == "idle" and (messages := sum(await waiting_at_doors(redis))):
        why += f"; arq jobs and inbox messages that no worker has enqueued yet, for any host: {messages:,}"
    return LaneExplained(
        lane=name,
        state=state,
        until_ms=until_ms,
        why=why,
        in_flight=snapshot.in_flight,
        waiting=snapshot.waiting,
        ranges=snapshot.ranges,
        concurrency=gate.max_in_flight(gate_state, lane_policy),
        owner=text_of(owner[:MAX_OWNER_BYTES]) if owner else None,
        answers=[HostAnswer(answer.at_ms, answer.outcome) for answer in gate_state.answers],
        unserved=[
            UnservedFetches(needs=sorted(abilities), fetches=count)
            for abilities, count in unserved_counts.items()
        ],
        last_failure=redact.text(gate_state.last_failure),
    )


def lane_state(
    snapshot: LaneSnapshot,
    state: GateState,
    policy: LanePolicy,
    now_ms: int,
    *,
    retry_ms: int | None,
    has_workers: bool,
) -> tuple[str, int | None, str]:
    """Return the state of a lane, its end (Unix ms), and its reason in words. Pure.

    retry_ms: the time when the lane is due, if that is in the future; None otherwise.
    """
    closed, limit = gate.closed_until(state, policy, now_ms), gate.max_in_flight(state, policy)
    if not snapshot.waiting and not snapshot.in_flight and not policy.paused:
        return "idle", None, "no fetch waits for this host"
    if closed is not None:
        until_ms = None if closed.why is WaitReason.PAUSED else closed.until_ms
        return closed.why.value, until_ms, why_closed(closed.why, state, policy)
    if snapshot.held_up and has_workers:
        return "waiting", None, snapshot.held_up
    if snapshot.in_flight:
        in_flight, ranges = snapshot.in_flight, snapshot.ranges
        at_limit = ", the concurrency limit" if in_flight + ranges >= limit else ""
        return "busy", None, f"{in_flight_text(in_flight, ranges, limit)}{at_limit}"
    if not has_workers:
        return NO_WORKER, None, "no worker is running; start one: fetchfleet worker"
    # The lane may wait by the policy file of the workers, which this command may not know.
    if retry_ms is not None and snapshot.why in set(WaitReason):
        wait_s = snapshot.known_wait_s
        until_ms = None if wait_s is None else now_ms + int(wait_s * 1000)
        return snapshot.why, until_ms, why_closed(WaitReason(snapshot.why), state, policy)
    if retry_ms is not None:
        return "retry", retry_ms, "only retries wait, and none is due yet"
    return "waiting", None, "waiting for a free slot of a worker"


def in_flight_text(in_flight: int, ranges: int, limit: int) -> str:
    """Return the number of places that fetches and further ranges take, of the concurrency limit. Pure."""
    of_them = f" ({count(in_flight, 'fetch', 'fetches')}, {count(ranges, 'further range')})" if ranges else ""
    return f"{in_flight + ranges} of {limit} in flight{of_them}"


def why_no_worker(reports: Mapping[str, WorkerReport]) -> str:
    """Return the reason the live workers start no fetch; empty if no worker is alive. Pure."""
    drained = [name for name, report in reports.items() if report.draining]
    lacking = {name: report for name, report in reports.items() if report.lacking and not report.draining}
    reasons = []
    if lacking:
        lacks = (
            f"{name} lacks {lack_text(report.lacking, report.lacking_error)}"
            for name, report in lacking.items()
        )
        reasons.append(f"no worker can store bodies: {', '.join(lacks)}")
    if drained:
        every = "every other worker" if lacking else "every worker"
        reasons.append(f"{every} is drained; undrain one with: fetchfleet undrain {drained[0]}")
    return "; ".join(reasons)


def why_closed(why: WaitReason, state: GateState, policy: LanePolicy) -> str:
    """Return the reason the gate is closed, in words. Pure."""
    match why:
        case WaitReason.COOL_DOWN:
            statuses = [
                answer.outcome
                for answer in state.answers
                if answer.outcome in {"429", "503"}
                or (answer.outcome == "403" and answer.at_ms == state.cool_since_ms)
            ]
            return f"the host asked to back off{f' with {statuses[-1]}' if statuses else ''}"
        case WaitReason.BREAKER:
            return f"{how_it_fails(state)}; its circuit breaker is open for the {ordinal(state.opens)} time"
        case WaitReason.RATE_LIMIT:
            if not policy.rate_per_s:
                return "the workers' policy limits its rate; to see the limit, give their file with --policy"
            return f"the policy allows {policy.rate_per_s:g} requests each second"
        case WaitReason.QUOTA:
            return "the quota in the RateLimit field of the host is nearly used up"
        case WaitReason.PAUSED:
            return "an operator has paused it; resume it with: fetchfleet resume"
        case WaitReason.ROBOTS:
            return "its robots.txt could not be fetched; it will be requested again"


def why_paused(lane: str, stop: Stop | None, zone: tzinfo | None = None) -> str:
    """Return what pauses a lane, since when, and the command that resumes it."""
    if stop is None or stop.in_file:
        table = f" in the table of {stop.name}" if stop is not None else ""
        return f"the workers' policy file pauses it{table}; resume it with: {exception_of(lane)}"
    since = f" since {local_time(stop.since_ms, zone)}" if stop.since_ms is not None else ""
    if stop.name == lane:
        return f"paused{since}; resume with: fetchfleet resume {lane}"
    return (
        f"paused with {stop.name}{since}; resume all of it with: fetchfleet resume {in_shell(stop.name)};"
        f" or resume this host only: {exception_of(lane)}"
    )


def local_time(at_ms: int, zone: tzinfo | None = None) -> str:
    """Format a time (Unix ms) in the local time zone, or in another one, with the date unless that is today.

    A time after the year 9998 is shown as the beginning of 9999.
    """
    at = datetime.fromtimestamp(max(0, min(at_ms / 1000, CALENDAR_END_S)), zone)
    is_today = at.date() == datetime.now(zone).date()
    return at.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")


def how_it_fails(state: GateState) -> str:
    """Return the last failure of the host, in words. Pure."""
    last = redact.text(state.last_failure).removeprefix("status ")
    if not last:  # a worker of an older version saved the state
        last = next((of.outcome for of in reversed(state.answers) if _is_failure(of.outcome)), "no response")
        if state.nameless:
            last += ", its name does not exist"
    reason = last.partition(",")[0]
    if reason.isdecimal():
        return f"the host responds with {reason}"
    if reason == Reason.TLS:
        return f"the TLS connection to the host fails ({last})"
    if reason in BROKEN_ANSWERS:
        return f"the host does not respond properly ({last})"
    return f"the host does not respond ({last})"


def _is_failure(outcome: str) -> bool:
    """Return whether a recorded outcome counts against the host."""
    return is_host_failure(int(outcome)) if outcome.isdecimal() else outcome in FAILURES


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th. Pure."""
    last = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in {11, 12, 13} else 0, "th")
    return f"{number}{last}"


async def explain_fetch(
    redis: Redis, policy: Policy, fetch_id: str, *, reset_command: Callable[[str], str] | None = None
) -> FetchExplained:
    """Return the state of a fetch and why it waits. reset_command: returns the command that resets a lane."""
    batch = batch_of(fetch_id)
    id_field, start = f'"id":"{fetch_id}"'.encode(), "-"
    while rows := await redis.xrange(keys.results(batch), start, "+", RESULTS_AT_ONCE):
        for _, fields in rows:
            if id_field in fields[b"r"]:
                result = decode_result(fields[b"r"])
                return FetchExplained(
                    id=fetch_id, state=result.outcome.value, why="the fetch has ended", result=result
                )
        start = f"({rows[-1][0].decode()}"
    lanes = sorted(text_of(lane) for lane in await redis.smembers(keys.batch_lanes(batch)))  # type: ignore[misc]
    for name in lanes:
        place = await _place_in_lane(redis, name, fetch_id)
        if place is not None:
            state, ahead = place
            command = reset_command(name) if reset_command is not None else None
            lane = await explain_lane(redis, policy, name, reset_command=command)
            return FetchExplained(id=fetch_id, state=state, why=lane.why, ahead=ahead, lane=lane)
    is_known = await redis.exists(keys.batch(batch))
    why = (
        "in no lane, as if it were ending now; repeat the command"
        if is_known
        else "its batch is not in Redis"
    )
    return FetchExplained(id=fetch_id, state="unknown", why=why)


async def _place_in_lane(redis: Redis, lane: str, fetch_id: str) -> tuple[str, int | None] | None:
    """Return the state of a fetch in a lane, and the number of fetches before it; None if not in the lane."""
    if await redis.hexists(keys.claimed(lane), fetch_id):  # type: ignore[misc]
        return "claimed", None
    id_bytes = fetch_id.encode()
    queues: list[tuple[str, Any, str]] = [("waiting", redis.lrange, queue) for queue in keys.waiting(lane)]
    for state, read, queue in [*queues, ("retry", redis.zrange, keys.later(lane))]:
        for start in range(0, MAX_LOOKED_AT, LOOK_AT):
            elements: list[bytes] = await read(queue, start, start + LOOK_AT - 1)
            for ahead, element in enumerate(elements, start):
                if element[:FETCH_ID_CHARS] == id_bytes:
                    return state, ahead
            if len(elements) < LOOK_AT:
                break
    return None
