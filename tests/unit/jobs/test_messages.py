"""Messages of the inbox and of arq: read into fetches by one set of rules, or refused with a reason."""

import pickle
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.entry import serialize_new_entry
from fetchfleet.jobs.contract.fetch import MAX_FETCH_BYTES, Fetch, as_fetch
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.jobs.contract.messages import MAX_INPUT_BYTES, Order, read_arguments, read_message
from fetchfleet.jobs.errors import FleetFullError, InvalidFetchError, NewerMessageError
from fetchfleet.worker.intake.arq_jobs import REFUSED, read_job, write_result
from fetchfleet.worker.intake.inbox_orders import ReadMessages, read_all

BATCH = "0123456789abcdef"
TOO_DEEP_ITEM = "recursion" if sys.version_info < (3, 14) else "item 0: Expected `str | object`, got `array`"
"""From 3.14 on the interpreter's limit is the size of its stack, which holds this item: it is not a fetch."""
A, B = Fetch(url="http://a.example/"), Fetch(url="http://b.example/", method="POST", body="x")
KNOWN = frozenset({"fetch", REFUSED})

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
URLS = st.sampled_from(
    ["http://a.example/", "https://b.example/x?y", "ftp://a/", "", "http://ü.example/é", "{"]
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(["GET", "post", "TRACE"]),
    "headers": st.dictionaries(
        st.sampled_from(["A", "Host", "b:"]), st.sampled_from(["", "x", "\n"]), max_size=2
    ),
    "body": st.text(max_size=5),
    "body_base64": st.sampled_from(["", "YQ==", "YQ", "é"]),
    "body_file": st.sampled_from(["a", "../a", "a/b", ""]),
    "etag": st.sampled_from(['"e"', 'W/"e"', "*", ""]),
    "last_modified": st.sampled_from(["Sun, 06 Nov 1994 08:49:37 GMT", "never"]),
    "revalidate": st.booleans(),
    "dest": st.sampled_from(["a", "../a", "a/b", "/a", ""]),
    "sha256": st.sampled_from(["0" * 64, "F" * 64, "0"]),
    "max_bytes": st.integers(-1, 10**30) | st.floats(allow_nan=False),
    "priority": st.sampled_from(["high", "normal", "low", "urgent"]),
    "deadline_s": st.integers(-1, 10**6) | st.floats(-1, 10**6, allow_nan=False),
    "key": st.text(max_size=5),
    "meta": JSON_VALUES,
    "other": JSON_VALUES,
}
OBJECTS = st.builds(
    lambda url, fields: {"url": url, **fields},
    URLS,
    st.fixed_dictionaries({}, optional={name: values | JSON_VALUES for name, values in FIELDS.items()}),
)
ITEMS = URLS | OBJECTS | JSON_VALUES
NO_VERSIONS = [b"0", b"-1", b"1.0", b"1.5", b'"1"', b"true", b"null", b"[]", b"{}"]


def nested(depth: int) -> bytes:
    """Return lists within lists."""
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("message", "order"),
    [
        (b"http://a.example/", Order([A])),
        (b" \r\n\thttp://a.example/\n", Order([A])),
        (b'{"url":"http://a.example/"}', Order([A])),
        (b'\n {"url": "http://b.example/", "method": "post", "body": "x"} ', Order([B])),
        (b'{"fetches":[]}', Order([])),
        (b'{"fetches":["http://a.example/"]}', Order([A])),
        (b'{"fetches":[ "http://a.example/" ,{"url":"http://a.example"}],"batch":null}', Order([A, A])),
        (b'{"batch":"0123456789abcdef","fetches":[{"url":"http://a.example/"}]}', Order([A], BATCH)),
        (b'{"v":1,"url":"http://b.example/","method":"POST","body":"x"}', Order([B])),
        (b'{"fetches":["http://a.example/"],"v": 1 }', Order([A])),
        (b'{"url":"http://a.example/","meta":' + nested(100) + b"}", None),
        ("http://ü.example/".encode(), Order([Fetch(url="http://xn--tda.example/")])),
    ],
)
def test_a_message_is_a_url_a_fetch_or_many(message: bytes, order: Order | None) -> None:
    """The message may have white space around it and within it."""
    read = read_message(message)

    assert (order or read) == read


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "url: "),
        (b"{", "truncated"),
        (b'{"fetches":["http://a.example/"', "truncated"),
        (b'{"fetches":["http://a.example/"]} x', "malformed"),
        (b"[]", "url: "),
        (b'"http://a.example/"', "url: "),
        (b"\xef\xbb\xbfhttp://a.example/", "url: "),
        (b'\xef\xbb\xbf{"url":"http://a.example/"}', "url: "),
        ("\u2003http://a.example/".encode(), "url: "),
        (b"\xff\xfe", "neither JSON nor a URL"),
        (pickle.dumps({"url": "http://a.example/"}), "neither JSON nor a URL"),
        (b"http://a.example/\nhttp://b.example/", "url: "),
        (b'{"url":"http://a.example/\\ud800"}', "truncated"),
        (b'{"url":"http://a.example/","meta":NaN}', "malformed"),
        (b'{"url":"http://a.example/","meta":1e400}', "out of range"),
        (b'{"url":"http://a.example/","max_bytes":1' + b"0" * 5000 + b"}", "out of range"),
        (b'{"url":"http://a.example/","meta":' + nested(101) + b"}", "meta: is nested more than"),
        (b'{"url":"http://a.example/","meta":' + nested(100_000) + b"}", "recursion"),
        (b'{"fetches":' + nested(100_000) + b"}", TOO_DEEP_ITEM),
        (b'{"fetches":' + nested(10) + b"}", "item 0: Expected"),
        (b'{"fetches":null}', "Expected `array`"),
        (b'{"fetches":{}}', "Expected `array`"),
        (b'{"fetches":"http://a.example/"}', "Expected `array`"),
        (b'{"fetches":["http://a.example/",""]}', "item 1: url: "),
        (b'{"fetches":["http://a.example/",{"url":"x"}]}', "item 1: url: "),
        (b'{"fetches":["http://a.example/",{"fetches":[]}]}', "item 1: Object contains unknown field"),
        (b'{"fetches":["http://a.example/"],"url":"http://a.example/"}', "unknown field `url`"),
        (b'{"fetches":[],"batch":5}', "Expected `str | null`"),
        (b'{"fetches":[],"batch":"0123456789ABCDEF"}', "batch: "),
        (b'{"batch":"0123456789abcdef"}', "unknown field `batch`"),
        *((b'{"url":"http://a.example/","v":' + v + b"}", "v: must be a whole number") for v in NO_VERSIONS),
        (b'{"fetches":[],"v":0}', "v: must be a whole number"),
        (b'{"url":"http://a.example/","v":1' + b"0" * 5000 + b"}", "out of range"),
        (b'{"fetches":[{"url":"http://a.example/","v":1}]}', "item 0: Object contains unknown field `v`"),
        (b'{"url":"http://a.example/","batch":"0123456789abcdef"}', "unknown field `batch`"),
    ],
)
def test_an_invalid_message_is_refused_with_its_reason(message: bytes, says: str) -> None:
    """The error names the place in the list. A name in another form is not a batch ID."""
    with pytest.raises(InvalidFetchError) as caught:
        read_message(message)

    assert says in str(caught.value)


def test_the_sizes_of_a_message_and_its_fetches_are_limited() -> None:
    """A message too large for Redis is refused before it is sent, including any growth on the way."""
    at_most = b'{"url":"http://a.example/","meta":"' + b"x" * (MAX_FETCH_BYTES - 37) + b'"}'
    assert MAX_FETCH_BYTES == len(at_most)

    for message in (at_most, b'{"fetches":[' + at_most + b"]}", b'{"fetches":[' + at_most[:-1] + b"x]}"):
        with pytest.raises(InvalidFetchError):
            read_message(message)
    with pytest.raises(InvalidFetchError, match="the limit is"):
        read_message(b" " * (MAX_INPUT_BYTES + 1))


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        (("http://a.example/",), Order([A])),
        (({"url": "http://a.example/"},), Order([A])),
        (([],), Order([])),
        (
            (["http://a.example/", {"url": "http://b.example/", "method": "POST", "body": "x"}],),
            Order([A, B]),
        ),
        (("http://a.example/", BATCH), Order([A], BATCH)),
        (([A], None), Order([A])),
    ],
)
def test_a_jobs_arguments_are_a_fetch_or_a_list_and_perhaps_a_batch(
    arguments: tuple[Any, ...], order: Order
) -> None:
    """The same forms as in a message."""
    assert order == read_arguments(*arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None,), "got `null`"),
        ((5,), "got `int`"),
        (({},), "missing required field `url`"),
        (({"fetches": []},), "unknown field `fetches`"),
        (([["url", "http://a.example/"]],), "item 0: Expected"),
        (([["http://a.example/"]],), "item 0: Expected"),
        ((["http://a.example/", None],), "item 1: Expected"),
        (([["ab"]],), "item 0: Expected"),
        (("http://a.example/", 5), "batch: int is not"),
        (("http://a.example/", ""), 'batch: "" is not'),
        (("http://a.example/", BATCH + "\n"), "batch: "),
        (("http://a.example/", "x" * 10_000_000), "batch: "),
    ],
)
def test_other_arguments_are_refused_with_their_reason(arguments: tuple[Any, ...], says: str) -> None:
    """A list of pairs, which Python would convert to a dict, is not a fetch either."""
    with pytest.raises(InvalidFetchError) as caught:
        read_arguments(*arguments)

    assert says in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "message",
    [b'{"url":"http://a.example/","v":3}', b'{"fetches":7,"colour":"red","v":3}', b'{"v":3}'],
)
def test_a_message_for_a_newer_worker_is_neither_an_order_nor_refused(message: bytes) -> None:
    """It holds with any other content: its form may be a later one."""
    with pytest.raises(NewerMessageError):
        read_message(message)
    assert ReadMessages([], [], [(3, message)]) == read_all([message])


@given(
    st.binary()
    | st.builds(lambda a, b: a + b, st.sampled_from([b"{", b'{"fetches":', b'{"url":']), st.binary())
)
@example(b"\x80\x04\x95")
def test_any_bytes_are_an_order_or_refused(message: bytes) -> None:
    """No pushed bytes raise another error, and the reason can be written."""
    asked, refused, newer = read_all([message])

    assert 1 == len(asked) + len(refused) + len(newer)
    assert all(item.note.encode() for item in refused)


@given(
    st.lists(ITEMS, max_size=3), st.none() | st.sampled_from([BATCH, "x"]) | JSON_VALUES, st.integers(0, 50)
)
def test_any_json_is_an_order_or_refused(items: list[Any], batch: Any, cut: int) -> None:
    """Complete or truncated."""
    text = msgspec.json.encode({"batch": batch, "fetches": items})
    for message in (text, text[: len(text) - cut], text[cut:]):
        assert 1 == sum(len(found) for found in read_all([message]))


def outcome(read: Any, *arguments: Any) -> Fetch | str:
    """Return the one fetch, or the refusal. Items are counted from 0 if they are counted."""
    try:
        read_as = read(*arguments)
    except InvalidFetchError as error:
        return str(error).removeprefix("item 0: ")
    return read_as.fetches[0] if isinstance(read_as, Order) else read_as


def checked(item: Any) -> Fetch:
    """Return an item as Fleet.submit reads it."""
    fetch = as_fetch(item)
    serialize_new_entry(fetch_id(BATCH, 0), fetch)
    return fetch


@given(ITEMS)
@example({"url": "http://a.example/", "max_bytes": 1.0})
@example({"url": "http://a.example/", "meta": 10**30})
@example(["ab"])
@example(None)
def test_the_three_doors_agree(item: Any) -> None:
    """They accept the same fetches, and refuse others with the same message."""
    text = msgspec.json.encode(item)
    item = msgspec.json.decode(text)
    by_python = outcome(checked, item)

    assert by_python == outcome(read_arguments, [item])
    assert by_python == outcome(read_message, b'{"fetches":[' + text + b"]}")
    if not isinstance(item, list):
        assert by_python == outcome(read_arguments, item)
    if isinstance(item, dict) and not {"fetches", "v"} & item.keys():
        assert by_python == outcome(read_message, text)


@given(st.binary())
def test_any_bytes_are_a_job(raw: bytes) -> None:
    """A valid one, or one that names its fault: arq itself receives no bad bytes."""
    job = read_job(KNOWN, raw)

    assert {"f", "a", "k", "et", "t"} == set(job)
    assert job["f"] in KNOWN


def test_two_fetches_of_one_message_or_job_with_one_dest_are_refused() -> None:
    """One body would replace the other, as in a list."""
    fetches = [{"url": f"http://{host}.example/", "dest": "x"} for host in "ab"]
    with pytest.raises(InvalidFetchError, match="item 1: dest: 'x' is also the dest of item 0"):
        read_message(msgspec.json.encode({"fetches": fetches}))
    with pytest.raises(InvalidFetchError, match="item 1: dest: 'x' is also the dest of item 0"):
        read_arguments(fetches)


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    """Loading this one would create a file."""
    path = tmp_path / "loaded"
    job = read_job(KNOWN, pickle.dumps({"f": "fetch", "a": [Trap(path)], "k": {}, "et": 0, "t": None}))

    assert REFUSED == job["f"]
    assert "pickles are never loaded" in job["a"][0]
    assert not path.exists()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"f":"rm","a":[],"k":{},"et":0,"t":null}', "unknown function 'rm'"),
        (b'{"f":"' + b"x" * 100_000 + b'","a":[],"k":{},"et":0,"t":null}', "unknown function"),
        (b'{"f":"fetch","a":{},"k":{},"et":0,"t":null}', "not an arq job"),
        (b'{"f":"fetch","a":[],"k":{},"et":-1,"t":null}', "not an arq job"),
        (b'{"f":"fetch","a":[],"k":{},"et":1000000000000000000,"t":null}', "not an arq job"),
        (b'{"f":"fetch","a":[],"k":{},"et":0,"t":1000000000000}', "not an arq job"),
        (b'{"f":"fetch","a":' + nested(100_000) + b',"k":{},"et":0,"t":null}', "not an arq job"),
        (b'{"f":"x","a":' + nested(900) + b',"k":{},"et":0,"t":null}', "unknown function"),
        (b" " * (MAX_INPUT_BYTES + 1), "must have at most"),
    ],
)
def test_a_foreign_job_is_refused_with_a_short_message(raw: bytes, says: str) -> None:
    """It holds with any content: an impossible time would end the loop of arq."""
    job = read_job(KNOWN, raw)

    assert REFUSED == job["f"]
    assert says in job["a"][0]
    assert all(len(text) <= 200 for text in job["a"])


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"batch": BATCH, "ids": []}, {"batch": BATCH, "ids": []}),
        (InvalidFetchError("url: no"), "url: no"),
        (FleetFullError("full"), "full"),
        (KeyError("x"), "KeyError('x')"),
        (None, None),
    ],
)
def test_the_result_of_a_job_is_json_and_an_error_is_its_text(result: Any, text: Any) -> None:
    """Any client of arq can read it."""
    assert {"r": text} == msgspec.json.decode(write_result({"r": result}))


@pytest.mark.parametrize("argument", ["\ud800", 10**5000], ids=["half a pair", "a huge number"])
def test_a_result_is_written_even_if_its_arguments_cannot_be(argument: Any) -> None:
    """A waiting client receives it."""
    written = write_result({"r": "no", "a": [argument], "k": {}})

    assert {"r": "no", "a": [], "k": {}} == msgspec.json.decode(written)
