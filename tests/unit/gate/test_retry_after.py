"""Retry-After: what a host asks for, in every form it may be written."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.worker.gate.retry_after import MAX_WAIT_S, http_date, retry_after_s

ITS_DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
ITS_DATE_MS = 784_111_777_000
MUCH_LATER_MS = ITS_DATE_MS + 10**9

SECONDS = [
    ("1", 1.0),
    ("120", 120.0),
    ("0120", 120.0),
    (" 120 ", 120.0),
    ("1000000", 1_000_000.0),
    ("2147483648", MAX_WAIT_S),
    ("2147483649", MAX_WAIT_S),
    (str(10**12 - 1), MAX_WAIT_S),
    (str(10**12), MAX_WAIT_S),
    (str(10**30), MAX_WAIT_S),
    ("9" * 5000, MAX_WAIT_S),
]

DATES = [
    ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
    ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
    ("Sun Nov  6 08:49:47 1994", 10.0),
    ("sun, 06 nov 1994 08:49:47 gmt", 10.0),
    ("Sun, 06 Nov 1994 08:49:38 GMT", 1.0),
    ("Mon, 07 Nov 1994 08:49:37 GMT", 86_400.0),
]

NOTHING = [
    None,
    "",
    " ",
    "0",
    "000",
    "-1",
    "+5",
    "1.5",
    "1e3",
    "1_000",
    "0x10",
    "5 s",
    "1, 2",
    "٣",
    "²",
    "soon",
    "Sun",
    "Sunday",
    "06 Nov 1994 08:49:47 GMT",
    "Sun, 32 Nov 1994 08:49:47 GMT",
    "Sun, 06 Nov 1994 25:49:47 GMT",
    "Sun, 06 Nov 99999 08:49:47 GMT",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sun, 06 Nov 1994 08:49:36 GMT",
    "Thu, 01 Jan 1970 00:00:00 GMT",
]


@pytest.mark.parametrize(("value", "wait_s"), SECONDS)
def test_seconds_are_a_wait_however_many(value: str, wait_s: float) -> None:
    """A number too large to mean anything still means "not soon" (RFC 9111 §1.2.2)."""
    assert wait_s == retry_after_s(value, ITS_DATE, ITS_DATE_MS)


@pytest.mark.parametrize(("value", "wait_s"), DATES)
def test_a_date_counts_from_the_date_of_the_answer(value: str, wait_s: float) -> None:
    """All three forms (RFC 9110 §5.6.7); a clock that differs from the host's does not matter."""
    assert wait_s == retry_after_s(value, ITS_DATE, MUCH_LATER_MS)


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_a_date_counts_from_now_where_the_answer_has_none(date: str | None) -> None:
    """The host's clock is then taken to be right."""
    assert 15.0 == retry_after_s("Sun, 06 Nov 1994 08:49:47 GMT", date, ITS_DATE_MS - 5000)


@pytest.mark.parametrize("value", NOTHING)
def test_zero_the_past_and_junk_ask_for_nothing(value: str | None) -> None:
    """They do not say when to come back, so our own curve does."""
    assert retry_after_s(value, ITS_DATE, ITS_DATE_MS) is None


@given(st.integers(1, 10**40))
def test_a_larger_number_never_means_a_shorter_wait(seconds: int) -> None:
    """There is no length at which a number turns into junk."""
    wait_s = retry_after_s(str(seconds), None, 0)

    assert min(seconds, MAX_WAIT_S) == wait_s


@given(st.integers(1, 10**8), st.integers(0, 10**10))
def test_a_date_that_far_ahead_of_the_answers_own_is_that_wait(ahead_s: int, date_s: int) -> None:
    """Written and read again, to the second."""
    since = datetime.fromtimestamp(date_s, UTC)
    until = since + timedelta(seconds=ahead_s)
    written, own = format_datetime(until, usegmt=True), format_datetime(since, usegmt=True)

    assert ahead_s == retry_after_s(written, own, 0)


@given(st.text(), st.none() | st.text(), st.integers(0, 10**14))
@example("Sun, 06 Nov 1994 08:49:47 +99999999999999", None, 0)
def test_arbitrary_fields_are_a_positive_wait_or_none(value: str, date: str | None, now_ms: int) -> None:
    """A hostile header raises nothing in a worker."""
    wait_s = retry_after_s(value, date, now_ms)

    assert wait_s is None or wait_s > 0


@given(st.one_of(st.text(), st.from_regex(r"(Mon|Sunday),? [0-9A-Za-z:+, -]{0,40}", fullmatch=True)))
def test_arbitrary_text_is_an_aware_date_or_none(text: str) -> None:
    """What is returned can be subtracted from another."""
    found = http_date(text)

    assert found is None or found.utcoffset() == timedelta(0)
