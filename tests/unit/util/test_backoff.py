"""Back-off: doubled, capped, jittered, and safe for any number of tries."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.worker.util.backoff import exponential_s, full_jitter_s, upward_jitter_s

CHANCES = st.floats(0, 1, exclude_max=True)
TRIES = st.integers(1, 10**9)
BASES_S = st.floats(0.001, 3600)
CAPS_S = st.floats(0.001, 86_400)


@pytest.mark.parametrize(
    ("n", "wait_s"),
    [(-1, 1.0), (0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (8, 60.0), (10**9, 60.0)],
)
def test_the_wait_doubles_up_to_the_cap(n: int, wait_s: float) -> None:
    """1, 2, 4, … 32, then always 60."""
    assert wait_s == exponential_s(n, 1.0, 60.0)


def test_a_base_above_the_cap_is_the_cap() -> None:
    """The cap applies from the first wait on."""
    assert 2.0 == exponential_s(1, 5.0, 2.0)


@pytest.mark.parametrize(("chance", "wait_s"), [(0.0, 0.0), (0.25, 2.0), (0.5, 4.0)])
def test_full_jitter_spreads_a_retry_from_zero_to_the_bound(chance: float, wait_s: float) -> None:
    """The fourth wait of base 1 s is anywhere within 8 s."""
    assert wait_s == full_jitter_s(4, 1.0, 60.0, chance)


@pytest.mark.parametrize(("chance", "wait_s"), [(0.0, 10.0), (0.5, 10.5), (0.999, 10.999)])
def test_upward_jitter_adds_up_to_a_tenth(chance: float, wait_s: float) -> None:
    """The wait that a host requested is the minimum."""
    assert pytest.approx(wait_s, abs=0.02) == upward_jitter_s(10.0, chance)


@given(TRIES, BASES_S, CAPS_S, CHANCES)
@example(10**9, 3600.0, 86_400.0, 0.999)
def test_full_jitter_stays_within_zero_and_the_cap(
    n: int, base_s: float, cap_s: float, chance: float
) -> None:
    """It holds for any number of failures."""
    assert 0 <= full_jitter_s(n, base_s, cap_s, chance) <= cap_s


@given(TRIES, TRIES, BASES_S, CAPS_S)
@example(1024, 1025, 0.001, 1.7e308)
def test_the_bound_never_falls(a: int, b: int, base_s: float, cap_s: float) -> None:
    """A later retry has at least the bound of an earlier one."""
    assert exponential_s(min(a, b), base_s, cap_s) <= exponential_s(max(a, b), base_s, cap_s)


@given(st.floats(0, 86_400), CHANCES)
def test_upward_jitter_never_shortens_a_wait(wait_s: float, chance: float) -> None:
    """It adds a tenth at most."""
    assert wait_s <= upward_jitter_s(wait_s, chance) <= wait_s * 1.1
