"""The balance of lanes: every worker gets its share, and no lane moves without need."""

import random
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.scheduler.balance import CHECKS, SLACK, FleetLoad, HeldLane, balance, share

STAYS = st.builds(
    HeldLane,
    lane=st.text("abcdefgh", min_size=3, max_size=6),
    token=st.integers(1, 1000),
    in_flight=st.integers(0, 4),
    unrepeatable=st.booleans(),
    stopping=st.booleans(),
    unwanted=st.booleans(),
)
HELD = st.lists(STAYS, max_size=30, unique_by=lambda stay: stay.lane)
FLEETS = st.builds(FleetLoad, st.integers(0, 60), st.integers(0, 9))
LAST = CHECKS - 1


def plain(count: int) -> list[HeldLane]:
    """Return that many equal lanes."""
    return [HeldLane(lane=f"{number}", token=number, in_flight=1) for number in range(count)]


@pytest.mark.parametrize(
    ("busy", "workers", "each"), [(20, 1, 20), (20, 3, 7), (21, 3, 7), (2, 8, 1), (0, 8, 1), (5, 0, 5)]
)
def test_a_share_is_an_equal_part_and_at_least_a_lane(busy: int, workers: int, each: int) -> None:
    """Rounded up, so that the shares cover every lane."""
    assert each == share(FleetLoad(busy, workers))


@given(HELD, FLEETS, st.integers(0, LAST))
def test_a_worker_releases_lanes_only_above_the_bound(
    held: list[HeldLane], fleet: FleetLoad, before: int
) -> None:
    """It is left with exactly its share."""
    ours = [stay for stay in held if not stay.stopping and not stay.unwanted]
    _, give = balance(held, fleet, before)

    assert len(set(give)) == len(give)
    assert set(give) <= {stay.lane for stay in ours}
    if len(ours) <= share(fleet) + SLACK:
        assert [] == give
    if give:
        assert share(fleet) == len(ours) - len(give)


@given(HELD, FLEETS)
def test_excess_lanes_are_released_at_the_second_check_in_a_row(
    held: list[HeldLane], fleet: FleetLoad
) -> None:
    """The first only counts. A check without excess resets the count."""
    ours = [stay for stay in held if not stay.stopping and not stay.unwanted]
    first = balance(held, fleet, 0)
    second = balance(held, fleet, first.too_many)

    assert [] == first.release
    assert bool(second.release) is (len(ours) > share(fleet) + SLACK)
    assert 0 == balance([], fleet, first.too_many).too_many


@given(HELD, FLEETS)
def test_the_cheapest_lanes_are_released(held: list[HeldLane], fleet: FleetLoad) -> None:
    """Lanes with unrepeatable requests last, else those with the least in flight, of these the latest."""
    give = set(balance(held, fleet, LAST).release)
    price = {stay.lane: (stay.unrepeatable, stay.in_flight, -stay.token) for stay in held}
    kept = {stay.lane for stay in held if not stay.stopping and not stay.unwanted} - give

    assert max((price[lane] for lane in give), default=(False, -1, 0)) <= min(
        (price[lane] for lane in kept), default=(True, 99, 0)
    )


def test_a_lane_that_no_other_worker_acquired_is_not_offered_again() -> None:
    """It would return, and its fetches would have been interrupted for nothing."""
    held = [stay._replace(unwanted=True) for stay in plain(20)]

    assert [] == balance(held, FleetLoad(20, 2), LAST).release


class Workers:
    """Workers that check in turn. A released lane goes to any worker below its share."""

    def __init__(self, busy: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lanes = plain(busy)
        self.due = list(self.lanes)
        self.held: dict[int, list[HeldLane]] = {}
        self.counts: dict[int, int] = {}
        self.given = 0

    def join(self, worker: int) -> None:
        """Add a worker without lanes."""
        self.held.setdefault(worker, [])
        self.counts.setdefault(worker, 0)

    def leave(self, worker: int) -> None:
        """Remove a worker. Its lanes are due for the others."""
        self.due += self.held.pop(worker, [])
        self.counts.pop(worker, None)

    def second(self) -> None:
        """Let each worker check once, then hand over the due lanes."""
        fleet = FleetLoad(len(self.lanes), len(self.held))
        for worker in sorted(self.held, key=lambda _: self.chance.random()):
            mine = self.held[worker]
            self.counts[worker], give = balance(mine, fleet, self.counts[worker])
            self.given += len(give)
            self.due += [stay for stay in mine if stay.lane in give]
            self.held[worker] = [stay for stay in mine if stay.lane not in give]
        for stay in list(self.due):
            takers = [worker for worker in self.held if len(self.held[worker]) < share(fleet)]
            if takers:
                self.held[self.chance.choice(takers)].append(stay)
                self.due.remove(stay)


COMING_AND_GOING = st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=20)


@given(st.integers(0, 40), COMING_AND_GOING, st.integers(0, 99))
def test_workers_end_balanced_after_changes_and_lanes_stay(
    busy: int, changes: list[tuple[bool, int]], seed: int
) -> None:
    """No lane is lost or held twice. Three checks after the last change each has its share, or one more."""
    workers = Workers(busy, seed)
    workers.join(99)
    for joins, worker in changes:
        (workers.join if joins else workers.leave)(worker)
        workers.second()
        everywhere = [stay.lane for held in workers.held.values() for stay in held]
        everywhere += [stay.lane for stay in workers.due]
        assert sorted(everywhere) == sorted(stay.lane for stay in workers.lanes)
    for _ in range(CHECKS + 1):
        workers.second()
    given_before = workers.given
    for _ in range(10):
        workers.second()

    assert [] == workers.due
    assert all(len(held) <= ceil(busy / len(workers.held)) + SLACK for held in workers.held.values())
    assert given_before == workers.given
