"""The schedule of faults: a pure function of the seed."""

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """The kinds of faults."""

    WORKER_KILLED = "worker killed (-9)"
    WORKER_STOPPED = "worker stopped longer than its lease"
    WORKER_REPLACED = "worker replaced (SIGTERM)"
    ALL_REPLACED = "all workers replaced, in turn"
    LINE_CUT = "a worker's connections to Redis cut"
    LINE_BLACK = "a worker's connections to Redis black-holed"
    LINE_SLOW = "a worker's connections to Redis slow"
    REDIS_RESTARTED = "Redis restarted"
    REDIS_KILLED = "Redis killed (-9)"
    REDIS_FROZEN = "Redis frozen"
    REDIS_READONLY = "Redis read-only"
    CLIENTS_KILLED = "every connection to Redis cut"
    CLIENTS_REFUSED = "Redis refuses new connections"


class Weight(NamedTuple):
    """The relative frequency of a kind, and the range of its duration."""

    often: int
    least_s: float
    most_s: float


LEASE_S = 4.0
"""Shorter than the default lease, so that a one-minute run sees many leases lapse."""

WEIGHTS = {
    Kind.WORKER_KILLED: Weight(6, 0.0, 3.0),
    Kind.WORKER_STOPPED: Weight(3, LEASE_S + 1, 2 * LEASE_S),
    Kind.WORKER_REPLACED: Weight(4, 0.0, 0.5),
    Kind.ALL_REPLACED: Weight(1, 0.0, 0.5),
    Kind.LINE_CUT: Weight(2, 0.0, 0.0),
    Kind.LINE_BLACK: Weight(4, LEASE_S - 2, 2.5 * LEASE_S),
    Kind.LINE_SLOW: Weight(2, 1.0, 6.0),
    Kind.REDIS_RESTARTED: Weight(2, 0.0, 5.0),
    Kind.REDIS_KILLED: Weight(2, 0.0, 5.0),
    Kind.REDIS_FROZEN: Weight(2, 1.0, 12.0),
    Kind.REDIS_READONLY: Weight(1, 0.5, 5.0),
    Kind.CLIENTS_KILLED: Weight(2, 0.0, 0.0),
    Kind.CLIENTS_REFUSED: Weight(1, 0.5, 3.0),
}
OF_ONE_WORKER = frozenset(
    {
        Kind.WORKER_KILLED,
        Kind.WORKER_STOPPED,
        Kind.WORKER_REPLACED,
        Kind.LINE_CUT,
        Kind.LINE_BLACK,
        Kind.LINE_SLOW,
    }
)
BETWEEN_S = 2.0
"""The average time between faults."""

WARM_UP_S = 2.0
"""The time before the first fault, so that the fleet is busy by then."""


class Fault(NamedTuple):
    """A planned fault. at_s: after the start. worker: from 0; None if the fault is not of one worker."""

    at_s: float
    kind: Kind
    worker: int | None
    length_s: float


def plan(seed: int, lasts_s: float, workers: int) -> list[Fault]:
    """Return the faults of a run in order of time. Each kind occurs once before any repeats."""
    chance = random.Random(f"faults {seed}")  # noqa: S311 reproducible by seed
    at_s, faults = WARM_UP_S, list[Fault]()
    for kind in _kinds(chance):
        if at_s >= lasts_s:
            return faults
        faults.append(_fault(kind, at_s, workers, chance))
        at_s += chance.uniform(0.2, 2 * BETWEEN_S - 0.2)
    raise AssertionError


def plan_kills(seed: int, lasts_s: float, workers: int, every_s: float) -> list[Fault]:
    """Return one kill of a worker after another, on average every_s apart."""
    chance = random.Random(f"kills {seed}")  # noqa: S311 reproducible by seed
    at_s, faults = WARM_UP_S, list[Fault]()
    while at_s < lasts_s:
        faults.append(_fault(Kind.WORKER_KILLED, at_s, workers, chance))
        at_s += chance.uniform(0.1, 1.9) * every_s
    return faults


def _kinds(chance: random.Random) -> Iterator[Kind]:
    first = list(Kind)
    chance.shuffle(first)
    yield from first
    often: Sequence[int] = [WEIGHTS[kind].often for kind in Kind]
    while True:
        yield from chance.choices(list(Kind), often)


def _fault(kind: Kind, at_s: float, workers: int, chance: random.Random) -> Fault:
    weight = WEIGHTS[kind]
    worker = chance.randrange(workers) if kind in OF_ONE_WORKER else None
    length_s = chance.uniform(weight.least_s, weight.most_s)
    return Fault(round(at_s, 3), kind, worker, round(length_s, 3))
