"""The log lines that a watcher accepts from the channel, which any program may publish to."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.worker.inspect.event_tail import (
    LEVELS,
    MAX_MESSAGE_BYTES,
    EventFilter,
    fields_of,
    lines_in,
)
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.redis_support.event_tap import LINES_AT_ONCE, MAX_LINE_BYTES, SKIPPED
from fetchfleet.worker.top.event_text import event_text

LINE: dict[str, Any] = {
    "event": "lane.cooling",
    "level": "info",
    "timestamp": "2030-01-02T03:04:05.678901Z",
    "worker": "web-1",
    "lane": "api.example.com",
}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
messages = st.binary(max_size=200) | st.lists(
    st.dictionaries(st.sampled_from([*LINE, "note", "\x1b[2J\n"]), values | st.sampled_from([*LINE.values()]))
).map(lambda lines: "\n".join(map(json.dumps, lines)).encode())


def encoded(**fields: Any) -> bytes:
    """Return a line as a worker writes it, with these fields."""
    return json.dumps({**LINE, **fields}).encode()


@settings(max_examples=60)
@given(messages)
def test_only_safe_lines_of_known_events_come_out_of_any_message(message: bytes) -> None:
    """Each is one line of JSON without control characters, also as text for a terminal."""
    for line in lines_in(message):
        fields = json.loads(line)
        assert fields["event"] in {*Event, SKIPPED}
        assert fields["level"] in LEVELS
        assert not UNSAFE.search(line.decode())
        assert not UNSAFE.search(event_text(fields).plain)
        assert fields_of(line) == msgspec.json.decode(line)


@given(st.lists(st.integers(0, 9), max_size=LINES_AT_ONCE))
def test_the_lines_of_a_worker_come_out_unchanged(numbers: list[int]) -> None:
    """In order."""
    lines = [encoded(number=number) for number in numbers]

    assert [json.loads(line) for line in lines] == [*map(json.loads, lines_in(b"\n".join(lines)))]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        encoded(event="shell.started"),
        encoded(event=["lane.cooling"]),
        encoded(level="loud"),
        encoded(timestamp=1),
        encoded(timestamp="x" * 1000),
        encoded(worker=None),
        encoded(note="x" * MAX_LINE_BYTES),
        encoded(note=1).replace(b" 1", b"9" * 5000),
        b"x" * (MAX_MESSAGE_BYTES + 1),
        1,
    ],
)
def test_other_messages_are_dropped(message: object) -> None:
    """They end nothing."""
    assert [] == [*lines_in(message)]


def test_a_deeply_nested_line_is_whole_or_dropped() -> None:
    """The limit of the decoder depends on the version of Python."""
    message = encoded(note=[]).replace(b"[]", b"[" * 5000 + b"]" * 5000)

    assert [line.count(b"[") for line in lines_in(message)] in ([], [5000])


def test_a_message_with_too_many_lines_is_cut() -> None:
    """A worker sends no such message."""
    assert LINES_AT_ONCE == len([*lines_in(b"\n".join([encoded()] * 100))])


@pytest.mark.parametrize(
    ("wanted", "fields", "is_admitted"),
    [
        (EventFilter(), LINE, True),
        (EventFilter(event="lane.*"), LINE, True),
        (EventFilter(event="fetch.*"), LINE, False),
        (EventFilter(host="api.example.com"), LINE, True),
        (EventFilter(host="example.com"), LINE, False),
        (EventFilter(host="*.example.com"), LINE, True),
        (EventFilter(host="a.example"), {**LINE, "lane": ["a.example"]}, False),
        (EventFilter(host="a.example"), {"event": "worker.started", "level": "info"}, False),
        (EventFilter(level="warning"), LINE, False),
        (EventFilter(level="warning"), {**LINE, "level": "error"}, True),
        (EventFilter("fetch.*", "a.example", "error"), {"event": SKIPPED, "level": "warning"}, True),
    ],
)
def test_a_filter_selects_by_event_host_and_level(
    wanted: EventFilter, fields: dict[str, Any], *, is_admitted: bool
) -> None:
    """Each part that is given must match. A count of omitted lines is always shown."""
    assert is_admitted == wanted.admits(fields)


@pytest.mark.parametrize(
    ("url", "start"),
    [
        ("https://api.example.com/path", "url=https://api.example.com/path"),
        ("https://other.example/path", "lane=api.example.com url=https://other.example/path"),
        (None, "lane=api.example.com worker="),
    ],
)
def test_a_brief_line_leaves_out_the_lane_that_its_url_names(url: str | None, start: str) -> None:
    """A narrow screen then has the path."""
    text = event_text({**LINE, "url": url}, brief=True).plain

    assert f"03:04:05.678 info    lane.cooling         {start}" in text


def test_the_text_of_a_line_begins_with_time_level_and_event() -> None:
    """The fields that matter most follow. Null fields are left out."""
    text = event_text({**LINE, "until_ms": 5, "note": None, "why": ["a"]}).plain

    fields = 'lane=api.example.com why=["a"] until_ms=5 worker=web-1'
    assert f"03:04:05.678 info    lane.cooling         {fields}" == text
