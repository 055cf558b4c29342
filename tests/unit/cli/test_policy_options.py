"""The options that set keys of the policy's default table, and the options for fields of every fetch."""

import re
import shlex
from typing import Any

import msgspec
import pytest

from fetchfleet import Fetch
from fetchfleet.jobs.contract.checks.field_checks import IfExists
from fetchfleet.worker.cli.options.changes import revalidated
from fetchfleet.worker.cli.options.headers import header_change, parse_headers
from fetchfleet.worker.cli.options.names import name_changes, name_words
from fetchfleet.worker.cli.options.worker_options import policy_keys
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.policy.model import PROFILES, LanePolicy, Range

URL = "http://a.example/"


def keys(**given: Any) -> dict[str, Any]:
    return policy_keys(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"concurrency": "4"}, {"concurrency": 4}),
        ({"rate": 0.5}, {"rate_per_s": 0.5}),
        ({"attempts": 2}, {"attempts": 2}),
        ({"max_bytes": "0"}, {"max_bytes": 0}),
        ({"max_bytes": "50000000"}, {"max_bytes": 50_000_000}),
        ({"max_bytes": "50MB"}, {"max_bytes": 50_000_000}),
        ({"max_bytes": "50 M"}, {"max_bytes": 50_000_000}),
        ({"max_bytes": "1.5kB"}, {"max_bytes": 1500}),
        ({"max_bytes": "64MiB"}, {"max_bytes": 64 << 20}),
        ({"max_bytes": "2Ti"}, {"max_bytes": 2 << 40}),
        ({"timeout": "api"}, {"timeout": "api"}),
        ({"set_keys": ["robots=obey", "ports=[80,8080]"]}, {"robots": "obey", "ports": [80, 8080]}),
        ({"set_keys": ["attempts=1"], "attempts": 3}, {"attempts": 3}),
    ],
)
def test_an_option_sets_its_key(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """The named options are more specific than --set."""
    assert keys(**given) == expected
    msgspec.convert(expected, LanePolicy)


def test_a_range_adapts_the_concurrency() -> None:
    """It has the form MIN-MAX."""
    assert msgspec.convert(keys(concurrency="2-32"), LanePolicy).concurrency == Range(min=2, max=32)


def test_a_timeout_in_seconds_limits_the_attempt_and_every_wait_in_it() -> None:
    """The other limits are those of the profile `stream`, as far as they are smaller."""
    short = msgspec.convert(keys(timeout="3"), LanePolicy).timeouts
    assert set(msgspec.structs.astuple(short)) == {3.0}

    usual = msgspec.convert(keys(timeout="1800"), LanePolicy).timeouts
    assert usual == msgspec.structs.replace(PROFILES["stream"], total_s=1800)


@pytest.mark.parametrize("text", ["much", "", "-1", "nan", "1-2-3", "5 0", "1e3"])
def test_text_in_another_form_is_refused_with_the_form(text: str) -> None:
    """The message has the option and the text."""
    with pytest.raises(CommandError, match=f"--max-bytes {text}: write it like 50000000, 50MB or 64MiB"):
        keys(max_bytes=text)
    with pytest.raises(CommandError, match=f"--concurrency {text}: write it like 8, or 1-64"):
        keys(concurrency=text)


def test_a_fraction_of_a_byte_is_a_limit() -> None:
    """Rounded down it would be 0, which means no limit."""
    assert keys(max_bytes="0.4") == {"max_bytes": 1}


def test_set_without_a_value_is_refused() -> None:
    """The message shows the form."""
    with pytest.raises(CommandError, match="--set 'robots' is not KEY=VALUE"):
        keys(set_keys=["robots"])


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("accept=image/png", """accept: accept is a table; write 'accept={types = ["image/png"]}'"""),
        ("accept=a/b, c/*", """accept: accept is a table; write 'accept={types = ["a/b","c/*"]}'"""),
        ('accept=["a/b"]', """accept: accept is a table; write 'accept={types = ["a/b"]}'"""),
        ("accept.types=a/b", """accept.types: accept is a table; write 'accept={types = ["a/b"]}'"""),
        ("accept.statuses=200", "accept.statuses: accept is a table; write 'accept={statuses = [200]}'"),
        ("accept.min_bytes=9", "accept.min_bytes: accept is a table; write 'accept={min_bytes = 9}'"),
        ("accept.type=a/b", "accept.type: accept is a table with types, min_bytes, max_bytes, statuses"),
    ],
)
def test_a_part_of_accept_is_refused_with_what_to_write(pair: str, says: str) -> None:
    """As a shell takes it. The suggestion is a policy."""
    with pytest.raises(CommandError, match=f"^--set {re.escape(says)}$"):
        keys(set_keys=[pair])
    if "write " in says:
        [wanted] = shlex.split(says.partition("write ")[2])
        msgspec.convert(keys(set_keys=[wanted]), LanePolicy)


@pytest.mark.parametrize("pair", ['accept={"types":["a/b"]}', 'accept={types = ["a/b"]}', "accept={}"])
def test_accept_as_a_table_is_taken(pair: str) -> None:
    """In JSON or in TOML. A key that only begins like it is left to the policy."""
    assert isinstance(keys(set_keys=[pair])["accept"], dict)
    assert keys(set_keys=["accepts=1"]) == {"accepts": 1}


def test_headers_are_added_unless_a_fetch_has_them() -> None:
    """Field names are compared without case (RFC 9110 §5.1)."""
    change = header_change(["Accept: text/csv", "X-Team:a"])
    plain = change(Fetch(url="http://a.example/"))
    own = change(Fetch(url="http://a.example/", headers={"ACCEPT": "x/y"}))
    assert plain.headers == {"Accept": "text/csv", "X-Team": "a"}
    assert own.headers == {"X-Team": "a", "ACCEPT": "x/y"}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["hunter2"], "--header: a value has no colon"),
        (["A: 1", "a: hunter2"], "--header a: given twice"),
        (["Host: hunter2"], "--header: headers: Host is set by the worker"),
        (["A: hunter2\n"], "--header: headers: the value of A has a line break"),
    ],
)
def test_a_bad_header_is_refused_without_its_value(lines: list[str], says: str) -> None:
    """It may be a secret."""
    with pytest.raises(CommandError) as caught:
        parse_headers(lines)

    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_name_is_added_unless_a_fetch_has_a_place() -> None:
    """`--if-exists` applies to every fetch that has one, unless the fetch sets it."""
    name, if_exists = name_changes("{stem}{ext}", IfExists.SKIP)
    own = [
        Fetch(url=URL, dest="a"),
        Fetch(url=URL, name="{id}"),
        Fetch(url=URL, dest="{n}", if_exists="fail"),
    ]

    assert Fetch(url=URL, name="{stem}{ext}") == name(Fetch(url=URL))
    assert own == [name(fetch) for fetch in own]
    assert ["skip", "skip", "fail"] == [if_exists(fetch).if_exists for fetch in own]
    assert if_exists(Fetch(url=URL)).if_exists is None
    assert [] == name_changes(None, None)
    assert ["--name", "{id}", "--if-exists", "skip"] == name_words("{id}", IfExists.SKIP)
    assert [] == name_words(None, None)


def test_a_bad_template_is_refused_with_the_option() -> None:
    """The message has the placeholders."""
    with pytest.raises(CommandError) as caught:
        name_changes("{file}", None)

    assert str(caught.value).startswith("--name: {file} is not a placeholder; use one of {host} {path}")
    assert BAD_USE == caught.value.exit_code


def test_revalidate_is_set_for_each_get_without_a_condition() -> None:
    """Other fetches stay as they are, because a fetch with both is invalid."""
    others = [
        Fetch(url=URL, method="HEAD"),
        Fetch(url=URL, method="POST", body="{}"),
        Fetch(url=URL, etag='"e"'),
        Fetch(url=URL, last_modified="Mon, 07 Jan 2030 00:00:00 GMT"),
        Fetch(url=URL, headers={"if-none-match": "*"}),
    ]

    assert Fetch(url=URL, dest="a", revalidate=True) == revalidated(Fetch(url=URL, dest="a"))
    assert others == [revalidated(fetch) for fetch in others]
