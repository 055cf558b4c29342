"""The form in which workers publish their policy file."""

import hashlib
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError
from fetchfleet.worker.policy.published import (
    HIDDEN,
    NO_FILE,
    PRIVATE,
    digest_of,
    published,
    read_published,
)
from fetchfleet.worker.settings import NO_POLICY, load_settings

PUBLIC_TEXTS = {"timeout", "robots", "x_robots", "fallback", "durability"}
"""Keys with text that anyone who reads the fleet's Redis may know."""

LANES = ["a.example", "b.a.example", "c.b.a.example", "other.example", "10.0.0.1"]
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "concurrency": st.one_of(st.integers(1, 9), st.just({"min": 2, "max": 7})),
        "rate_per_s": st.floats(0.01, 100),
        "timeout": st.sampled_from(["api", "upload"]),
        "ports": st.lists(st.integers(1, 65535), max_size=3),
        "paused": st.booleans(),
        "verify": st.booleans(),
    },
)
NAMES = st.sampled_from(["a.example", "*.a.example", "*.b.a.example", "*.example", "10.0.0.1"])


@given(TABLES, st.dictionaries(NAMES, TABLES))
def test_the_published_policy_equals_that_of_the_file_for_every_host(
    default: dict[str, Any], hosts: dict[str, dict[str, Any]]
) -> None:
    """It holds for arbitrary tables."""
    of_file = Policy(msgspec.convert(default, LanePolicy), hosts, default_table=default)
    read = read_published(published(of_file))

    assert [of_file.for_lane(lane) for lane in LANES] == [read.for_lane(lane) for lane in LANES]
    assert default.keys() == read.default_table.keys()
    assert digest_of(of_file) == digest_of(read)


def test_names_of_keys_and_certificates_stay_on_the_worker() -> None:
    """The published policy shows only their presence, in host tables and in the default table."""
    text = """
[default]
ca_file = "/etc/our-ca.pem"
[host."a.example"]
client_cert = "/etc/our-cert.pem"
client_key = "/etc/our-key.pem"
[host."b.example"]
ca_file = ""
"""
    found = published(parse_policy(text))
    read = read_published(found)

    assert b"our-" not in found
    assert (HIDDEN, HIDDEN) == (read.for_lane("a.example").client_key, read.default.ca_file)
    assert read.for_lane("b.example").ca_file == ""


def test_each_text_key_is_classified_as_public_or_private() -> None:
    """A new key may hold a secret."""
    texts = {name for name, kind in get_type_hints(LanePolicy).items() if "str" in str(kind)}

    assert texts == PUBLIC_TEXTS | {*PRIVATE}, "add the key to PUBLIC_TEXTS, or to PRIVATE in published.py"


def test_a_policy_of_too_many_hosts_is_published_without_them() -> None:
    """A command that needs them reports that. Their digest is published."""
    policy = Policy(tables={f"h{i}.example": {"attempts": 2} for i in range(100)})
    found = published(policy, max_bytes=1000)

    assert len(found) < 1000
    with pytest.raises(PolicyError, match="published without its 100 hosts"):
        read_published(found)
    assert digest_of(policy) != NO_FILE


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"\xff", b'{"default": 3}', b"[" * 100_000, b'{"host": {"a": 1}}']
)
def test_an_invalid_published_policy_is_refused(text: bytes) -> None:
    """Redis is not trusted."""
    with pytest.raises(PolicyError):
        read_published(text)


def test_unknown_keys_are_ignored_and_values_out_of_range_refused() -> None:
    """Newer workers may have more keys."""
    newer = b'{"default": {"attempts": 2, "colour": "red"}, "host": {"a.example": {"colour": 1}}, "v": 9}'

    assert 2 == read_published(newer).for_lane("a.example").attempts
    with pytest.raises(PolicyError, match="attempts"):
        read_published(b'{"default": {"attempts": 0}}')


@pytest.mark.parametrize(
    "text", ["", "[default]\nattempts = 2\n", "[default]\r\nattempts = 2\r\n# \u00e9\r\n"]
)
def test_the_digest_is_the_beginning_of_the_file_s_sha256(tmp_path: Path, text: str) -> None:
    """The digest has 16 hex digits, as sha256sum prints them, with any line ends."""
    file = tmp_path / "policy.toml"
    file.write_bytes(text.encode())
    settings = load_settings({"policy": str(file)}, {})

    assert hashlib.sha256(text.encode()).hexdigest().startswith(digest_of(settings.policy))
    assert len(digest_of(settings.policy)) == 16
    assert digest_of(NO_POLICY) == NO_FILE
