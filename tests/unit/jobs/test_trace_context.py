"""Trace context: accepted values, and those of the worker's own requests."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.jobs.contract.checks import trace_context
from fetchfleet.jobs.contract.entry import Hop, parse_entry, serialize_new_entry, with_deadline
from fetchfleet.jobs.contract.fetch import Fetch, encode
from fetchfleet.jobs.contract.messages import read_arguments, read_message
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.fetch.rules.trace_context import random_span_id, span_id_of, with_context
from fetchfleet.worker.observability.log import trace_fields as fields

URL = "http://a.example/"
ID = "0123456789abcdef-00000001"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"

# By the examples of W3C Trace Context §3.2 and §4.3.
GOOD = [
    GIVEN,
    f"00-{TRACE}-{PARENT}-00",
    f"00-{TRACE}-{PARENT}-ff",
    f"00-{'0' * 31}1-{'0' * 15}1-00",
    f"cc-{TRACE}-{PARENT}-01",
    f"cc-{TRACE}-{PARENT}-01-",
    f"01-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
    f"fe-{TRACE}-{PARENT}-01-{'x' * (trace_context.MAX_TRACEPARENT_CHARS - 56)}",
]
BAD = [
    "",
    "00",
    GIVEN[:-1],
    GIVEN + "0",
    GIVEN + "-",
    GIVEN + "-x",
    GIVEN + "\n",
    " " + GIVEN,
    GIVEN.upper(),
    GIVEN.replace("a", "é"),
    GIVEN.replace("-", "_"),
    f"ff-{TRACE}-{PARENT}-01",
    f"0x-{TRACE}-{PARENT}-01",
    f"00-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE}-{PARENT}-0x",
    f"cc-{TRACE}-{PARENT}-01.x",
    f"cc-{TRACE}-{PARENT}-01-a b",
    f"cc-{TRACE}-{PARENT}-01-é",
    f"fe-{TRACE}-{PARENT}-01-{'x' * (trace_context.MAX_TRACEPARENT_CHARS - 55)}",
]
GOOD_STATES = [
    "a=1",
    "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "a=1 , b=2,,c=3",
    "0tenant@system=x",
    "a_-*/b= !~",
    "a=1;b",
    "a=" + "x" * 256,
    ",".join(f"k{n}=v" for n in range(32)),
]
BAD_STATES = [
    *("", " ", ",", "a", "a=", "=1", "A=1", "a=1\n", "a=\t1", "a=é", "a=1=2", "a b=1", "a=1,a=2"),
    *(" a=1", "a=1 ", "a=" + "x" * 257, "k" * 257 + "=1"),
    ",".join(f"k{n}=v" for n in range(33)),
    ",".join(f"k{n}=" + "x" * 100 for n in range(5)) + ",z=1",
]


@pytest.mark.parametrize("given_", GOOD)
def test_a_traceparent_of_any_version_is_accepted(given_: str) -> None:
    """A later version begins like version 00."""
    assert given_ == Fetch(url=URL, traceparent=given_).traceparent


@pytest.mark.parametrize("given_", BAD)
def test_an_invalid_traceparent_is_refused_by_name(given_: str) -> None:
    """It is the caller's input, so the caller gets an error."""
    with pytest.raises(InvalidFetchError, match=r"^traceparent: "):
        Fetch(url=URL, traceparent=given_)


@pytest.mark.parametrize("given_", GOOD_STATES)
def test_a_tracestate_is_kept_unchanged(given_: str) -> None:
    """Order and values belong to its vendors."""
    assert given_ == Fetch(url=URL, traceparent=GIVEN, tracestate=given_).tracestate


@pytest.mark.parametrize("given_", BAD_STATES)
def test_an_invalid_tracestate_is_refused_by_name(given_: str) -> None:
    """A value that cannot be sent, or that vendors cannot read."""
    with pytest.raises(InvalidFetchError, match=r"^tracestate: "):
        Fetch(url=URL, traceparent=GIVEN, tracestate=given_)


def test_a_tracestate_alone_is_refused() -> None:
    """It has no meaning without its trace."""
    with pytest.raises(InvalidFetchError, match=r"^tracestate: "):
        Fetch(url=URL, tracestate="a=1")


@given(st.text() | st.text("0123456789abcdef-", min_size=50, max_size=60), st.none() | st.text())
def test_an_accepted_value_can_be_sent(traceparent: str, tracestate: str | None) -> None:
    """The value is valid in a header, and a lane returns it unchanged."""
    try:
        made = Fetch(url=URL, traceparent=traceparent, tracestate=tracestate)
    except InvalidFetchError:
        return
    sent = Fetch(url=URL, headers={"a": traceparent, "b": tracestate or ""})

    assert set(sent.headers.values()) == {traceparent, tracestate or ""}
    assert made == parse_entry(with_deadline(serialize_new_entry(ID, made), 0)).fetch


def test_every_door_accepts_the_trace() -> None:
    """Python, arq and the inbox. All refuse the same."""
    fetch = Fetch(url=URL, traceparent=GIVEN, tracestate="a=1")
    form: dict[str, Any] = {"url": URL, "traceparent": GIVEN, "tracestate": "a=1"}

    assert [fetch] == read_message(encode(fetch)).fetches == read_arguments(form).fetches
    for refused in (form | {"traceparent": "x"}, form | {"tracestate": "x"}):
        with pytest.raises(InvalidFetchError, match=r"^trace"):
            read_arguments(refused)


chance = st.floats(0, 1, exclude_max=True)
SPAN = re.compile(r"(?!0{16})[0-9a-f]{16}")


@given(chance, chance)
def test_a_span_id_is_never_zero(high: float, low: float) -> None:
    """Zero means no span."""
    assert SPAN.fullmatch(random_span_id(high, low))


@given(st.text())
def test_the_span_id_of_a_fetch_is_always_the_same(fetch_id: str) -> None:
    """Each attempt and each worker has it."""
    assert SPAN.fullmatch(span_id_of(fetch_id))
    assert span_id_of(fetch_id) == span_id_of(fetch_id)


@given(st.sampled_from(GOOD), chance, chance)
def test_the_trace_continues_under_a_new_span(traceparent: str, high: float, low: float) -> None:
    """The same trace with the known flags, in version 00."""
    span_id = random_span_id(high, low)
    sent = dict(with_context(Hop("GET", URL), Fetch(url=URL, traceparent=traceparent), ID, span_id).headers)
    Fetch(url=URL, traceparent=sent["traceparent"])
    version, trace, parent, flags = sent["traceparent"].split("-")

    assert ("00", traceparent[3:35], span_id) == (version, trace, parent)
    assert int(traceparent[53:55], 16) & 3 == int(flags, 16)
    assert {"X-Request-ID", "traceparent"} == sent.keys()


@pytest.mark.parametrize(
    ("headers", "added"),
    [
        ({}, {"X-Request-ID", "traceparent", "tracestate"}),
        ({"x-request-id": "mine"}, {"traceparent", "tracestate"}),
        ({"TraceParent": "mine"}, {"X-Request-ID"}),
        ({"Tracestate": "mine"}, {"X-Request-ID", "traceparent"}),
    ],
)
def test_a_header_of_the_caller_wins(headers: dict[str, str], added: set[str]) -> None:
    """The worker's header of that name is not sent."""
    fetch = Fetch(url=URL, headers=headers, traceparent=GIVEN, tracestate="a=1")
    request = Hop("GET", URL, tuple(headers.items()))

    sent = with_context(request, fetch, ID, "5" * 16)

    assert request.headers == sent.headers[: len(headers)]
    assert added == {name for name, _ in sent.headers[len(headers) :]}


def test_without_a_trace_only_the_id_is_sent() -> None:
    """Log lines have no field for a missing trace."""
    fetch = Fetch(url=URL)

    assert (("X-Request-ID", ID),) == with_context(Hop("GET", URL), fetch, ID, "5" * 16).headers
    assert {} == fields(fetch)
    assert {"trace_id": TRACE} == fields(Fetch(url=URL, traceparent=GIVEN))
