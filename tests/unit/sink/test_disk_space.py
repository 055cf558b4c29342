"""Whether a disk has room for more bodies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.sink.disk_space import (
    FREE_REFUSALS,
    LONGEST_PAUSE_S,
    PAUSE_S,
    Refusals,
    Space,
    lack,
    refused,
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
def test_what_is_wanting_is_named(space: Space, wanting: str | None) -> None:
    """Bytes below the least, no file left (where the disk counts them), or a disk that takes nothing."""
    assert lack(space, 64, lacked=False) == wanting


@given(MANY, MANY, MANY)
def test_once_it_was_full_some_more_must_be_free(free_bytes: int, more_bytes: int, least_bytes: int) -> None:
    """What is enough after a lack was enough before it, and more is never worse."""
    for lacked in (False, True):
        if lack(Space(free_bytes), least_bytes, lacked=lacked) is None:
            assert lack(Space(free_bytes), least_bytes, lacked=False) is None
            assert lack(Space(free_bytes + more_bytes), least_bytes, lacked=lacked) is None


@given(MANY)
def test_bytes_are_never_wanting_where_none_are_asked_for(free_bytes: int) -> None:
    """0 turns that look off."""
    assert lack(Space(free_bytes), 0, lacked=False) is None
    assert lack(Space(free_bytes), 0, lacked=True) is None


@given(st.lists(st.floats(0, 1000), max_size=40))
def test_a_disk_that_goes_on_refusing_is_tried_ever_less_often(gaps_s: list[float]) -> None:
    """A few refusals cost nothing; then the pauses double, to a minute; what falls into one adds nothing."""
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
        min(PAUSE_S * 2**doublings, LONGEST_PAUSE_S) for doublings in range(40)
    ]
    assert pauses_s == pytest.approx(wanted_s[: len(pauses_s)])
