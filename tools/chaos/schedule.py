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
    CONNECTION_CUT = "a worker's connections to Redis cut"
    CONNECTION_BLACK_HOLED = "a worker's connections to Redis black-holed"
    CONNECTION_SLOW = "a worker's connections to Redis slow"
    REDIS_RESTARTED = "Redis restarted"
    REDIS_KILLED = "Redis killed (-9)"
    REDIS_FROZEN = "Redis frozen"
    REDIS_READONLY = "Redis read-only"
    CLIENTS_KILLED = "every connection to Redis cut"
    CLIENTS_REFUSED = "Redis refuses new connections"


class Weight(NamedTuple):
    """The relative frequency of a kind of fault, and the range of its duration."""

    frequency: int
    min_s: float
    max_s: float


LEASE_S = 4.0
"""Shorter than the default lease, so that many leases lapse in a run of one minute."""

WEIGHTS = {
    Kind.WORKER_KILLED: Weight(6, 0.0, 3.0),
    Kind.WORKER_STOPPED: Weight(3, LEASE_S + 1, 2 * LEASE_S),
    Kind.WORKER_REPLACED: Weight(4, 0.0, 0.5),
    Kind.ALL_REPLACED: Weight(1, 0.0, 0.5),
    Kind.CONNECTION_CUT: Weight(2, 0.0, 0.0),
    Kind.CONNECTION_BLACK_HOLED: Weight(4, LEASE_S - 2, 2.5 * LEASE_S),
    Kind.CONNECTION_SLOW: Weight(2, 1.0, 6.0),
    Kind.REDIS_RESTARTED: Weight(2, 0.0, 5.0),
    Kind.REDIS_KILLED: Weight(2, 0.0, 5.0),
    Kind.REDIS_FROZEN: Weight(2, 1.0, 12.0),
    Kind.REDIS_READONLY: Weight(1, 0.5, 5.0),
    Kind.CLIENTS_KILLED: Weight(2, 0.0, 0.0),
    Kind.CLIENTS_REFUSED: Weight(1, 0.5, 3.0),
}
WORKER_FAULTS = frozenset(
    {
        Kind.WORKER_KILLED,
        Kind.WORKER_STOPPED,
        Kind.WORKER_REPLACED,
        Kind.CONNECTION_CUT,
        Kind.CONNECTION_BLACK_HOLED,
        Kind.CONNECTION_SLOW,
    }
)
"""The kinds that affect one worker."""

BETWEEN_S = 2.0
"""The average time between faults."""

WARM_UP_S = 2.0
"""The time before the first fault, in which the fleet becomes busy."""


class Fault(NamedTuple):
    """A planned fault."""

    at_s: float
    """Time since the start of the run."""
    kind: Kind
    worker: int | None
    """Index of the affected worker; None if the fault affects all of them, or Redis."""
    duration_s: float


def plan(seed: int, lasts_s: float, workers: int) -> list[Fault]:
    """Return the faults of a run in order of time. Each kind occurs once before any occurs again."""
    chance = random.Random(f"faults {seed}")  # noqa: S311 reproducible by seed
    at_s, faults = WARM_UP_S, list[Fault]()
    for kind in _kinds(chance):
        if at_s >= lasts_s:
            return faults
        faults.append(_fault(kind, at_s, workers, chance))
        at_s += chance.uniform(0.2, 2 * BETWEEN_S - 0.2)
    raise AssertionError


def plan_kills(seed: int, lasts_s: float, workers: int, every_s: float) -> list[Fault]:
    """Return kills of workers, on average `every_s` apart."""
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
    frequencies: Sequence[int] = [WEIGHTS[kind].frequency for kind in Kind]
    while True:
        yield from chance.choices(list(Kind), frequencies)


def _fault(kind: Kind, at_s: float, workers: int, chance: random.Random) -> Fault:
    weight = WEIGHTS[kind]
    worker = chance.randrange(workers) if kind in WORKER_FAULTS else None
    duration_s = chance.uniform(weight.min_s, weight.max_s)
    return Fault(round(at_s, 3), kind, worker, round(duration_s, 3))
