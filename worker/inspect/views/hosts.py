"""The hosts of a fleet: a list that can be filtered and sorted, and one host in detail."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from difflib import get_close_matches
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import redis_now_ms, text_of
from fetchfleet.worker.gate.gate import WaitReason
from fetchfleet.worker.inspect.explain import LaneExplained, explain_lane
from fetchfleet.worker.inspect.overview import BUSY, LANE_STATES, RETRY, WAITING, state_of_lane
from fetchfleet.worker.inspect.policy_in_force import PolicyInForce, policy_in_force
from fetchfleet.worker.inspect.registration import name_of
from fetchfleet.worker.inspect.snapshot import LaneSnapshot, Snapshot, lane_snapshots, snapshot
from fetchfleet.worker.lanes.reset import lanes_of
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.names import DEFAULT, EVERY_HOST_BELOW
from fetchfleet.worker.policy.pauses import pauses_of
from fetchfleet.worker.settings import NO_POLICY

MAX_PAGE = 1_000
"""The maximum number of hosts on a page."""
MAX_NAMES_COMPARED = 1000
"""The number of lanes whose names are compared with a mistyped one."""

WHY = {
    BUSY: "fetches are in flight",
    WAITING: "waits for a free slot of a worker",
    WaitReason.COOL_DOWN.value: "the host asked to back off",
    WaitReason.BREAKER.value: "the host fails; its circuit breaker is open",
    WaitReason.RATE_LIMIT.value: "the policy limits its rate",
    WaitReason.QUOTA.value: "the quota that the host declared is nearly used up",
    WaitReason.PAUSED.value: "paused by an operator or the policy file",
    WaitReason.ROBOTS.value: "its robots.txt could not be fetched",
    RETRY: "only retries wait, and none is due yet",
}
"""The reason of each state, in words. The detail of a host is more exact."""


class HostSort(StrEnum):
    """The column by which hosts are sorted. Numbers are sorted from the largest."""

    WAITING = "waiting"
    IN_FLIGHT = "in_flight"
    HOST = "host"
    STATE = "state"
    UNTIL = "until"
    WORKER = "worker"


class HostQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A selection of hosts, and the part of it to show."""

    state: str = ""
    """A state of LANE_STATES; empty for every state."""
    text: str = ""
    """A part of the name, in any case; empty for every name."""
    sort: HostSort = HostSort.WAITING
    reverse: bool = False
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = 100


EVERY_HOST = HostQuery()


class HostRow(msgspec.Struct, frozen=True, kw_only=True):
    """A host with fetches that have no result; or a paused host, pattern or `default` without any."""

    host: str
    state: str
    """A state of LANE_STATES."""
    why: str
    """The reason of the state, in words."""
    until_ms: int | None
    """The time at which a fetch may start, Unix ms; None if one may start now, or if the host is paused."""
    in_flight: int
    waiting: int
    worker: str | None
    """The name of the worker that holds the lane; None if none does."""
    instance: str | None
    """The instance of that worker."""


class HostPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the selected hosts."""

    hosts: list[HostRow]
    matching: int
    """The number of hosts that match, of those that were read."""
    states: dict[str, int]
    """The number of hosts in each state, of all that were read. `paused` counts names without fetches too."""
    lanes_read: int
    lanes_in_all: int
    """The number of hosts with fetches that have no result."""
    now_ms: int
    """Unix ms by the clock of Redis."""


class LimitInForce(msgspec.Struct, frozen=True, kw_only=True):
    """A value of the policy of a host."""

    key: str
    value: Any
    source: str
    """`default`, `file` or `override`."""
    table: str | None
    """The table in the file or in Redis; None for `default`."""


class PauseInForce(msgspec.Struct, frozen=True, kw_only=True):
    """The pause that stops a host."""

    name: str
    """The name that is paused: the host, a pattern or `default`."""
    in_file: bool
    """True if the policy file has the pause."""
    since_ms: int | None
    """The start of the pause, Unix ms; None if unknown."""


class HostDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A host, which may have no fetches now."""

    lane: LaneExplained
    worker: str | None
    """The name of the worker that holds the lane; None if none does."""
    known: bool
    """False if Redis has no state of the host: no fetch was sent to it recently, and none waits."""
    limits: list[LimitInForce]
    pause: PauseInForce | None
    policy_origin: str
    """The source of the policy file: `workers`, `given`, or `assumed` (the built-in defaults)."""
    policy_digest: str
    notes: list[str]
    """The limits of the answer: assumptions, workers with different files, tables that are refused."""


async def hosts(redis: Redis, query: HostQuery = EVERY_HOST) -> HostPage:
    """Read the hosts with fetches that have no result. At most MAX_LANES of them are read."""
    return host_page(await hosts_snapshot(redis), query)


async def hosts_snapshot(redis: Redis) -> Snapshot:
    """Read the state of a fleet, with the pauses that are set at run time."""
    fleet = await snapshot(redis)
    return fleet._replace(paused=sorted(pauses_of(await overrides.read(redis), {}).paused))


def host_page(fleet: Snapshot, query: HostQuery) -> HostPage:
    """Return the selected hosts of a fleet. Pure."""
    rows = host_rows(fleet)
    selected = selected_hosts(rows, query)
    states = Counter(row.state for row in rows)
    return HostPage(
        hosts=selected[query.offset : query.offset + query.limit],
        matching=len(selected),
        states={state: states[state] for state in LANE_STATES},
        lanes_read=len(fleet.lanes),
        lanes_in_all=fleet.lanes_in_all,
        now_ms=fleet.now_ms,
    )


def host_rows(fleet: Snapshot) -> list[HostRow]:
    """Return the hosts of a fleet, and the paused names for which nothing waits. Pure."""
    names = {
        instance: report.registration.name if report.registration else name_of(instance)
        for instance, report in fleet.workers.items()
    }
    rows = [host_row(lane, fleet.now_ms, names) for lane in fleet.lanes]
    with_fetches = {lane.name for lane in fleet.lanes}
    return [*rows, *(_paused_row(name) for name in fleet.paused if name not in with_fetches)]


def _paused_row(name: str) -> HostRow:
    state = WaitReason.PAUSED.value
    return HostRow(
        host=name,
        state=state,
        why=WHY[state],
        until_ms=None,
        in_flight=0,
        waiting=0,
        worker=None,
        instance=None,
    )


async def hosts_named(redis: Redis, names: Sequence[str]) -> list[HostRow]:
    """Read the hosts with these names that have fetches without a result, those with most waiting first."""
    now_ms = await redis_now_ms(redis)
    lanes = await lane_snapshots(redis, names, now_ms)
    rows = [host_row(lane, now_ms, {}) for lane in lanes if lane.waiting or lane.in_flight]
    return selected_hosts(rows, EVERY_HOST)


def host_row(lane: LaneSnapshot, now_ms: int, workers: Mapping[str, str]) -> HostRow:
    """Return the row of a lane. workers: the names of the live workers, by instance. Pure."""
    state, wait_s = state_of_lane(lane), lane.known_wait_s
    return HostRow(
        host=lane.name,
        state=state,
        why=why_text(state, lane.held_up, lane.last_failure),
        until_ms=now_ms + int(wait_s * 1000) if wait_s is not None else None,
        in_flight=lane.in_flight,
        waiting=lane.waiting,
        worker=workers.get(lane.owner, name_of(lane.owner)) if lane.owner else None,
        instance=lane.owner or None,
    )


def why_text(state: str, held_up: str, last_failure: str = "") -> str:
    """Return why a lane waits. Pure.

    held_up: the text about an owner that sends no heartbeat, or empty. last_failure: of the host, or empty.
    """
    if held_up:
        return held_up if state in {BUSY, WAITING} else f"{WHY[state]}; {held_up}"
    if last_failure and state in {WaitReason.BREAKER.value, RETRY}:
        return f"{WHY[state]}; last failure: {last_failure}"
    return WHY[state]


def selected_hosts(rows: Iterable[HostRow], query: HostQuery) -> list[HostRow]:
    """Return the rows that match, in order. Pure."""
    text = query.text.strip().lower()
    found = [
        row for row in rows if (not query.state or row.state == query.state) and text in row.host.lower()
    ]
    found.sort(key=attrgetter("host"))
    match query.sort:
        case HostSort.WAITING:
            found.sort(key=lambda row: -row.waiting)
        case HostSort.IN_FLIGHT:
            found.sort(key=lambda row: -row.in_flight)
        case HostSort.STATE:
            found.sort(key=lambda row: LANE_STATES.index(row.state))
        case HostSort.UNTIL:
            found.sort(key=lambda row: row.until_ms or 0)
        case HostSort.WORKER:
            found.sort(key=lambda row: row.worker or "")
    return found[::-1] if query.reverse else found


async def known_or_similar(redis: Redis, name: str) -> tuple[bool, list[str]]:
    """Return whether Redis has a lane for a name or pattern; if not, lanes with a similar spelling."""
    if name == DEFAULT or await lanes_of(redis, name, limit=1):
        return True, []
    lanes = [text_of(lane) for lane in await redis.zrange(keys.ATTENTION, 0, MAX_NAMES_COMPARED - 1)]
    return False, get_close_matches(name.removeprefix(EVERY_HOST_BELOW), lanes, 2, 0.8)


async def host_detail(redis: Redis, host: str, given: Policy = NO_POLICY) -> HostDetail:
    """Read a host. Times in its texts are UTC.

    given: a policy file in place of that of the workers, unless it is NO_POLICY.
    """
    in_force = await policy_in_force(redis, given, host)
    lane = await explain_lane(redis, in_force.policy, host, zone=UTC)
    stop = in_force.policy.pauses.stop(host)
    known = lane.waiting + lane.in_flight > 0 or bool(await redis.exists(keys.lane(host)))
    return HostDetail(
        lane=lane,
        worker=name_of(lane.owner) if lane.owner else None,
        known=known,
        limits=limits_of(in_force, host),
        pause=PauseInForce(name=stop.name, in_file=stop.in_file, since_ms=stop.since_ms) if stop else None,
        policy_origin=in_force.origin.value,
        policy_digest=in_force.digest,
        notes=list(in_force.notes(host)),
    )


def limits_of(in_force: PolicyInForce, host: str) -> list[LimitInForce]:
    """Return each key of the policy of a host, with its value and its source."""
    policy = in_force.policy.for_lane(host)
    return [
        LimitInForce(
            key=key,
            value=msgspec.to_builtins(getattr(policy, key)),
            source=source.source,
            table=source.table,
        )
        for key, source in in_force.sources(host).items()
    ]
