"""IDs, the paths and lanes derived from them, and the serialized form of an entry."""

import base64
import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.jobs.client.submit import new_batch_id
from fetchfleet.jobs.contract.checks.field_checks import MAX_BODY_BYTES
from fetchfleet.jobs.contract.entry import (
    DEADLINE_CHARS,
    HEAD_CHARS,
    BadEntryError,
    Entry,
    Hop,
    NewerEntryError,
    parse_entry,
    serialize_entry,
    serialize_new_entry,
)
from fetchfleet.jobs.contract.fetch import Fetch, Priority
from fetchfleet.jobs.contract.ids import (
    FETCH_ID_CHARS,
    MAX_BATCH_FETCHES,
    batch_id_for,
    batch_of,
    fetch_id,
    inbox_prefix,
    is_batch_id,
    is_fetch_id,
    is_inbox_name,
    path_of,
)
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.jobs.contract.urls import lane_of_url, parse_url

BATCH = "0123456789abcdef"
ID = f"{BATCH}-00000000"
GOOD = serialize_new_entry(ID, Fetch(url="http://a.example/", meta={"a": "b"}))

LEDGERS = st.integers(0, 10**9)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
FETCHES = st.builds(
    Fetch,
    url=st.sampled_from(["http://a.example/", "https://[::1]:8443/x?y=z"]),
    method=st.sampled_from(["POST", "PUT", "DELETE"]),
    headers=st.dictionaries(st.sampled_from(["X-A", "Accept", "accept"]), st.just("a b")),
    body=st.none() | TEXTS,
    dest=st.none() | st.just("a/b"),
    max_bytes=st.none() | st.integers(1, 2**62),
    priority=st.sampled_from(Priority),
    deadline_s=st.none() | st.floats(0.001, 600_000),
    meta=st.none() | TEXTS | st.lists(st.booleans()),
)
ENTRIES = st.builds(
    Entry,
    id=st.builds(
        fetch_id, st.from_regex(r"[0-9a-f]{16}", fullmatch=True), st.integers(0, MAX_BATCH_FETCHES - 1)
    ),
    deadline_ms=st.integers(0, 10**DEADLINE_CHARS - 1),
    fetch=FETCHES,
    attempts=LEDGERS,
    throttles=LEDGERS,
    interruptions=LEDGERS,
    crashes=LEDGERS,
    last=st.none() | st.sampled_from(Reason),
    begun=st.booleans(),
)
ENTRIES_WITH_HOPS = st.builds(
    lambda entry, hops: msgspec.structs.replace(
        entry,
        hops=hops,
        hop=msgspec.structs.replace(entry.request, url="http://b.example/") if hops else None,
    ),
    ENTRIES,
    st.integers(0, 10),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["v", "fetch", "url", "hop", "attempts", "last"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("place", "name"),
    [(0, f"{BATCH}-00000000"), (255, f"{BATCH}-000000ff"), (MAX_BATCH_FETCHES - 1, f"{BATCH}-ffffffff")],
)
def test_a_fetch_id_contains_its_batch_and_its_place(place: int, name: str) -> None:
    """It always has 25 characters, so that Lua can cut it off."""
    assert name == fetch_id(BATCH, place)
    assert (BATCH, FETCH_ID_CHARS, True) == (batch_of(name), len(name), is_fetch_id(name))


@pytest.mark.parametrize(
    "text",
    [
        "",
        BATCH[:-1],
        BATCH + "0",
        BATCH.upper(),
        BATCH + "\n",
        "g" * 16,
        "\u0660" * 16,
        f"{BATCH}-0000000",
        f"{BATCH}-000000000",
        f"{BATCH}_00000000",
        f"{BATCH}-0000000G",
        f"{ID}\n",
        f" {ID}",
        f"../{ID[3:]}",
    ],
)
def test_text_that_is_not_exactly_an_id_is_refused(text: str) -> None:
    """Keys and paths are made of IDs."""
    assert not is_fetch_id(text)
    assert not is_batch_id(text) or text == BATCH


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (0, f"{BATCH}/000000/{BATCH}-00000000"),
        (0xFF, f"{BATCH}/000000/{BATCH}-000000ff"),
        (0x100, f"{BATCH}/000001/{BATCH}-00000100"),
        (0xFFFFFFFF, f"{BATCH}/ffffff/{BATCH}-ffffffff"),
    ],
)
def test_a_folder_of_a_batch_has_at_most_256_bodies(place: int, path: str) -> None:
    """No folder grows with the size of the batch."""
    assert path == path_of(fetch_id(BATCH, place))


@given(st.integers(0, MAX_BATCH_FETCHES - 1), st.integers(0, MAX_BATCH_FETCHES - 1))
def test_ids_sort_by_place(a: int, b: int) -> None:
    """Two places have two IDs and two paths."""
    first, second = fetch_id(BATCH, a), fetch_id(BATCH, b)

    assert (first < second) is (a < b)
    assert (path_of(first) == path_of(second)) is (a == b)


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example",
        "https://A.example:8443/x@y:z",
        "http://[::1]:80/",
        "http://[2001:db8::1]/[x]",
        "http://a.example?b:c/d",
        "http://127.0.0.1:8080/",
    ],
)
def test_a_lane_is_read_off_a_canonical_url_without_parsing_it(url: str) -> None:
    """The result is that of the parser."""
    parsed = parse_url(url)

    assert parsed.host == lane_of_url(parsed.text)


def test_a_new_element_holds_the_time_allowed_in_its_head() -> None:
    """Redis computes the deadline by its own clock."""
    element = serialize_new_entry(ID, Fetch(url="http://a.example/", deadline_s=90))

    assert element.startswith(f"{ID}0000000090000".encode())
    assert Entry(
        id=ID, deadline_ms=90_000, fetch=Fetch(url="http://a.example/", deadline_s=90)
    ) == parse_entry(element)


def test_an_entry_has_its_batch_its_request_and_its_submit_time() -> None:
    """Until a redirect, the request is that of the fetch."""
    fetch = Fetch(url="http://a.example/", method="POST", headers={"X": "y"}, body="z", deadline_s=1)
    entry = Entry(id=ID, deadline_ms=5000, fetch=fetch)
    hop = Hop("GET", "http://b.example/")

    assert (BATCH, 4000) == (entry.batch_id, entry.submitted_ms)
    assert Hop("POST", "http://a.example/", (("X", "y"),), "z") == entry.request
    assert hop == Entry(id=ID, deadline_ms=5000, fetch=fetch, hop=hop).request


@given(ENTRIES_WITH_HOPS)
def test_an_entry_is_read_back_unchanged(entry: Entry) -> None:
    """It holds with any ledgers."""
    element = serialize_entry(entry)

    assert entry == parse_entry(element)
    assert f"{entry.id}{entry.deadline_ms:013d}".encode() == element[:HEAD_CHARS]


@pytest.mark.parametrize(
    "element",
    [
        b"",
        b"junk",
        GOOD[:FETCH_ID_CHARS],
        GOOD[: HEAD_CHARS - 1],
        GOOD[:HEAD_CHARS],
        GOOD[:-1],
        GOOD + b"x",
        GOOD.upper(),
        b"x" + GOOD,
        GOOD[:FETCH_ID_CHARS] + "\u0660".encode() * 7 + GOOD[HEAD_CHARS:],
        GOOD[:FETCH_ID_CHARS] + b"-000000000001" + GOOD[HEAD_CHARS:],
        GOOD[:HEAD_CHARS] + b"{}",
        GOOD[:HEAD_CHARS] + b"[]",
        GOOD[:HEAD_CHARS] + b'{"fetch":{"url":"file:///etc/passwd"}}',
        GOOD[:HEAD_CHARS] + b'{"fetch":{"url":"http://a/","headers":{"X":"a\\r\\nb"}}}',
        GOOD[:HEAD_CHARS] + b'{"fetch":{"url":"http://a/"},"last":"other"}',
        GOOD[:HEAD_CHARS] + b'{"fetch":{"url":"http://a/"},"attempts":"1"}',
        GOOD[:HEAD_CHARS] + b'{"v":3,"fetch":{"url":"http://a/"}}',
        GOOD[:HEAD_CHARS] + b'{"v":0,"fetch":{"url":"http://a/"}}',
        GOOD[:HEAD_CHARS] + b'{"fetch":{"url":"http://a/","meta":"\xff"}}',
        GOOD[:HEAD_CHARS] + b'{"fetch":{"url":"http://a/","meta":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    ],
)
def test_an_invalid_element_is_refused(element: bytes) -> None:
    """Cut, garbled, of another version, or with a fetch that may not be sent."""
    with pytest.raises(BadEntryError):
        parse_entry(element)


@pytest.mark.parametrize(
    ("body", "url"),
    [
        (b'{"v":3,"fetch":{"url":"http://a/","colour":"blue"},"shade":1}', "http://a/"),
        (b'{"v":3,"fetch":{}}', ""),
        (b'{"v":4}', ""),
    ],
)
def test_a_newer_element_is_distinguished_from_a_bad_one(body: bytes, url: str) -> None:
    """It may have any fields. Those of every version are read."""
    with pytest.raises(NewerEntryError) as raised:
        parse_entry(GOOD[:HEAD_CHARS] + body)

    assert (ID, 86_400_000, url) == (raised.value.fetch_id, raised.value.deadline_ms, raised.value.url)


@given(st.binary() | JSON.map(lambda body: GOOD[:HEAD_CHARS] + json.dumps(body).encode()))
@example(GOOD[:HEAD_CHARS] + b'{"fetch":{"url":"http://a/"},"attempts":1e400}')
def test_an_arbitrary_element_is_an_entry_or_a_bad_element(element: bytes) -> None:
    """No value in Redis raises another error in a worker."""
    with suppress(BadEntryError):
        assert isinstance(parse_entry(element), Entry)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3))
def test_a_damaged_element_is_an_entry_or_a_bad_element(place: int, damage: bytes) -> None:
    """A valid one with a few bytes exchanged."""
    with suppress(BadEntryError):
        assert isinstance(parse_entry(GOOD[:place] + damage + GOOD[place + 1 :]), Entry)


def test_a_body_of_1_mib_in_base64_can_be_enqueued() -> None:
    """Its JSON is larger than the body."""
    body = base64.b64encode(bytes(MAX_BODY_BYTES)).decode()

    assert serialize_new_entry(ID, Fetch(url="http://a.example/", method="POST", body_base64=body))


@pytest.mark.parametrize("name", ["a", "0", "bob", "b-1", "x" * 32, "taken-1"])
def test_the_ids_of_an_inbox_begin_with_its_prefix(name: str) -> None:
    """An ACL pattern selects them, and no new ID of another batch."""
    prefix = inbox_prefix(name)

    assert is_inbox_name(name)
    assert (8, "f") == (len(prefix), prefix[0])
    assert is_batch_id(new_batch_id(prefix))
    assert new_batch_id(prefix).startswith(prefix)
    assert new_batch_id(prefix) != new_batch_id(prefix)


def test_the_prefix_of_a_name_stays_the_same() -> None:
    """ACL files contain it."""
    assert "f81b637d" == inbox_prefix("bob")


def test_a_new_id_never_begins_with_f() -> None:
    """All other first digits occur."""
    assert set("0123456789abcde") == {new_batch_id()[0] for _ in range(2000)}


@pytest.mark.parametrize("name", ["", "-a", "A", "a:b", "a*", "taken", "newer", "x" * 33, "a\n", "é", "a_b"])
def test_a_name_with_other_characters_or_a_reserved_name_is_not_an_inbox(name: str) -> None:
    """Keys and ACL patterns are made of names."""
    assert not is_inbox_name(name)


def test_an_id_derived_for_an_inbox_begins_with_its_prefix() -> None:
    """The same text has another ID elsewhere."""
    found = batch_id_for("import 2030", inbox="bob")

    assert is_batch_id(found)
    assert found == inbox_prefix("bob") + batch_id_for("import 2030")[:8]
