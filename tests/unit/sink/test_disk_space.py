"""The free space of a disk for more bodies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.sink.disk_space import (
    FREE_REFUSALS,
    MAX_PAUSE_S,
    PAUSE_S,
    Refusals,
    Space,
    refused,
    shortage,
)

MANY = st.integers(0, 1 << 50)


@pytest.mark.parametrize(
    ("space", "wanting"),
    [
        (Space(64), None),
        (Space(63), "bytes"),
        (Space(64, free_files=1), None),
        (Space(64, free_files=0), "files"),
        (Space(64, free_files=9, read_only=True), "writing"),
        (Space(0, free_files=0, read_only=True), "writing"),
        (Space(1 << 40, free_files=9, refuses=True), "writing"),
    ],
)
def test_a_shortage_is_named(space: Space, wanting: str | None) -> None:
    """Bytes below the minimum, no free inodes (if the disk counts them), or a disk that refuses writes."""
    assert shortage(space, 64, was_short=False) == wanting


@given(MANY, MANY, MANY)
def test_after_a_shortage_more_must_be_free(free_bytes: int, more_bytes: int, min_free_bytes: int) -> None:
    """Space that is enough after a shortage was enough before it. More is never worse."""
    for was_short in (False, True):
        if shortage(Space(free_bytes), min_free_bytes, was_short=was_short) is None:
            assert shortage(Space(free_bytes), min_free_bytes, was_short=False) is None
            assert shortage(Space(free_bytes + more_bytes), min_free_bytes, was_short=was_short) is None


@given(MANY)
def test_a_minimum_of_zero_disables_the_check(free_bytes: int) -> None:
    """It holds for any free space."""
    assert shortage(Space(free_bytes), 0, was_short=False) is None
    assert shortage(Space(free_bytes), 0, was_short=True) is None


@given(st.lists(st.floats(0, 1000), max_size=40))
def test_a_refusing_disk_is_tried_less_and_less_often(gaps_s: list[float]) -> None:
    """The first refusals have no effect. Then the pauses double, to a minute."""
    refusals, now_s, pauses_s = Refusals(), 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        after = refused(refusals, now_s)
        if now_s < refusals.until_s:
            assert after == refusals
        else:
            pauses_s.append(after.until_s - now_s)
        refusals = after

    wanted_s = [0.0] * (FREE_REFUSALS - 1) + [
        min(PAUSE_S * 2**doublings, MAX_PAUSE_S) for doublings in range(40)
    ]
    assert pauses_s == pytest.approx(wanted_s[: len(pauses_s)])
