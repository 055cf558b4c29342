"""Log lines as rows of the page of events."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.console.html import render
from fetchfleet.worker.console.pages.event_page import MAX_VALUE_CHARS, event_filter, tail_line

HEADS = {
    "event": "fetch.finished",
    "level": "info",
    "timestamp": "2026-11-30T13:05:22.250000Z",
    "worker": "w",
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_line_has_its_heads_in_columns_and_other_fields_as_text() -> None:
    """Fields without a value are left out, and the batch beside the ID of its fetch."""
    line = tail_line(
        {**HEADS, "id": "b-1", "batch": "b", "bytes": 12, "reason": None, "stale": False, "wait": {"a": 1}}
    )

    assert (1_796_043_922_250, "info", "fetch.finished", "w") == line[:4]
    assert [("id", "b-1"), ("bytes", "12"), ("wait", '{"a":1}')] == line.fields


def test_a_line_with_an_unreadable_time_is_shown() -> None:
    """Its time is shown as unknown."""
    line = tail_line({**HEADS, "timestamp": "soon"})

    assert ">?<" in render("event_line.html", line=line)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_fields_make_a_row_of_bounded_text(fields: dict[str, Any]) -> None:
    """Without markup of their own."""
    line = tail_line(msgspec.json.decode(msgspec.json.encode({**fields, **HEADS})))
    html = render("event_line.html", line=line)

    assert all(len(text) <= MAX_VALUE_CHARS + 1 for field in line.fields for text in field)
    assert html.count("<tr>") == html.count("</tr>") == 1


def test_a_filter_without_a_value_selects_every_line() -> None:
    """A level that does not exist counts as none."""
    assert (None, None, None) == event_filter({"event": " ", "level": "loud"})
    assert ("lane.*", "a.example", "error") == event_filter(
        {"event": "lane.*", "host": "A.example", "level": "error"}
    )
