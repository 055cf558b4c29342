"""What is remembered of names, for how long, and which of their addresses are tried."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.http.net.dns_cache import (
    MAX_TTL_S,
    NO_SUCH_NAME_S,
    SERVER_FAILED_S,
    DnsCache,
    DnsFailure,
    Resolution,
    keep_s,
    to_try,
)
from fetchfleet.worker.settings import parse_nameservers

HERE = ("192.0.2.1",)
NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
SAID: st.SearchStrategy[Resolution] = st.one_of(st.sampled_from(DnsFailure), st.just(HERE))
SECONDS = st.floats(0, 1000)


@pytest.mark.parametrize(
    ("ttls_s", "kept_s"),
    [([60], 60), ([60, 10, 300], 10), ([0, 60], 0), ([86_400], MAX_TTL_S), ([-1, 60], 0), ([], 0)],
)
def test_addresses_count_for_the_least_of_their_ttls(ttls_s: list[int], kept_s: float) -> None:
    """Aliases' among them, up to five minutes; without any they count only now."""
    assert keep_s(HERE, ttls_s) == kept_s


@pytest.mark.parametrize(
    ("failure", "kept_s"),
    [
        (DnsFailure.NO_SUCH_NAME, NO_SUCH_NAME_S),
        (DnsFailure.SERVER_FAILED, SERVER_FAILED_S),
        (DnsFailure.TIMED_OUT, 0),
        (DnsFailure.NOT_ASKED, 0),
    ],
)
def test_what_is_not_found_is_forgotten_within_seconds(failure: DnsFailure, kept_s: float) -> None:
    """A name that is made a moment later is found; whoever had no answer is no reason not to ask."""
    assert keep_s(failure) == keep_s(failure, [3600]) == kept_s


@given(SAID, st.lists(st.integers()))
def test_nothing_counts_for_longer_than_the_longest(said: Resolution, ttls_s: list[int]) -> None:
    """Whatever a nameserver says."""
    assert 0 <= keep_s(said, ttls_s) <= MAX_TTL_S


@given(st.lists(st.tuples(NAMES, SAID, SECONDS, SECONDS)), NAMES, SECONDS)
def test_the_last_word_on_a_name_counts_until_its_end_and_no_longer(
    words: list[tuple[str, Resolution, float, float]], name: str, now_s: float
) -> None:
    """Against a list of all that was ever said."""
    cache = DnsCache()
    for of, said, seconds, then_s in words:
        cache.put(of, said, seconds, then_s)
    last = next((word for word in reversed(words) if word[0] == name), None)

    counts = last is not None and last[2] > 0 and now_s < last[3] + last[2]
    assert cache.get(name, now_s) == (last[1] if last is not None and counts else None)


@given(st.lists(st.text(max_size=3)), st.integers(1, 5))
def test_a_list_of_hosts_without_end_takes_no_more_memory(names: list[str], most: int) -> None:
    """The longest unrenewed is forgotten first, the last ones never."""
    cache = DnsCache(most)
    for name in names:
        cache.put(name, HERE, 10, 0)
    newest = list(dict.fromkeys(reversed(names)))[:most]

    assert len(cache) == len(newest)
    assert all(cache.get(name, 1) == HERE for name in newest)


def test_a_name_that_led_nowhere_is_forgotten() -> None:
    """And one that was never known can be forgotten too."""
    cache = DnsCache()
    cache.put("a", HERE, 10, 0)

    assert cache.forget("a")
    assert not cache.forget("b")
    assert cache.get("a", 1) is None


@given(st.lists(st.ip_addresses(), min_size=1, unique=True), st.integers(1, 12))
def test_the_families_take_turns_and_the_first_stays_first(
    addresses: list[IPv4Address | IPv6Address], most: int
) -> None:
    """Each once, none that was not there, and neither family is crowded out while it has one left."""
    given_ = [str(address) for address in addresses]
    tried = to_try(given_, most)
    versions = [ip_address(address).version for address in tried]
    least = min(count(given_, 4), count(given_, 6))

    assert tried[0] == given_[0]
    assert len(set(tried)) == len(tried) == min(most, len(given_))
    assert set(tried) <= set(given_)
    for version in (4, 6):
        assert versions[: 2 * least].count(version) >= min(len(versions), 2 * least) // 2


def count(addresses: Sequence[str], version: int) -> int:
    """How many there are of a family."""
    return sum(ip_address(address).version == version for address in addresses)


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ()),
        (" , ", ()),
        ("10.0.0.53", ("10.0.0.53:53",)),
        ("10.0.0.53:5353, 10.0.0.54", ("10.0.0.53:5353", "10.0.0.54:53")),
        ("fd00::53", ("[fd00::53]:53",)),
        ("[fd00::53]", ("[fd00::53]:53",)),
        ("[fd00::53]:5353", ("[fd00::53]:5353",)),
    ],
)
def test_nameservers_are_addresses_with_or_without_a_port(text: str, servers: tuple[str, ...]) -> None:
    """53 where none is said."""
    assert parse_nameservers(text) == servers


@pytest.mark.parametrize(
    "text", ["dns.example", "10.0.0.53:", "10.0.0.53:0", "10.0.0.53:65536", "10.0.0.53:x", "[::1]x", "[::1",
             "fe80::1%eth0", "10.0.0.53 10.0.0.54", "127.1", "10.0.0.53:+5", "[10.0.0.53]x:5"]
)  # fmt: skip
def test_a_nameserver_that_cannot_be_asked_is_named(text: str) -> None:
    """By name it could only be found by asking one."""
    with pytest.raises(ValueError, match="write it like") as caught:
        parse_nameservers(f"10.0.0.1,{text}")

    assert repr(text) in str(caught.value)
