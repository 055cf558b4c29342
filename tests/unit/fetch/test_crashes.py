"""Crashes: the fetch that counts as the cause of the deaths of its workers."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fetchfleet.jobs.contract.entry import Entry, parse_entry, serialize_entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.worker.fetch.rules.crashes import (
    DEATHS_BY_ONE_FETCH,
    MAX_CRASHES,
    crashed,
    is_suspect,
    needs_start_marker,
    poisoned,
)
from fetchfleet.worker.fetch.rules.decide import Finish

NEW = Entry(id="0123456789abcdef-00000000", deadline_ms=1, fetch=Fetch(url="http://a.example/"))
POISON = Finish(outcome=Outcome.FAILED, reason=Reason.POISON)
QUIET = st.integers(0, DEATHS_BY_ONE_FETCH)
NOISY = st.integers(DEATHS_BY_ONE_FETCH + 1, 1_000)


def died_in_it(fetch: Entry, other_deaths: int, *, late: bool) -> Entry:
    """Return the fetch after its worker died while the fetch was in flight."""
    marked = needs_start_marker(fetch)
    return crashed(replace(fetch, begun=marked, outlived=marked and late), other_deaths)


def deaths_until_poison(other_deaths: int, *, late: bool) -> int:
    """Return the number of workers that a fetch ends if each attempt kills one."""
    fetch = NEW
    for deaths in range(1, 100):
        fetch = died_in_it(fetch, other_deaths, late=late)
        if poisoned(fetch) == POISON:
            return deaths
    raise AssertionError


@given(QUIET)
def test_three_crashes_end_a_fetch_in_a_quiet_fleet(other: int) -> None:
    """It holds at any moment of the attempt."""
    assert deaths_until_poison(other, late=False) == MAX_CRASHES
    assert deaths_until_poison(other, late=True) == MAX_CRASHES


@given(NOISY)
def test_more_crashes_are_needed_while_workers_die_of_other_causes(other: int) -> None:
    """Five at the start of the attempt, nine later in the attempt."""
    assert deaths_until_poison(other, late=False) == 5
    assert deaths_until_poison(other, late=True) == 9


@given(st.lists(st.tuples(NOISY, st.booleans()), max_size=4))
def test_a_fetch_hit_by_four_kills_of_a_noisy_fleet_continues(deaths: list[tuple[int, bool]]) -> None:
    """A fetch that is hit by chance is kept."""
    fetch = NEW
    for other, late in deaths:
        fetch = died_in_it(fetch, other, late=late)
    assert poisoned(fetch) is None
    assert fetch.interruptions == len(deaths)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=30))
def test_only_deaths_after_a_start_count_once_a_fetch_is_suspected(
    deaths: list[tuple[int, bool, bool]],
) -> None:
    """A fetch that was claimed but not started keeps its counters."""
    fetch = NEW
    for other, begun, late in deaths:
        after = crashed(replace(fetch, begun=begun, outlived=begun and late), other)
        if fetch.crashes and not begun:
            assert after == fetch
        else:
            assert after.interruptions == fetch.interruptions + 1
            assert (after.begun, after.outlived) == (False, False)
        fetch = after
    assert fetch.doubts in range(4)


def test_a_fetch_that_one_more_crash_may_end_runs_alone() -> None:
    """It runs alone from the second crash on."""
    assert [is_suspect(replace(NEW, crashes=crashes)) for crashes in range(4)] == [
        False,
        False,
        True,
        True,
    ]


def test_doubts_survive_redis() -> None:
    """The counters are part of the serialized entry."""
    fetch = replace(NEW, crashes=1, doubts=3, begun=True, outlived=True)
    assert parse_entry(serialize_entry(fetch)) == fetch
