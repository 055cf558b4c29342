"""A list of fetches: a URL or a JSON object a line."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.fetch_list import (
    MAX_NAMED_ERRORS,
    BadLinesError,
    read_fetch,
    read_fetches,
)
from fetchfleet.jobs.contract.model import Fetch
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
        (["http://a.example/#not-a-comment", "", "#", '{"url":"http://a.example"}'], [A, A]),
    ],
)
def test_each_line_is_a_url_or_json_and_blank_and_hash_lines_are_skipped(
    lines: list[str], fetches: list[Fetch]
) -> None:
    """In their order, with the white space around them dropped."""
    assert fetches == read_fetches(lines)


def test_each_bad_line_is_named_by_its_number_in_the_file() -> None:
    """Counted from 1, skipped lines included, and with what is wrong."""
    lines = ["# a list", "ftp://a/", "http://a.example/", "", '{"url":"http://a/","dest":"../x"}', "{"]
    with pytest.raises(BadLinesError) as caught:
        read_fetches(lines)

    named = str(caught.value).splitlines()
    assert [2, 5, 6] == [number for number, _ in caught.value.errors]
    assert [["line 2", " url"], ["line 5", " dest"]] == [line.split(":")[:2] for line in named[:2]]
    assert named[2].startswith("line 6: ")


def test_nothing_is_returned_when_one_line_is_bad() -> None:
    """All of it is good or none is used."""
    assert [101] == errors_of(["http://a.example/"] * 100 + ["x"])


@pytest.mark.parametrize(("bad", "lines"), [(20, 20), (21, 21), (500, 21)])
def test_the_first_twenty_bad_lines_are_told_and_the_rest_counted(bad: int, lines: int) -> None:
    """A wrong file does not fill the screen; `errors` holds them all."""
    with pytest.raises(BadLinesError) as caught:
        read_fetches(["x"] * bad)

    told = str(caught.value).splitlines()
    assert (bad, lines) == (len(caught.value.errors), len(told))
    assert bad == MAX_NAMED_ERRORS or told[-1] == f"and {bad - 20} more bad lines"


@pytest.mark.parametrize(
    "line", ['{"url":"http://a/\udc80"}', "http://a/\udc80", '{"url":"http://a/"} x', "[]"]
)
def test_a_line_is_taken_as_it_is_or_refused(line: str) -> None:
    """Bytes that are no UTF-8 never become another request."""
    with pytest.raises(InvalidFetchError):
        read_fetch(line)


@given(st.lists(st.sampled_from(["http://a.example/", "", "# x", "bad", '{"url":"bad"}', "{"]), max_size=20))
def test_exactly_the_bad_lines_are_named(lines: list[str]) -> None:
    """In whatever order good, bad and skipped ones come."""
    bad = [n for n, line in enumerate(lines, 1) if line in {"bad", '{"url":"bad"}', "{"}]
    if bad:
        assert bad == errors_of(lines)
    else:
        assert [A] * lines.count("http://a.example/") == read_fetches(lines)


@given(st.lists(st.text()))
def test_arbitrary_lines_are_fetches_or_bad_lines(lines: list[str]) -> None:
    """Nothing in a file raises anything else."""
    with suppress(BadLinesError):
        assert all(isinstance(fetch, Fetch) for fetch in read_fetches(lines))
