"""The Retry-After field in every form in which it is sent."""

from datetime import UTC, datetime, timedelta, timezone
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

FRACTIONS = [
    ("4.5", 5.0),
    ("0.5", 1.0),
    (".5", 1.0),
    ("0.493", 1.0),
    ("292.052427053", 293.0),
    ("2.0", 2.0),
    ("2.", 2.0),
    ("1.000000000000000000000000001", 2.0),
    ("0." + "0" * 5000 + "1", 1.0),
    ("9" * 5000 + ".5", MAX_WAIT_S),
]

DURATIONS = [
    ("30s", 30.0),
    ("1m0s", 60.0),
    ("1m30s", 90.0),
    ("2h0m0s", 7200.0),
    ("5m", 300.0),
    ("1.5s", 2.0),
    ("500ms", 1.0),
    ("2500.5ms", 3.0),
    ("9" * 5000 + "h", MAX_WAIT_S),
]

UNIX_TIMES = [
    (str(ITS_DATE_MS // 1000 + 60), 60.0),
    (f"{ITS_DATE_MS // 1000 + 60}.5", 61.0),
    (str(ITS_DATE_MS + 60_000), 60.0),
    (str(ITS_DATE_MS + 60_001), 61.0),
    (str(ITS_DATE_MS // 1000 + 300 * 86_400), 300 * 86_400.0),
]

DATES = [
    ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
    ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
    ("Sun Nov  6 08:49:47 1994", 10.0),
    ("sun, 06 nov 1994 08:49:47 gmt", 10.0),
    ("Sun, 06 Nov 1994 08:49:38 GMT", 1.0),
    ("Mon, 07 Nov 1994 08:49:37 GMT", 86_400.0),
    ("Sun, 06 Nov 1994 08:49:47 UTC", 10.0),
    ("Sun, 06 Nov 1994 08:49:47 Z", 10.0),
    ("Sun, 06 Nov 1994 10:49:47 +0200", 10.0),
    ("Sun, 06 Nov 1994 10:49:47 +02:00", 10.0),
    ("Sun, 06 Nov 1994 03:49:47 -0500", 10.0),
    ("Sun, 06 Nov 1994 03:49:47 EST", 10.0),
    ("Sun, 06 Nov 1994 08:49:47", 10.0),
    ("Sun, 6 Nov 1994 8:49:47 GMT", 10.0),
    ("Sun, 06-Nov-1994 08:49:47 GMT", 10.0),
    ("Sun, 06 Nov 1994 08:49:46.001 GMT", 10.0),
    ("Sun, 06 Nov 1994 08:49:60 GMT", 23.0),
    ("Sun Nov 06 1994 08:49:47 GMT+0000 (Coordinated Universal Time)", 10.0),
    ("Sun Nov 06 1994 10:49:47 GMT+0200 (Central European Summer Time)", 10.0),
    ("Sun Nov 06 1994 03:49:47 GMT-0500", 10.0),
]

ISO_DATES = [
    ("1994-11-06T08:49:47Z", 10.0),
    ("1994-11-06t08:49:47z", 10.0),
    ("1994-11-06T08:49:47", 10.0),
    ("1994-11-06 08:49:47", 10.0),
    ("1994-11-06 08:49:47 UTC", 10.0),
    ("1994-11-06T08:49:46.001Z", 10.0),
    ("1994-11-06T08:49:46.0000000001Z", 10.0),
    ("1994-11-06T08:49:47.000Z", 10.0),
    ("1994-11-06T08:49:47.000+00:00", 10.0),
    ("1994-11-06T10:49:47+02:00", 10.0),
    ("1994-11-06T10:49:47+0200", 10.0),
    ("1994-11-06T10:49:47 +02", 10.0),
    ("1994-11-06T05:19:47-03:30", 10.0),
    ("1994-11-06 10:49:47 +0200", 10.0),
    ("19941106T084947Z", 10.0),
    ("1994-11-06T08:50Z", 23.0),
    ("1994-11-06T08:49:60Z", 23.0),
    ("1994-11-07", 54_623.0),
]

SEVERAL = [
    ("4, 4", 4.0),
    ("4, 120", 120.0),
    ("120, 4", 120.0),
    ("4,120", 120.0),
    ("soon, 4", 4.0),
    ("4, soon", 4.0),
    ("4,", 4.0),
    ("0, 4.5", 5.0),
    ("Sun, 06 Nov 1994 08:49:47 GMT, 4", 10.0),
    ("4, Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
    ("4,Sunday, 06-Nov-94 08:49:47 GMT,12", 12.0),
    ("Sun, 06 Nov 1994 08:49:47 GMT, Sun, 06 Nov 1994 08:49:57 GMT", 20.0),
    ("Sun Nov  6 08:49:47 1994, 1994-11-06T08:49:57Z", 20.0),
]

NOTHING = [
    None,
    "",
    " ",
    "0",
    "000",
    "-1",
    "+5",
    "0.0",
    ".",
    "-1.5",
    "1.5.2",
    "nan",
    "inf",
    "1e3",
    "1_000",
    "0x10",
    "5 s",
    "0s",
    "s",
    "1s1m",
    "0, 0",
    "soon, later",
    ",",
    str(ITS_DATE_MS // 1000),
    str(ITS_DATE_MS // 1000 - 60),
    str(ITS_DATE_MS - 1),
    "1994-11-06T08:49:37Z",
    "1994-11-06T08:49:36.999Z",
    "1994-13-06T08:49:47Z",
    "1994-11-06T25:49:47Z",
    "1994-11-06T08:49:47+25:00",
    "9999-12-31T23:59:60Z",
    "0001-01-01T00:00:00+02:00",
    "1994-11",
    "Sun, 06 Nov 1994 08:49:47 CET",
    "Sun, 06 Nov 1994 08:49:47 GMT+2",
    "Sun, 06 Nov 1994 08:49:47 GMT; no sooner",
    "Fri, 31 Dec 9999 23:59:60 GMT",
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
def test_any_number_of_seconds_is_a_wait(value: str, wait_s: float) -> None:
    """A number too large to be meant still means a long wait (RFC 9111 §1.2.2)."""
    assert wait_s == retry_after_s(value, ITS_DATE, ITS_DATE_MS)


@pytest.mark.parametrize(("value", "wait_s"), FRACTIONS)
def test_a_fraction_of_a_second_is_rounded_up(value: str, wait_s: float) -> None:
    """No request is sent earlier than the host asked for, at any precision."""
    assert wait_s == retry_after_s(value, ITS_DATE, ITS_DATE_MS)


@pytest.mark.parametrize(("value", "wait_s"), DURATIONS)
def test_a_duration_with_units_is_a_wait(value: str, wait_s: float) -> None:
    """The form is that in which Go prints durations. The wait is rounded up."""
    assert wait_s == retry_after_s(value, ITS_DATE, ITS_DATE_MS)


@pytest.mark.parametrize(("value", "wait_s"), UNIX_TIMES)
def test_a_unix_time_counts_from_the_date_of_the_response(value: str, wait_s: float) -> None:
    """The field may be in seconds or milliseconds, and as a wait it would mean decades."""
    assert wait_s == retry_after_s(value, ITS_DATE, MUCH_LATER_MS)
    assert wait_s == retry_after_s(value, None, ITS_DATE_MS)


@pytest.mark.parametrize(("value", "wait_s"), DATES + ISO_DATES)
def test_a_date_counts_from_the_date_of_the_response(value: str, wait_s: float) -> None:
    """A clock difference has no effect on any form of date (RFC 9110 §5.6.7, ISO 8601)."""
    assert wait_s == retry_after_s(value, ITS_DATE, MUCH_LATER_MS)


@pytest.mark.parametrize(("value", "wait_s"), SEVERAL)
def test_the_longest_valid_one_of_several_values_counts(value: str, wait_s: float) -> None:
    """The comma of an HTTP-date separates nothing."""
    assert wait_s == retry_after_s(value, ITS_DATE, MUCH_LATER_MS)


def test_the_first_of_two_date_fields_counts() -> None:
    """Joined, they would not be a date."""
    assert 10.0 == retry_after_s("Sun, 06 Nov 1994 08:49:47 GMT", f"{ITS_DATE}, {ITS_DATE}", MUCH_LATER_MS)


def test_a_date_between_two_seconds_is_rounded_up() -> None:
    """Without a Date field, the wait ends at the named moment or later."""
    assert 10.0 == retry_after_s("Sun, 06 Nov 1994 08:49:47 GMT", None, ITS_DATE_MS + 1)


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_without_a_date_field_a_date_counts_from_now(date: str | None) -> None:
    """The host's clock is then assumed to be right."""
    assert 15.0 == retry_after_s("Sun, 06 Nov 1994 08:49:47 GMT", date, ITS_DATE_MS - 5000)


@pytest.mark.parametrize("value", NOTHING)
def test_zero_past_dates_and_junk_mean_no_wait(value: str | None) -> None:
    """The back-off of the gate applies instead."""
    assert retry_after_s(value, ITS_DATE, ITS_DATE_MS) is None


@given(st.integers(1, 10**40))
def test_a_larger_number_never_means_a_shorter_wait(seconds: int) -> None:
    """No length turns a number into junk."""
    wait_s = retry_after_s(str(seconds), None, 0)

    assert min(seconds, MAX_WAIT_S) == wait_s


@given(st.integers(1, 10**8), st.integers(0, 10**10))
def test_a_date_ahead_of_the_date_field_is_that_wait(ahead_s: int, date_s: int) -> None:
    """Written and read again, to the second."""
    since = datetime.fromtimestamp(date_s, UTC)
    until = since + timedelta(seconds=ahead_s)
    written, own = format_datetime(until, usegmt=True), format_datetime(since, usegmt=True)

    assert ahead_s == retry_after_s(written, own, 0)


MOMENTS = st.integers(0, 4 * 10**9).map(lambda unix_s: datetime.fromtimestamp(unix_s, UTC))
WRITTEN = st.one_of(
    st.integers(1, 10**6).map(str),
    st.decimals("0.001", "1000000", places=3).map(str),
    MOMENTS.map(lambda at: format_datetime(at, usegmt=True)),
    MOMENTS.map(lambda at: f"{at:%A, %d-%b-%y %H:%M:%S GMT}"),
    MOMENTS.map(datetime.isoformat),
    st.sampled_from(["0", "-1", "soon", "", "Sun 5"]),
)


@given(st.lists(WRITTEN, min_size=1, max_size=6), st.integers(0, 10**13))
def test_the_longest_wait_of_several_lines_counts(lines: list[str], now_ms: int) -> None:
    """It holds in any forms and any order."""
    alone = [wait_s for line in lines if (wait_s := retry_after_s(line, None, now_ms)) is not None]

    assert retry_after_s(", ".join(lines), None, now_ms) == (max(alone) if alone else None)


@given(
    st.integers(1, 10**14),
    st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    st.sampled_from(["T", " "]),
    st.integers(0, 10**12),
)
def test_an_iso_date_in_any_zone_is_never_early(
    ahead_us: int, zone: timezone, between: str, now_ms: int
) -> None:
    """The wait ends within two seconds after the named moment."""
    until = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=now_ms, microseconds=ahead_us)

    wait_s = retry_after_s(until.astimezone(zone).isoformat(between), None, now_ms)

    assert wait_s is not None
    assert ahead_us <= wait_s * 10**6 < ahead_us + 2 * 10**6


@given(st.text(), st.none() | st.text(), st.integers(0, 10**14))
@example("Sun, 06 Nov 1994 08:49:47 +99999999999999", None, 0)
def test_arbitrary_fields_yield_a_positive_wait_or_none(value: str, date: str | None, now_ms: int) -> None:
    """A hostile header raises no error."""
    wait_s = retry_after_s(value, date, now_ms)

    assert wait_s is None or (0 < wait_s <= MAX_WAIT_S and wait_s == int(wait_s))


@given(st.one_of(st.text(), st.from_regex(r"(Mon|Sunday),? [0-9A-Za-z:+, -]{0,40}", fullmatch=True)))
def test_arbitrary_text_yields_an_aware_date_or_none(text: str) -> None:
    """The result can be subtracted from another."""
    found = http_date(text)

    assert found is None or found.utcoffset() == timedelta(0)
