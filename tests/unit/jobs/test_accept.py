"""The requirements for responses: the values that a fetch and a policy may have, and their versions."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet import Accept, Fetch, InvalidFetchError
from fetchfleet.jobs.contract.checks.accept import MAX_LISTED
from fetchfleet.jobs.contract.entry import HEAD_CHARS, parse_entry, serialize_entry, serialize_new_entry
from fetchfleet.jobs.contract.fetch import CONTRACT_VERSION, decode_fetch, encode, version_of
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.worker.policy.file import parse_policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError

URL = "http://a.example/"
STATUSES = st.integers(200, 299) | st.integers(400, 428) | st.integers(430, 599)
ACCEPTS = st.builds(
    Accept,
    types=st.lists(st.sampled_from(["*/*", "image/*", "IMAGE/PNG", "application/ld+json"]), max_size=3),
    min_bytes=st.integers(0, 10),
    max_bytes=st.just(0) | st.integers(10, 1 << 40),
    statuses=st.lists(STATUSES, max_size=4),
)


def encoded(**fields: Any) -> bytes:
    """Return the JSON of a fetch with these fields, as another program may write it."""
    return msgspec.json.encode({"url": URL, **fields})


@given(ACCEPTS, st.lists(STATUSES, max_size=4), st.sampled_from(["ignore", "obey"]))
def test_a_fetch_and_a_policy_keep_their_requirements(accept: Accept, retried: list[int], tag: str) -> None:
    """They are the same after JSON. Media ranges are in lower case."""
    fetch = Fetch(url=URL, accept=accept, retry_statuses=retried, x_robots=tag)  # type: ignore[arg-type]
    policy = msgspec.convert({"accept": accept, "retry_statuses": retried, "x_robots": tag}, LanePolicy)

    assert fetch == decode_fetch(encode(fetch))
    assert policy == msgspec.convert(msgspec.json.decode(msgspec.json.encode(policy)), LanePolicy)
    assert (fetch.accept, fetch.retry_statuses, fetch.x_robots) == (accept, tuple(retried), tag)
    assert [kind.lower() for kind in accept.types] == list(accept.types)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("accept", {"types": ["image"]}, "'image' is not a media range"),
        ("accept", {"types": ["*"]}, "'*' is not a media range"),
        ("accept", {"types": ["*/png"]}, "'*/png' is not a media range"),
        ("accept", {"types": ["image/p*"]}, "'image/p*' is not a media range"),
        ("accept", {"types": ["text/html;q=0.5"]}, "without parameters"),
        ("accept", {"types": [" text/html"]}, "is not a media range"),
        ("accept", {"types": "image/*"}, "Expected `array`, got `str`"),
        ("accept", {"types": ["a/b"] * (MAX_LISTED + 1)}, f"the limit is {MAX_LISTED}"),
        ("accept", {"min_bytes": -1}, "accept.min_bytes: must be 0 to"),
        ("accept", {"max_bytes": 1 << 63}, "accept.max_bytes: must be 0 to"),
        ("accept", {"min_bytes": 11, "max_bytes": 10}, "must be at most accept.max_bytes, 10, got 11"),
        ("accept", {"statuses": [199]}, "accept.statuses: must be of 200 to 299"),
        ("accept", {"statuses": [302]}, "accept.statuses: must be of 200 to 299"),
        ("accept", {"statuses": [600]}, "accept.statuses: must be of 200 to 299"),
        ("accept", {"statuses": [200, 429]}, "429 asks to back off"),
        ("accept", {"type": ["image/*"]}, "unknown field `type`"),
        ("retry_statuses", [304], "retry_statuses: must be of 200 to 299"),
        ("retry_statuses", list(range(400, 501)), "retry_statuses: has 101 elements"),
        ("x_robots", "maybe", "x_robots: 'maybe' is not one of ignore, obey"),
    ],
)
def test_an_invalid_requirement_is_refused(key: str, value: Any, fault: str) -> None:
    """In a fetch and in a policy, with the key and the remedy."""
    with pytest.raises(InvalidFetchError) as of_fetch:
        decode_fetch(encoded(**{key: value}))
    with pytest.raises(PolicyError) as of_policy:
        parse_policy(f"[default]\n{key} = {toml(value)}\n")

    assert fault in str(of_fetch.value)
    assert fault in str(of_policy.value)


def toml(value: Any) -> str:
    """Return a value as TOML, which is JSON but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return msgspec.json.encode(value).decode()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"types": "image/*"}, "accept.types: must be a list, got str"),
        ({"types": [1]}, "accept.types: 1 is not a media range"),
        ({"min_bytes": True}, "accept.min_bytes: must be 0 to"),
        ({"max_bytes": "1"}, "accept.max_bytes: must be 0 to"),
        ({"statuses": ["200"]}, "accept.statuses: must be of"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_in_python(fields: dict[str, Any], fault: str) -> None:
    """A str is a sequence, and True is an int."""
    with pytest.raises(InvalidFetchError, match=fault.replace(".", r"\.")):
        Accept(**fields)


def test_a_plain_fetch_and_a_plain_policy_have_no_requirement() -> None:
    """Only then a GET may skip the special cases."""
    assert Fetch(url=URL).is_plain
    assert LanePolicy().is_plain
    for fields in ({"accept": Accept()}, {"retry_statuses": ()}, {"x_robots": "ignore"}):
        assert not Fetch(url=URL, **fields).is_plain
    for keys in ({"accept": Accept(min_bytes=1)}, {"retry_statuses": (404,)}, {"x_robots": "obey"}):
        assert not LanePolicy(**keys).is_plain


@pytest.mark.parametrize(
    "fields",
    [
        *({"accept": {}}, {"retry_statuses": []}, {"x_robots": "obey"}, {"segments": 1}),
        *({"name": "{stem}"}, {"dest": "{stem}"}, {"dest": "a", "if_exists": "suffix"}),
    ],
)
def test_a_fetch_with_a_later_field_or_value_states_the_version_that_has_it(fields: dict[str, Any]) -> None:
    """An older worker then leaves it to a newer one, also after this version has written it again."""
    fetch = decode_fetch(encoded(**fields))
    new = serialize_new_entry(fetch_id("0" * 16, 0), fetch)
    again = serialize_entry(msgspec.structs.replace(parse_entry(new), attempts=1))

    assert version_of(fetch) == CONTRACT_VERSION
    for serialized in (new, again):
        assert msgspec.json.decode(serialized[HEAD_CHARS:])["v"] == CONTRACT_VERSION


def test_a_fetch_without_later_fields_is_of_the_first_version() -> None:
    """Workers of every version read it."""
    fetch = Fetch(url=URL, key="k", max_bytes=1, meta={"a": 1})

    assert version_of(fetch) == 1
    assert b'"v"' not in serialize_new_entry(fetch_id("0" * 16, 0), fetch)
