"""The queue of log lines that wait for watchers: bounded, and with a count of the lines left out."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.redis_support.event_tap import (
    INFO_LINES,
    LINES_AT_ONCE,
    MAX_LINE_BYTES,
    QUEUE_LINES,
    SKIPPED,
    LineQueue,
)


def line(number: int, size: int = 0) -> dict[str, Any]:
    """Return the fields of a line."""
    return {"event": "fetch.finished", "level": "info", "number": number, "note": "x" * size}


def all_of(queue: LineQueue) -> list[dict[str, Any]]:
    """Take every waiting line."""
    taken: list[dict[str, Any]] = []
    while batch := queue.take("web-1"):
        assert len(batch) <= LINES_AT_ONCE
        taken += map(json.loads, batch)
    return taken


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["debug", "info", "warning", "error"]),
            st.integers(0, 120),
            st.sampled_from([0, 0, MAX_LINE_BYTES]),
        ),
        max_size=8,
    )
)
def test_each_line_is_published_or_counted(adds: list[tuple[str, int, int]]) -> None:
    """The order is kept. Lines of level debug are neither."""
    queue, added, number = LineQueue(), 0, 0
    for level, count, size in adds:
        queue.add(level, [line(number + place, size) for place in range(count)])
        number += count
        added += count if level != "debug" else 0

    taken = all_of(queue)

    kept = [fields["number"] for fields in taken if fields["event"] != SKIPPED]
    skipped = sum(fields["lines"] for fields in taken if fields["event"] == SKIPPED)
    assert kept == sorted(kept)
    assert len(kept) <= QUEUE_LINES
    assert added == len(kept) + skipped


def test_a_flood_of_info_lines_leaves_room_for_warnings() -> None:
    """The warnings of a busy worker are shown."""
    queue = LineQueue()
    queue.add("info", [line(number) for number in range(2 * QUEUE_LINES)])
    queue.add("warning", [line(-1)])

    taken = all_of(queue)

    assert [-1] == [fields["number"] for fields in taken if fields.get("number", 0) < 0]
    assert [2 * QUEUE_LINES - INFO_LINES] == [of["lines"] for of in taken if of["event"] == SKIPPED]


def test_text_that_controls_a_terminal_is_escaped() -> None:
    """As in the log."""
    queue = LineQueue()
    queue.add("info", [{"event": "x", "note": "\x1b[2J\x9b\u202e"}])

    assert [rb'{"event":"x","note":"\u001b[2J\u009b\u202e"}'] == queue.take("web-1")
