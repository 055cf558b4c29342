"""A list of fetches: a URL or a JSON object a line."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.fetch_list import (
    MAX_NAMED_ERRORS,
    BadLinesError,
    parse_list,
    read_fetch,
    read_fetches,
)
from fetchfleet.jobs.errors import InvalidFetchError

A, B = Fetch(url="http://a.example/"), Fetch(url="http://b.example/", method="POST", body="x")


def errors_of(lines: list[str]) -> list[int]:
    with pytest.raises(BadLinesError) as caught:
        read_fetches(lines)
    return [number for number, _ in caught.value.errors]


@pytest.mark.parametrize(
    ("lines", "fetches"),
    [
        ([], []),
        (["", "\n", "  \t\r\n"], []),
        (["# http://c.example/", "  # {", "#"], []),
        (["http://a.example/"], [A]),
        (["  http://a.example/ \r\n"], [A]),
        (['{"url":"http://a.example/"}'], [A]),
        (['  {"url": "http://b.example/", "method": "post", "body": "x"}\n'], [B]),
        (["\ufeffhttp://a.example/\r\n"], [A]),
        (['\ufeff{"url":"http://a.example/"}', "\ufeffhttp://a.example/"], [A, A]),
        (["\ufeff", "\ufeff# x", "\x0c", "\u00a0", "\u3000\n"], []),
        (["\u00a0http://a.example/\u00a0\u2003", "http://a.example/\x0b\x0c"], [A, A]),
        (["http://a.example/#not-a-comment", "", "#", '{"url":"http://a.example"}'], [A, A]),
    ],
)
def test_each_line_is_a_url_or_json_and_blank_and_hash_lines_are_skipped(
    lines: list[str], fetches: list[Fetch]
) -> None:
    """The fetches keep the order of the list, and white space around them is dropped."""
    assert fetches == read_fetches(lines)


def test_each_bad_line_is_named_by_its_number_in_the_file() -> None:
    """Counted from 1, skipped lines included, with the reason."""
    lines = ["# a list", "ftp://a/", "http://a.example/", "", '{"url":"http://a/","dest":"../x"}', "{"]
    with pytest.raises(BadLinesError) as caught:
        read_fetches(lines)

    named = str(caught.value).splitlines()
    assert [2, 5, 6] == [number for number, _ in caught.value.errors]
    assert [["line 2", " url"], ["line 5", " dest"]] == [line.split(":")[:2] for line in named[:2]]
    assert named[2].startswith("line 6: ")


def test_nothing_is_returned_when_one_line_is_bad() -> None:
    """A list is used as a whole."""
    assert [101] == errors_of(["http://a.example/"] * 100 + ["x"])


@pytest.mark.parametrize(("bad", "lines"), [(20, 20), (21, 21), (500, 21)])
def test_the_first_twenty_bad_lines_are_named_and_the_rest_counted(bad: int, lines: int) -> None:
    """A wrong file does not fill the screen. `errors` has them all."""
    with pytest.raises(BadLinesError) as caught:
        read_fetches(["x"] * bad)

    error_lines = str(caught.value).splitlines()
    assert (bad, lines) == (len(caught.value.errors), len(error_lines))
    assert bad == MAX_NAMED_ERRORS or error_lines[-1] == f"and {bad - 20} more bad lines"


@pytest.mark.parametrize(
    "line", ['{"url":"http://a/\udc80"}', "http://a/\udc80", '{"url":"http://a/"} x', "[]"]
)
def test_a_line_is_used_unchanged_or_refused(line: str) -> None:
    """Bytes that are not UTF-8 do not become another request."""
    with pytest.raises(InvalidFetchError):
        read_fetch(line)


@given(st.lists(st.sampled_from(["http://a.example/", "", "# x", "bad", '{"url":"bad"}', "{"]), max_size=20))
def test_exactly_the_bad_lines_are_named(lines: list[str]) -> None:
    """It holds in any order of good, bad and skipped lines."""
    bad = [n for n, line in enumerate(lines, 1) if line in {"bad", '{"url":"bad"}', "{"}]
    if bad:
        assert bad == errors_of(lines)
    else:
        assert [A] * lines.count("http://a.example/") == read_fetches(lines)


@given(st.lists(st.text()))
def test_arbitrary_lines_are_fetches_or_bad_lines(lines: list[str]) -> None:
    """No content raises another error."""
    with suppress(BadLinesError):
        assert all(isinstance(fetch, Fetch) for fetch in read_fetches(lines))


def dests_of(*fields: str) -> list[tuple[int, str]]:
    """Return the bad lines of a list of fetches with these fields."""
    lines = [f'{{"url":"http://a.example/{place}",{field}}}' for place, field in enumerate(fields)]
    return [(line.number, line.error) for line in parse_list(["# dests", *lines]).bad_lines]


@pytest.mark.parametrize(
    "fields",
    [
        ('"dest":"x"', '"dest":"y"', '"dest":"X"', '"dest":"x/y"'),
        ('"dest":"x","if_exists":"skip"', '"dest":"x","if_exists":"skip"', '"dest":"x","if_exists":"fail"'),
        ('"dest":"x","key":"k"', '"dest":"x","key":"k"'),
    ],
)
def test_fetches_that_cannot_replace_each_others_bodies_may_have_one_dest(fields: tuple[str, ...]) -> None:
    """Other names, a file that stays, and one fetch listed twice by its key."""
    assert [] == dests_of(*fields)


@pytest.mark.parametrize(
    "fields",
    [
        ('"dest":"x"', '"dest":"x"'),
        ('"dest":"x","if_exists":"replace"', '"dest":"x","if_exists":"replace"'),
        ('"dest":"x","if_exists":"skip"', '"dest":"x"'),
        ('"dest":"x"', '"dest":"x","if_exists":"fail"'),
        ('"dest":"x","key":"k"', '"dest":"x","key":"other"'),
        ('"dest":"x","key":"k"', '"dest":"x"'),
    ],
)
def test_a_second_fetch_of_one_dest_is_a_bad_line_that_names_the_first(fields: tuple[str, ...]) -> None:
    """Otherwise both would be `stored`, and one body would be lost."""
    ((number, error),) = dests_of(*fields)

    assert 3 == number
    assert "dest: 'x' is also the dest of line 2" in error


def test_every_further_fetch_of_one_dest_names_the_first() -> None:
    """A refused one occupies no dest."""
    lines = ['"dest":"x"', '"dest":"x","key":"k"', '"dest":"x","key":"k"', '"dest":"y"']

    assert [(3, "line 2"), (4, "line 2")] == [(n, e.split(" of ")[1][:6]) for n, e in dests_of(*lines)]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("http://a/caf\udce9", "url: byte 0xE9 at position 12 is not UTF-8"),
        ('{"url":"http://a/\udc80"}', "byte 0x80 at position 17 is not UTF-8"),
    ],
)
def test_a_byte_that_is_not_utf8_is_named(line: str, error: str) -> None:
    """The error has the byte and its position instead of the surrogate that stands for it."""
    assert [error] == [bad.error for bad in parse_list([line]).bad_lines]


def test_a_list_is_split_into_fetches_and_bad_lines() -> None:
    """Each bad line has its number and its text."""
    fetches, bad, sample = parse_list(["\ufeffurl", "", "http://a.example/ ", " ftp://x\n"])

    assert [A] == fetches
    assert [(1, "url"), (4, "ftp://x")] == [(line.number, line.text) for line in bad]
    assert ["url", "http://a.example/", "ftp://x"] == sample
