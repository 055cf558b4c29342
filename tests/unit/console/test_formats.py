"""The forms of numbers, times and states on pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.console.pages import formats
from fetchfleet.worker.inspect.overview import LANE_STATES
from fetchfleet.worker.util.quantities import age


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (53_000_000, "53.0 MB"), (-1, "0 B")],
)
def test_sizes_have_the_largest_fitting_unit(value: int, shown: str) -> None:
    """Small numbers of a unit have one decimal."""
    assert shown == formats.size(value)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")]
)
def test_ages_have_the_largest_unit_with_two_or_more(seconds: float, shown: str) -> None:
    """The text stays short at any age."""
    assert shown == age(seconds)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_can_be_shown(value: float) -> None:
    """Values from Redis may have any size."""
    assert formats.size(value)
    assert age(value)
    assert formats.rate(value)


@given(st.integers())
def test_any_time_can_be_shown(at_ms: int) -> None:
    """Times beyond the calendar, as another program may write them, are not shown."""
    for shown in (formats.moment(at_ms), formats.tick(at_ms), formats.until(at_ms, 0)):
        assert shown in {formats.UNKNOWN, ""} or shown.startswith('<time datetime="')


def test_times_are_utc() -> None:
    """The element has the whole time, for programs and as its title."""
    shown = str(formats.moment(1_796_043_922_000))

    assert shown.startswith('<time datetime="2026-11-30T13:05:22+00:00" title="2026-11-30 13:05:22 UTC">')
    assert shown.endswith(">2026-11-30 13:05:22</time>")


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_100_percent_means_that_every_fetch_has_a_result(done: int, total: int) -> None:
    """99.99 % is shown as 99 %."""
    shown = formats.percent(done, total)

    assert ("100 %" == shown) == (total > 0 and done >= total)


def test_states_differ_without_colour() -> None:
    """No two states of a host have the same icon and word."""
    looks = [formats.state_look(state) for state in [*LANE_STATES, "idle", "no worker"]]

    assert len({look.icon for look in looks}) == len({look.label for look in looks}) == len(looks)


def test_an_unknown_state_is_shown_by_its_name() -> None:
    """A newer worker may report one."""
    assert formats.Look("circle", "", "hovering") == formats.state_look("hovering")


@pytest.mark.parametrize(
    ("what", "look"),
    [
        ("200", "good status"),
        ("429", "refusal"),
        ("503", "failure"),
        ("connect", "failure"),
        ("²", "failure"),
    ],
)
def test_responses_have_the_look_of_their_status(what: str, look: str) -> None:
    """Any other text names a failure."""
    assert look == formats.answer_look(what)


@given(st.text())
def test_a_segment_of_a_url_has_no_delimiter(text: str) -> None:
    """A host name from Redis cannot change the path or the query of a link."""
    shown = formats.segment(text.encode(errors="replace").decode())

    assert not set(shown) & set("/?#&\"'<> ")
