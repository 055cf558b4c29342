"""The reason for which a host or a fetch waits, from everything that Redis holds about it."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import FETCH_ID_CHARS, batch_of
from fetchfleet.jobs.contract.model import Reason, Result, decode_result
from fetchfleet.jobs.redis_connection import number_of, redis_now_ms, text_of
from fetchfleet.worker.fetch.rules.abilities import describe_worker, parse
from fetchfleet.worker.fetch.rules.outcome import Failed, host_signal_of, is_host_failure
from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.gate import HostSignal, WaitReason
from fetchfleet.worker.gate.saved_state import bounded
from fetchfleet.worker.gate.state import GateState, from_json, reset, resettable
from fetchfleet.worker.inspect.doors import messages_at_doors
from fetchfleet.worker.inspect.snapshot import (
    LaneSnapshot,
    WorkerReport,
    lack_text,
    lane_snapshot,
    living,
    worker_reports,
)
from fetchfleet.worker.inspect.unserved import sentence, unserved
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.policy.names import in_shell
from fetchfleet.worker.policy.pauses import Stop, exception_of

LOOK_AT = 1000
MAX_LOOKED_AT = 200_000
RESULTS_AT_ONCE = 1000

FAILURES = frozenset(
    reason
    for reason in Reason
    if host_signal_of(Failed(reason=reason)) in {HostSignal.FAILED, HostSignal.TIMED_OUT, HostSignal.NAMELESS}
)
BROKEN_ANSWERS = frozenset(
    {Reason.PROTOCOL, Reason.READ, Reason.READ_TIMEOUT, Reason.TOO_SLOW, Reason.TRUNCATED}
)
"""Failures of a host that begins to answer."""

CALENDAR_END_S = 253_370_764_800
"""The first day of the year 9999, in every time zone."""

NO_WORKER = "no worker"

RESETTABLE = {WaitReason.COOL_DOWN.value, WaitReason.BREAKER.value, WaitReason.ROBOTS.value}
"""The states of a lane that an operator may end."""


class HostAnswer(msgspec.Struct, frozen=True):
    """A status, or the error in its place, and when (Unix ms)."""

    at_ms: int
    what: str


class UnservedFetches(msgspec.Struct, frozen=True, kw_only=True):
    """The number of fetches that wait for a worker with these abilities (worker/fetch/rules/abilities.py)."""

    needs: list[str]
    fetches: int


class LaneExplained(msgspec.Struct, frozen=True, kw_only=True):
    """A lane: its state, until when (Unix ms) and why, in words; and the last responses of its host."""

    lane: str
    state: str
    until_ms: int | None
    why: str
    in_flight: int
    waiting: int
    concurrency: int
    owner: str | None
    answers: list[HostAnswer]
    unserved: list[UnservedFetches] = []
    """Fetches that wait for a worker with abilities that no live worker has together."""


class FetchExplained(msgspec.Struct, frozen=True, kw_only=True):
    """A fetch: where it is, how many are ahead of it in its queue, its lane; or its result."""

    id: str
    state: str
    why: str
    ahead: int | None = None
    lane: LaneExplained | None = None
    result: Result | None = None


MAX_OWNER_BYTES = 300


async def explain_lane(redis: Redis, policy: Policy, name: str) -> LaneExplained:
    """Return the state of a lane and why it waits."""
    now_ms = await redis_now_ms(redis)
    snapshot = await lane_snapshot(redis, name, now_ms)
    owner, state_of, due_ms, saved, reset_by, left_for = await redis.hmget(  # type: ignore[misc]
        keys.lane(name), ["owner", "state", "due_ms", "gate", "reset", "needs"]
    )
    rules = policy.for_lane(name)
    state = bounded(from_json(saved or b""), rules, now_ms)
    if reset_by:  # the next owner applies it
        state = reset(state)
    due_at_ms = number_of(due_ms) or 0
    retry_ms = due_at_ms if state_of == b"scheduled" and due_at_ms > now_ms else None
    found, until_ms, why = lane_state(
        snapshot,
        state,
        rules,
        now_ms,
        retry_ms=retry_ms,
        has_workers=bool(await living(redis, now_ms)),
    )
    if left_for and found == "retry":
        why = f"its worker leaves it to {describe_worker(parse(text_of(left_for)).abilities)}"
    if found == NO_WORKER:
        why = why_no_worker(await worker_reports(redis)) or why
    if found in RESETTABLE and resettable(state, now_ms):
        why += f"; once the host is well: fetchfleet reset {name}"
    paused = found == WaitReason.PAUSED.value
    lacking = await unserved(redis, name) if snapshot.waiting else {}
    if lacking:
        why = sentence(lacking) if found == "retry" else f"{why}; {sentence(lacking)}"
    if found == "idle" and (messages := await messages_at_doors(redis)):
        why += f"; arq jobs and inbox messages that no worker has enqueued yet, for any host: {messages}"
    return LaneExplained(
        lane=name,
        state=found,
        until_ms=until_ms,
        why=why_paused(name, policy.pauses.stop(name)) if paused else why,
        in_flight=snapshot.in_flight,
        waiting=snapshot.waiting,
        concurrency=gate.max_in_flight(state, rules),
        owner=text_of(owner[:MAX_OWNER_BYTES]) if owner else None,
        answers=[HostAnswer(answer.at_ms, answer.what) for answer in state.answers],
        unserved=[
            UnservedFetches(needs=sorted(abilities), fetches=count) for abilities, count in lacking.items()
        ],
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
    """Return the lane's state in a word, until when, and why. Pure."""
    closed, room = gate.closed_until(state, policy, now_ms), gate.max_in_flight(state, policy)
    if not snapshot.waiting and not snapshot.in_flight and not policy.paused:
        return "idle", None, "nothing waits for this host"
    if closed is not None:
        until_ms = None if closed.why is WaitReason.PAUSED else closed.until_ms
        return closed.why.value, until_ms, why_closed(closed.why, state, policy)
    if snapshot.in_flight:
        full = ": as many as may be" if snapshot.in_flight >= room else ""
        return "busy", None, f"{snapshot.in_flight} of {room} are in flight{full}"
    if not has_workers:
        return NO_WORKER, None, "no worker is running; start one: fetchfleet worker"
    # The policy file of the workers, which is not the one of this command, may be why the lane waits.
    if retry_ms is not None and snapshot.why in set(WaitReason):
        until_ms = now_ms + int(snapshot.opens_in_s * 1000)
        return snapshot.why, until_ms, why_closed(WaitReason(snapshot.why), state, policy)
    if retry_ms is not None:
        return "retry", retry_ms, "what waits is a retry that is not due yet"
    return "waiting", None, "its turn comes as soon as a worker has a slot"


def why_no_worker(reports: Mapping[str, WorkerReport]) -> str:
    """Return why the live workers start no fetch; empty if none is alive. Pure."""
    drained = [name for name, report in reports.items() if report.draining]
    lacking = {name: report for name, report in reports.items() if report.lacking and not report.draining}
    parts = []
    if lacking:
        lacks = (
            f"{name} lacks {lack_text(report.lacking, report.lacking_error)}"
            for name, report in lacking.items()
        )
        parts.append(f"no worker can store bodies: {', '.join(lacks)}")
    if drained:
        every = "every other worker" if lacking else "every worker"
        parts.append(f"{every} is drained; let one take lanes again: fetchfleet undrain {drained[0]}")
    return "; ".join(parts)


def why_closed(why: WaitReason, state: GateState, policy: LanePolicy) -> str:
    """Return the reason in words. Pure."""
    match why:
        case WaitReason.COOL_DOWN:
            asked = [
                answer.what
                for answer in state.answers
                if answer.what in {"429", "503"}
                or (answer.what == "403" and answer.at_ms == state.cool_since_ms)
            ]
            return f"the host asked for quiet{f' by {asked[-1]}' if asked else ''}"
        case WaitReason.BREAKER:
            return f"{how_it_fails(state)}; its breaker is open, {ordinal(state.opens)} time"
        case WaitReason.RATE_LIMIT:
            if not policy.rate_per_s:
                return "the workers' policy paces it; name their file with --policy to see how"
            return f"the policy lets {policy.rate_per_s:g} fetches start a second"
        case WaitReason.QUOTA:
            return "the host says that its quota is nearly used up (RateLimit)"
        case WaitReason.PAUSED:
            return "an operator has paused it; go on with: fetchfleet resume"
        case WaitReason.ROBOTS:
            return "the host does not say what its robots.txt allows; it will be asked again"


def why_paused(lane: str, stop: Stop | None) -> str:
    """Return what pauses a lane, since when, and the command that lets it go on."""
    if stop is None or stop.in_file:
        where = f" in the table of {stop.name}" if stop is not None else ""
        return f"the workers' policy file pauses it{where}; let it go on with: {exception_of(lane)}"
    since = f" since {local_time(stop.since_ms)}" if stop.since_ms is not None else ""
    if stop.name == lane:
        return f"paused{since}; resume with: fetchfleet resume {lane}"
    return (
        f"paused with {stop.name}{since}; resume all of it with: fetchfleet resume {in_shell(stop.name)};"
        f" or this host alone: {exception_of(lane)}"
    )


def local_time(at_ms: int) -> str:
    """Format a time (Unix ms) for people: local, with its date if that is another day.

    A time beyond the calendar is shown as its last day.
    """
    at, now = time.localtime(max(0, min(at_ms / 1000, CALENDAR_END_S))), time.localtime()
    today = (at.tm_year, at.tm_yday) == (now.tm_year, now.tm_yday)
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", at)


def how_it_fails(state: GateState) -> str:
    """Return what the last failure of the host was, in words. Pure."""
    last = "no answer"
    for answer in state.answers:
        if is_host_failure(int(answer.what)) if answer.what.isdecimal() else answer.what in FAILURES:
            last = answer.what
    if last.isdecimal():
        return f"the host answers {last}"
    if last in BROKEN_ANSWERS:
        return f"the host does not answer as it should ({last})"
    dead = ", its name does not exist" if state.nameless else ""
    return f"the host does not answer ({last}{dead})"


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th. Pure."""
    last = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in {11, 12, 13} else 0, "th")
    return f"{number}{last}"


async def explain_fetch(redis: Redis, policy: Policy, fetch_id: str) -> FetchExplained:
    """Return where a fetch is."""
    batch = batch_of(fetch_id)
    id_field, start = f'"id":"{fetch_id}"'.encode(), "-"
    while rows := await redis.xrange(keys.results(batch), start, "+", RESULTS_AT_ONCE):
        for _, fields in rows:
            if id_field in fields[b"r"]:
                result = decode_result(fields[b"r"])
                return FetchExplained(
                    id=fetch_id, state=result.outcome.value, why="it has ended", result=result
                )
        start = f"({rows[-1][0].decode()}"
    lanes = sorted(text_of(lane) for lane in await redis.smembers(keys.batch_lanes(batch)))  # type: ignore[misc]
    for name in lanes:
        found = await _place_in_lane(redis, name, fetch_id)
        if found is not None:
            state, ahead = found
            lane = await explain_lane(redis, policy, name)
            return FetchExplained(id=fetch_id, state=state, why=lane.why, ahead=ahead, lane=lane)
    known = await redis.exists(keys.batch(batch))
    why = "no lane holds it: it may just be ending, ask again" if known else "its batch is not in Redis"
    return FetchExplained(id=fetch_id, state="unknown", why=why)


async def _place_in_lane(redis: Redis, lane: str, fetch_id: str) -> tuple[str, int | None] | None:
    """Return claimed, waiting or retry, and how many fetches are ahead in its queue; None if not there."""
    if await redis.hexists(keys.claimed(lane), fetch_id):  # type: ignore[misc]
        return "claimed", None
    id_bytes = fetch_id.encode()
    queues: list[tuple[str, Any, str]] = [("waiting", redis.lrange, queue) for queue in keys.waiting(lane)]
    for state, read, queue in [*queues, ("retry", redis.zrange, keys.later(lane))]:
        for start in range(0, MAX_LOOKED_AT, LOOK_AT):
            elements: list[bytes] = await read(queue, start, start + LOOK_AT - 1)
            for place, element in enumerate(elements, start):
                if element[:FETCH_ID_CHARS] == id_bytes:
                    return state, place
            if len(elements) < LOOK_AT:
                break
    return None
