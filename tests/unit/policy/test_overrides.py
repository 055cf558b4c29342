"""Key=value pairs as they are typed, and tables laid over those of a file."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError, Range
from fetchfleet.worker.policy.overrides import overrides_of
from fetchfleet.worker.policy.pairs import parsed
from fetchfleet.worker.policy.pauses import PauseMark

FILE = parse_policy("""
[default]
concurrency = 3
attempts = 7

[host."*.example.com"]
concurrency = 10
rate_per_s = 2

[host."*.cdn.example.com"]
concurrency = {min = 2, max = 20}

[host."a.cdn.example.com"]
burst = 4
""")


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("concurrency=2", {"concurrency": 2}),
        ("rate_per_s=0.5", {"rate_per_s": 0.5}),
        ("paused=true", {"paused": True}),
        ("timeout=api", {"timeout": "api"}),
        ('timeout="api"', {"timeout": "api"}),
        ('concurrency={"min":1,"max":9}', {"concurrency": {"min": 1, "max": 9}}),
        ("timeout=a=b", {"timeout": "a=b"}),
        ("timeout=", {"timeout": ""}),
        ("paused=null", {"paused": None}),
        ("paused=True", {"paused": "True"}),
    ],
)
def test_a_value_is_json_where_it_can_be(pair: str, expected: dict[str, Any]) -> None:
    """Else it is text; the first = parts the key from it; null takes the key out."""
    assert expected == parsed([pair])


def test_tables_of_older_versions_hold_for_the_present_name_of_their_host() -> None:
    """Older versions had two names for one address. The keys of the present name count."""
    mark = PauseMark("pause", 1)
    found = overrides_of(
        {
            "127.0.0.1": {"burst": 2},
            "::ffff:127.0.0.1": {"burst": 1, "paused": True},
            "!::ffff:127.0.0.1": mark,
            "*.cdn.net": {"attempts": 3},
            "default": {"attempts": 2},
            "no host": {"attempts": 4},
        }
    )

    assert found.tables["127.0.0.1"] == {"burst": 2, "paused": True}
    assert found.tables.keys() == {"127.0.0.1", "*.cdn.net", "default", "no host"}
    assert found.marks == {"127.0.0.1": mark}


def test_the_last_of_two_values_counts() -> None:
    """As with flags."""
    assert {"burst": 2, "attempts": 1} == parsed(["burst=1", "attempts=1", "burst=2"])


@pytest.mark.parametrize("pair", ["", "concurrency", "=2", "="])
def test_what_is_no_pair_is_named(pair: str) -> None:
    """In quotes, for it may be empty."""
    with pytest.raises(PolicyError, match="KEY=VALUE") as caught:
        parsed([pair])

    assert repr(pair) in str(caught.value)


@given(st.text())
def test_any_pair_is_a_value_or_a_policy_error(text: str) -> None:
    """Whatever is typed."""
    assert ["key"] == list(parsed([f"key={text}"]))


@pytest.mark.parametrize(
    ("lane", "expected"),
    [
        ("other.example", LanePolicy(concurrency=3, attempts=7)),
        ("b.example.com", LanePolicy(concurrency=10, attempts=7, rate_per_s=2)),
        ("b.cdn.example.com", LanePolicy(concurrency=Range(min=2, max=20), attempts=7, rate_per_s=2)),
        (
            "a.cdn.example.com",
            LanePolicy(concurrency=Range(min=2, max=20), attempts=7, rate_per_s=2, burst=4),
        ),
    ],
)
def test_key_by_key_the_most_specific_table_wins(lane: str, expected: LanePolicy) -> None:
    """A host's own, then the longest pattern, then a shorter one, then the default."""
    assert expected == FILE.for_lane(lane)


def test_a_table_laid_over_the_files_changes_only_its_keys() -> None:
    """For the host that it names, with all the rest as in the file; ours stays as it was."""
    over = FILE.overridden({"a.cdn.example.com": {"concurrency": 1}})

    assert LanePolicy(concurrency=1, attempts=7, rate_per_s=2, burst=4) == over.for_lane("a.cdn.example.com")
    assert FILE.for_lane("b.cdn.example.com") == over.for_lane("b.cdn.example.com")
    assert Range(min=2, max=20) == FILE.for_lane("a.cdn.example.com").concurrency


def test_a_default_laid_over_the_files_gives_way_to_the_files_hosts() -> None:
    """It is the default table that has changed: what a host's table says still holds for it."""
    over = FILE.overridden({"default": {"concurrency": 1, "burst": 9}})

    assert (1, 9) == (over.for_lane("other.example").concurrency, over.for_lane("other.example").burst)
    assert (10, 9) == (over.for_lane("b.example.com").concurrency, over.for_lane("b.example.com").burst)


def test_a_pattern_laid_over_the_files_reaches_every_host_under_it() -> None:
    """Those that the file does not know too."""
    over = Policy().overridden({"*.example.com": {"paused": True}})

    assert over.for_lane("x.example.com").paused
    assert not over.for_lane("example.com").paused


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"default": {"burst": 0}}, "[default] burst"),
        ({"a.example": {"paused": "yes"}}, '[host."a.example"]'),
        ({"a.example": {"retry_cap_s": 0.5}}, '[host."a.example"] retry_cap_s'),
        ({"*.example": {"nonsense": 1}}, "`nonsense`"),
    ],
)
def test_tables_that_do_not_go_with_the_files_are_refused(tables: dict[str, Any], named: str) -> None:
    """A cap below the file's base is as wrong as a value that is wrong by itself."""
    with pytest.raises(PolicyError) as caught:
        FILE.overridden(tables)

    assert named in str(caught.value)


TRUST = parse_policy("""
[default]
ca_file = "ca.pem"

[host."*.example.com"]
client_cert = "us.pem"
https_to_http = true

[host."a.example.com"]
verify = false
""")

LANES = st.sampled_from(["a.example.com", "b.example.com", "b.a.example.com", "other.example"])


@pytest.mark.parametrize("name", ["default", "a.example.com", "*.example.com", "new.example"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ca_file", "/proc/self/environ"),
        ("client_cert", ""),
        ("client_key", "x"),
        ("verify", True),
        ("verify", False),
        ("https_to_http", False),
        ("redirect_bodies", True),
    ],
)
def test_whom_to_trust_is_never_said_by_redis(name: str, key: str, value: object) -> None:
    """Who can write there names no file of a worker's disk and lowers no guard; nor can he raise one."""
    where = name if name == "default" else f'host."{name}"'
    with pytest.raises(PolicyError) as caught:
        TRUST.overridden({name: {key: value}})

    assert f"[{where}] {key}: is set in the workers' policy file" in str(caught.value)


@given(
    st.dictionaries(
        st.one_of(LANES, st.sampled_from(["default", "*.example.com", "*.a.example.com", "*.com"])),
        st.fixed_dictionaries({}, optional={"burst": st.integers(1, 9), "http2": st.booleans()}),
    ),
    LANES,
)
def test_no_table_changes_what_the_file_says_of_trust(tables: dict[str, Any], lane: str) -> None:
    """Whatever else it says, and of whom."""
    over = TRUST.overridden(tables).for_lane(lane)
    assert (TRUST.for_lane(lane).tls, TRUST.for_lane(lane).https_to_http) == (over.tls, over.https_to_http)
    assert over.tls in {policy.tls for _, policy in TRUST.named()}


def test_everything_that_is_wrong_with_a_file_is_named_at_once() -> None:
    """Nobody mends a file fault by fault."""
    with pytest.raises(PolicyError) as caught:
        parse_policy("""
[default]
burst = 0
attempts = "many"
[host."a.example"]
concurency = 2
breaker_cap_s = -1
[host."a/b"]
[hosts]
""")

    lines = str(caught.value).splitlines()
    for named in ("[hosts]", '[host."a/b"]', "`concurency`", "breaker_cap_s", "burst", "$.attempts"):
        assert 1 == sum(named in line for line in lines), named
    assert 6 == len(lines)
