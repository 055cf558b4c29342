"""The policy of each host, read from TOML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.policy.model import PROFILES, LanePolicy, PolicyError, Range, Timeouts

FIVE = "connect_s = 1\nread_s = 2\nwrite_s = 3\npool_s = 4\ntotal_s = 5\n"

HOSTS = parse_policy("""
[default]
concurrency = 3
attempts = 7

[host."api.example.com"]
concurrency = 1

[host."*.example.com"]
concurrency = 10

[host."*.cdn.example.com"]
concurrency = 20

[host."Bücher.example"]
concurrency = 30

[host."2001:DB8::1"]
concurrency = 40
""")

REFUSED = [
    ("x = [", "not TOML"),
    ("[defaults]", "[defaults]"),
    ("default = 3", "[default]"),
    ("host = 3", "[host]"),
    ('[host]\n"a.example" = 3', '[host."a.example"]'),
    ("[host.api.example.com]\nattempts = 1", '[host."api"] Object contains unknown field `example`'),
    ("[default]\nconcurency = 3", "`concurency`"),
    ('[default]\nconcurrency = "3"', "$.concurrency"),
    ("[default]\nconcurrency = true", "$.concurrency"),
    ("[default]\nconcurrency = {min = 0}", "concurrency.min"),
    ("[default]\nconcurrency = {min = 5, max = 4}", "concurrency.max"),
    ("[default]\nconcurrency = {max = 1001}", "concurrency.max"),
    ("[default]\nconcurrency = {least = 1}", "`least`"),
    ("[default]\nconcurrency = {max = 1.5}", "$.concurrency.max"),
    ("[default]\nquota = 1", "$.quota"),
    ("[default]\ngive_up_s = 0", "give_up_s"),
    ("[default]\nattempts = 1.5", "$.attempts"),
    ("[default]\nports = [80, 0]", "ports: must be between 1 and 65535, got 0"),
    ("[default]\nports = [65536]", "ports: must be between 1 and 65535, got 65536"),
    ("[default]\nports = 80", "$.ports"),
    ('[default]\nports = ["http"]', "$.ports"),
    ('[default]\ntimeout = "slow"', "timeout: 'slow'"),
    ("[default]\ntimeout = 3", "$.timeout"),
    ("[default.timeout]\nconnect_s = 1", "`read_s`"),
    (f"[default.timeout]\n{FIVE}idle_s = 1", "`idle_s`"),
    (f"[default.timeout]\n{FIVE.replace('read_s = 2', 'read_s = 0')}", "timeout.read_s"),
    (f"[default.timeout]\n{FIVE.replace('total_s = 5', 'total_s = inf')}", "timeout.total_s"),
    (f"[default.timeout]\n{FIVE.replace('pool_s = 4', 'pool_s = nan')}", "timeout.pool_s"),
    ('[host."a.example"]\nattempts = 0', '[host."a.example"] attempts'),
    ('[host."A.example"]\n[host."a.example"]', "a second time"),
    ('[host."a.example:80"]', '[host."a.example:80"]'),
    ('[host."http://a.example"]', '[host."http://a.example"]'),
    ('[host."a.example/b"]', '[host."a.example/b"]'),
    ('[host."a.example#b"]', '[host."a.example#b"]'),
    ('[host."*"]', '[host."*"]'),
    ('[host."api.*"]', '[host."api.*"]'),
    ('[host."*cdn.net"]', '[host."*cdn.net"]'),
    ('[host."127.1"]', '[host."127.1"]'),
    ('[host.""]', '[host.""]'),
]

TRUST_REFUSED = [
    ('[default]\nclient_cert = "us.pem"', "[default] client_cert: would be presented to every host"),
    ('[default]\nclient_key = "us.key"', "[default] client_key: would be presented to every host"),
    ('[host."a.example"]\nclient_key = "us.key"', '[host."a.example"] client_key: client_cert is not set'),
    ('[default]\nverify = "no"', "$.verify"),
    ("[default]\nca_file = true", "$.ca_file"),
]

PROFILE_NUMBERS = {
    "api": (2, 5, 2, 10),
    "upload": (5, 60, 60, 120),
    "stream": (5, 30, 5, 3600),
    "internal": (1, 3, 1, 5),
}
"""connect, read, write, total; a stream would have neither read nor total, yet no wait is without an end."""

RANGES = [
    ("concurrency", 1, 1000),
    ("rate_per_s", 0, 100_000),
    ("burst", 1, 100_000),
    ("attempts", 1, 100),
    ("breaker_failures", 1, 1000),
    ("max_bytes", 0, 1 << 50),
    ("min_rate_bytes_per_s", 0, 1 << 40),
    ("max_decode_ratio", 0, 1_000_000),
    ("max_line_bytes", 1, 256 << 20),
]


@pytest.mark.parametrize(
    ("lane", "concurrency"),
    [
        ("api.example.com", 1),
        ("www.example.com", 10),
        ("a.b.example.com", 10),
        ("a.cdn.example.com", 20),
        ("cdn.example.com", 10),
        ("example.com", 3),
        ("evilexample.com", 3),
        ("xn--bcher-kva.example", 30),
        ("2001:db8::1", 40),
        ("other.example", 3),
    ],
)
def test_a_lane_has_the_policy_of_its_host_or_its_longest_pattern(lane: str, concurrency: int) -> None:
    """Names are compared as lane names. A pattern matches whole labels, but not its apex."""
    assert concurrency == HOSTS.for_lane(lane).concurrency


def test_the_table_of_a_host_changes_only_its_own_keys() -> None:
    """The other keys come from the default table, then from the built-in defaults."""
    assert LanePolicy(concurrency=1, attempts=7) == HOSTS.for_lane("api.example.com")


def test_an_empty_file_has_all_defaults() -> None:
    """An empty policy file is valid."""
    assert parse_policy("").for_lane("a.example") == LanePolicy() == Policy().for_lane("b.example")


@pytest.mark.parametrize(
    ("table", "concurrency", "most"),
    [
        ("{min = 2, max = 20}", Range(min=2, max=20), 20),
        ("{max = 20}", Range(min=1, max=20), 20),
        ("{}", Range(min=1, max=64), 64),
        ("{min = 3, max = 3}", Range(min=3, max=3), 3),
        ("7", 7, 7),
    ],
)
def test_a_concurrency_may_be_a_table_of_bounds(table: str, concurrency: int | Range, most: int) -> None:
    """The limit is then adapted within them."""
    policy = parse_policy(f"[default]\nconcurrency = {table}").default

    assert (concurrency, most) == (policy.concurrency, policy.max_concurrency)


def test_ports_are_those_of_the_web_by_default() -> None:
    """The ports of a host's table replace the default ones."""
    policy = parse_policy('[default]\nports = [443]\n[host."a.example"]\nports = [8080, 8443]')

    assert (80, 443) == LanePolicy().ports
    assert ((443,), (8080, 8443)) == (policy.default.ports, policy.for_lane("a.example").ports)


@pytest.mark.parametrize("name", PROFILES)
def test_a_timeout_may_be_a_profile(name: str) -> None:
    """The policy gives the name of the profile."""
    assert PROFILES[name] == LanePolicy(timeout=name).timeouts


def test_a_timeout_may_be_a_table_of_all_five() -> None:
    """Integers are seconds too."""
    policy = parse_policy(f"[default.timeout]\n{FIVE}").default

    assert Timeouts(connect_s=1, read_s=2, write_s=3, pool_s=4, total_s=5) == policy.timeouts


@pytest.mark.parametrize(("text", "named"), REFUSED)
def test_an_invalid_policy_is_refused_with_table_and_key(text: str, named: str) -> None:
    """A limit must not be dropped silently."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)

    assert named in str(caught.value)


@pytest.mark.parametrize(("key", "least", "most"), RANGES)
def test_the_bounds_of_a_number_are_inclusive(key: str, least: int, most: int) -> None:
    """The parser accepts both ends and refuses their neighbours."""
    for value in (least, most):
        assert value == getattr(parse_policy(f"[default]\n{key} = {value}").default, key)
    for value in (least - 1, most + 1):
        with pytest.raises(PolicyError, match=key):
            parse_policy(f"[default]\n{key} = {value}")


@pytest.mark.parametrize(
    "key",
    [
        "rate_per_s",
        "retry_base_s",
        "retry_cap_s",
        "throttle_cap_s",
        "breaker_reset_s",
        "breaker_cap_s",
        "give_up_s",
        "give_up_dns_s",
        "min_rate_window_s",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-0.001", "1e9"])
def test_times_and_rates_are_finite(key: str, value: str) -> None:
    """TOML has nan and inf."""
    with pytest.raises(PolicyError, match=key):
        parse_policy(f"[default]\n{key} = {value}")


def test_the_cap_of_a_retry_is_not_below_its_base() -> None:
    """The first bound would exceed the cap."""
    with pytest.raises(PolicyError, match="retry_cap_s"):
        parse_policy("[default]\nretry_base_s = 5\nretry_cap_s = 4")


@given(st.text())
def test_arbitrary_text_is_a_policy_or_a_policy_error(text: str) -> None:
    """The text is used as a file, a table name, a key and a value."""
    quoted = '"' + text.encode("unicode_escape", "ignore").decode().replace('"', "").replace("\\", "") + '"'
    for toml in (text, f"[host.{quoted}]", f"[default]\n{quoted} = 1", f"[default]\ntimeout = {quoted}"):
        try:
            assert isinstance(parse_policy(toml).for_lane("a.example"), LanePolicy)
        except PolicyError:
            continue


def test_the_profiles_have_their_documented_values() -> None:
    """A change affects every policy that names the profile. `pool_s` equals `connect_s`."""
    found = {name: (it.connect_s, it.read_s, it.write_s, it.total_s) for name, it in PROFILES.items()}
    assert PROFILE_NUMBERS == found
    assert all(it.pool_s == it.connect_s for it in PROFILES.values())


@pytest.mark.parametrize(("text", "named"), TRUST_REFUSED)
def test_a_client_certificate_belongs_into_host_tables(text: str, named: str) -> None:
    """The default table would present it to every host."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)

    assert named in str(caught.value)


def test_lanes_with_equal_tls_keys_share_one_value() -> None:
    """Other keys may differ. The TLS context is made once."""
    policy = parse_policy("""
[host."a.example"]
ca_file = "ca.pem"
burst = 2
[host."b.example"]
ca_file = "ca.pem"
""")
    assert policy.for_lane("a.example").tls == policy.for_lane("b.example").tls
    assert len({lane.tls for _, lane in policy.named()}) == 2
