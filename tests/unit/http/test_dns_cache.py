"""The DNS cache: its lifetimes, and the order of a name's addresses."""

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
    dial_order,
    valid_s,
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
def test_addresses_are_cached_for_the_lowest_ttl(ttls_s: list[int], kept_s: float) -> None:
    """TTLs of aliases count too, up to five minutes. Without a TTL the addresses are not cached."""
    assert valid_s(HERE, ttls_s) == kept_s


@pytest.mark.parametrize(
    ("failure", "kept_s"),
    [
        (DnsFailure.NO_SUCH_NAME, NO_SUCH_NAME_S),
        (DnsFailure.SERVER_FAILED, SERVER_FAILED_S),
        (DnsFailure.TIMED_OUT, 0),
        (DnsFailure.NOT_SENT, 0),
    ],
)
def test_a_negative_answer_is_cached_for_seconds(failure: DnsFailure, kept_s: float) -> None:
    """A new name is found soon. A missing answer is not cached."""
    assert valid_s(failure) == valid_s(failure, [3600]) == kept_s


@given(SAID, st.lists(st.integers()))
def test_no_entry_exceeds_the_longest_lifetime(resolution: Resolution, ttls_s: list[int]) -> None:
    """It holds for any TTL."""
    assert 0 <= valid_s(resolution, ttls_s) <= MAX_TTL_S


@given(st.lists(st.tuples(NAMES, SAID, SECONDS, SECONDS)), NAMES, SECONDS)
def test_the_last_answer_counts_until_it_expires(
    words: list[tuple[str, Resolution, float, float]], name: str, now_s: float
) -> None:
    """Compared with a list of all answers."""
    cache = DnsCache()
    for of, resolution, seconds, then_s in words:
        cache.put(of, resolution, seconds, then_s)
    last = next((word for word in reversed(words) if word[0] == name), None)

    counts = last is not None and last[2] > 0 and now_s < last[3] + last[2]
    assert cache.get(name, now_s) == (last[1] if last is not None and counts else None)


@given(st.lists(st.text(max_size=3)), st.integers(1, 5))
def test_the_cache_is_bounded(names: list[str], most: int) -> None:
    """The least recently renewed name is dropped first."""
    cache = DnsCache(most)
    for name in names:
        cache.put(name, HERE, 10, 0)
    newest = list(dict.fromkeys(reversed(names)))[:most]

    assert len(cache) == len(newest)
    assert all(cache.get(name, 1) == HERE for name in newest)


def test_a_name_can_be_dropped() -> None:
    """Dropping a name that was never cached has no effect."""
    cache = DnsCache()
    cache.put("a", HERE, 10, 0)

    assert cache.forget("a")
    assert not cache.forget("b")
    assert cache.get("a", 1) is None


@given(st.lists(st.ip_addresses(), min_size=1, unique=True), st.integers(1, 12))
def test_address_families_alternate_and_the_first_address_stays_first(
    addresses: list[IPv4Address | IPv6Address], most: int
) -> None:
    """Each address occurs once, and both families are among the first."""
    given_ = [str(address) for address in addresses]
    tried = dial_order(given_, most)
    versions = [ip_address(address).version for address in tried]
    least = min(count(given_, 4), count(given_, 6))

    assert tried[0] == given_[0]
    assert len(set(tried)) == len(tried) == min(most, len(given_))
    assert set(tried) <= set(given_)
    for version in (4, 6):
        assert versions[: 2 * least].count(version) >= min(len(versions), 2 * least) // 2


def count(addresses: Sequence[str], version: int) -> int:
    """Return the number of addresses of a family."""
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
    """The default port is 53."""
    assert parse_nameservers(text) == servers


@pytest.mark.parametrize(
    "text", ["dns.example", "10.0.0.53:", "10.0.0.53:0", "10.0.0.53:65536", "10.0.0.53:x", "[::1]x", "[::1",
             "fe80::1%eth0", "10.0.0.53 10.0.0.54", "127.1", "10.0.0.53:+5", "[10.0.0.53]x:5"]
)  # fmt: skip
def test_an_invalid_nameserver_is_named(text: str) -> None:
    """A host name could only be resolved by a nameserver."""
    with pytest.raises(ValueError, match="write it like") as caught:
        parse_nameservers(f"10.0.0.1,{text}")

    assert repr(text) in str(caught.value)
