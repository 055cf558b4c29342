"""Key=value pairs of commands, and tables set at run time over those of a file."""

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
        ('accept={types = ["image/*"], min_bytes=1}', {"accept": {"types": ["image/*"], "min_bytes": 1}}),
        ("accept={}", {"accept": {}}),
        ("accept={a}", {"accept": "{a}"}),
        ("accept={}\nb=1", {"accept": "{}\nb=1"}),
    ],
)
def test_a_value_is_parsed_as_json_or_a_toml_table_if_possible(pair: str, expected: dict[str, Any]) -> None:
    """Other values are text. The first = separates key and value. null removes the key."""
    assert expected == parsed([pair])


def test_tables_of_older_versions_apply_to_the_canonical_name() -> None:
    """Older versions had two names for one address. Keys under the canonical name win."""
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
    """Command-line options behave in the same way."""
    assert {"burst": 2, "attempts": 1} == parsed(["burst=1", "attempts=1", "burst=2"])


@pytest.mark.parametrize("pair", ["", "concurrency", "=2", "="])
def test_an_invalid_pair_is_named(pair: str) -> None:
    """The error quotes the pair, because it may be empty."""
    with pytest.raises(PolicyError, match="KEY=VALUE") as caught:
        parsed([pair])

    assert repr(pair) in str(caught.value)


@given(st.text())
def test_any_pair_is_a_value_or_a_policy_error(text: str) -> None:
    """It holds for arbitrary text."""
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
def test_the_most_specific_table_wins_for_each_key(lane: str, expected: LanePolicy) -> None:
    """The host's own, then the longest pattern, then shorter ones, then the default."""
    assert expected == FILE.for_lane(lane)


def test_a_table_set_at_run_time_changes_only_its_keys() -> None:
    """The table applies to the host that it names, and the policy of the file stays unchanged."""
    over = FILE.overridden({"a.cdn.example.com": {"concurrency": 1}})

    assert LanePolicy(concurrency=1, attempts=7, rate_per_s=2, burst=4) == over.for_lane("a.cdn.example.com")
    assert FILE.for_lane("b.cdn.example.com") == over.for_lane("b.cdn.example.com")
    assert Range(min=2, max=20) == FILE.for_lane("a.cdn.example.com").concurrency


def test_a_default_set_at_run_time_leaves_host_tables_of_the_file() -> None:
    """Only the default table has changed."""
    over = FILE.overridden({"default": {"concurrency": 1, "burst": 9}})

    assert (1, 9) == (over.for_lane("other.example").concurrency, over.for_lane("other.example").burst)
    assert (10, 9) == (over.for_lane("b.example.com").concurrency, over.for_lane("b.example.com").burst)


def test_a_pattern_set_at_run_time_applies_to_every_host_below_it() -> None:
    """It applies to hosts that the file does not name too."""
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
def test_tables_that_conflict_with_the_file_are_refused(tables: dict[str, Any], named: str) -> None:
    """A cap below the base of the file is one such conflict."""
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
def test_redis_cannot_set_the_keys_of_trust(name: str, key: str, value: object) -> None:
    """A writer there can neither name files of a worker's disk nor change its protection."""
    where = name if name == "default" else f'host."{name}"'
    with pytest.raises(PolicyError) as caught:
        TRUST.overridden({name: {key: value}})

    assert f"[{where}] {key}: cannot be set at run time" in str(caught.value)


@given(
    st.dictionaries(
        st.one_of(LANES, st.sampled_from(["default", "*.example.com", "*.a.example.com", "*.com"])),
        st.fixed_dictionaries({}, optional={"burst": st.integers(1, 9), "http2": st.booleans()}),
    ),
    LANES,
)
def test_no_table_changes_the_file_s_keys_of_trust(tables: dict[str, Any], lane: str) -> None:
    """It holds with any other keys, and for any host."""
    over = TRUST.overridden(tables).for_lane(lane)
    assert (TRUST.for_lane(lane).tls, TRUST.for_lane(lane).https_to_http) == (over.tls, over.https_to_http)
    assert over.tls in {policy.tls for _, policy in TRUST.named()}


def test_every_fault_of_a_file_is_named_at_once() -> None:
    """One run of the command is enough to correct the file."""
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
