"""The tables of `fetchfleet top`: their width, their order, and the part of them that is visible."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from fetchfleet.jobs.client.batch import Counts
from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.worker.inspect.fleet_status import WorkerStatus
from fetchfleet.worker.inspect.views.batches import BatchRow
from fetchfleet.worker.inspect.views.hosts import HostRow
from fetchfleet.worker.top.columns import (
    BATCHES,
    HOSTS,
    MIN_WIDTH,
    TABLES,
    WORKERS,
    ItemTable,
    Sort,
    arranged,
    fitted,
    heading,
    next_sort,
    place_of,
    progress_bar,
    row_text,
    widths,
    window,
)

NOW_MS = 1_900_000_000_000
numbers = st.integers(0, 10**15)
texts = st.text(max_size=40)


def host(name: str, **fields: Any) -> HostRow:
    """Return a row with these fields."""
    defaults: dict[str, Any] = {"state": "busy", "why": "", "until_ms": None, "in_flight": 0, "waiting": 0}
    return HostRow(**{"host": name, "worker": None, "instance": None, **defaults, **fields})


hosts = st.builds(
    HostRow,
    host=texts,
    state=texts,
    why=texts,
    until_ms=st.none() | numbers,
    in_flight=numbers,
    waiting=numbers,
    worker=st.none() | texts,
    instance=st.none() | texts,
)
workers = st.builds(
    WorkerStatus,
    **dict.fromkeys(("id", "instance", "lacking", "lacking_error"), texts),
    **dict.fromkeys(("version", "python", "engine", "sink", "policy"), st.none() | texts),
    **dict.fromkeys(("lanes", "in_flight"), numbers),
    **dict.fromkeys(("finished_per_s", "received_bytes_per_s"), st.floats(0, 1e15)),
    age_s=st.none() | st.floats(0, 1e15),
    abilities=st.none(),
)
batches = st.builds(
    BatchRow,
    id=texts,
    state=texts,
    created_ms=numbers,
    cancel_ms=st.none(),
    counts=st.builds(Counts, **dict.fromkeys(("total", "failed", "bytes"), numbers)),
    done=numbers,
    left=numbers,
    retried_as=st.just([]),
    rate_per_s=st.none() | st.floats(0, 1e15),
    eta_s=st.none() | st.floats(0, 1e15),
)
rows = st.one_of(
    hosts.map(lambda row: (HOSTS, row)),
    workers.map(lambda row: (WORKERS, row)),
    batches.map(lambda row: (BATCHES, row)),
)


@settings(max_examples=40)
@given(rows, st.integers(58, 200))
def test_a_row_has_exactly_the_width_of_the_screen(row: tuple[ItemTable, Any], width: int) -> None:
    """Of any values, and without a character that controls a terminal. So have the titles."""
    table, item = row
    line = row_text(table, item, NOW_MS, width).plain

    assert width == cell_len(line) == cell_len(heading(table, Sort(0), width).plain)
    assert not UNSAFE.search(line)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_wider_screen_shows_every_column_of_a_narrower_one(table: ItemTable) -> None:
    """At 58 columns the names still have room, and at 200 every column is shown."""
    shown = [[place for place, _ in widths(table, width)] for width in range(58, 201)]

    assert all({*fewer} <= {*more} for fewer, more in pairwise(shown))
    assert len(table.columns) == len(shown[-1])
    assert all(cells >= MIN_WIDTH for _, cells in widths(table, 58)[:1])


@given(text=texts, cells=st.integers(1, 30), right=st.booleans())
def test_a_text_is_padded_or_cut_to_a_width(text: str, cells: int, *, right: bool) -> None:
    """A text that fits is not changed."""
    line = fitted(text, cells, right=right)

    assert cells == cell_len(line)
    assert text in line or line.endswith("…")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text("ab.", max_size=4), st.integers(0, 3)), unique_by=lambda of: of[0]), texts)
def test_hosts_are_filtered_and_sorted(names: list[tuple[str, int]], text: str) -> None:
    """From the largest number, then by name; reversed by a second press of the key."""
    items = [host(name, waiting=waiting) for name, waiting in names]
    place = [column.title for column in HOSTS.columns].index("waiting")

    largest_first = arranged(HOSTS, items, Sort(place), "")
    assert sorted(items, key=lambda of: (-of.waiting, of.host)) == largest_first
    smallest_first = arranged(HOSTS, items, Sort(place, reverse=True), "")
    assert sorted(items, key=lambda of: (of.waiting, of.host)) == smallest_first
    assert all(text.strip().lower() in f"{of.host} busy" for of in arranged(HOSTS, items, Sort(0), text))


def test_the_key_of_sorting_goes_through_the_visible_columns() -> None:
    """It begins again after the last one."""
    sort, columns = Sort(0), []
    for _ in range(6):
        sort = next_sort(HOSTS, sort, 80)
        columns.append(HOSTS.columns[sort.column].title)

    assert ["state", "in flight", "waiting", "opens in", "host", "state"] == columns


@given(st.integers(0, 50), st.integers(0, 49), st.integers(0, 60), st.integers(0, 20))
def test_the_cursor_is_visible(count: int, cursor: int, first: int, height: int) -> None:
    """The view shows no place beyond the items, unless all of them are visible."""
    cursor = max(0, min(cursor, count - 1))
    found = window(count, cursor, first, height)

    assert found >= 0
    if height:
        assert found <= cursor < found + height
        assert found == 0 or found + height <= count


def test_the_cursor_follows_its_item() -> None:
    """The cursor stays at its place if the item is gone."""
    items = [host("a"), host("b"), host("c")]

    assert 2 == place_of(HOSTS, items, "c", 0)
    assert 1 == place_of(HOSTS, items, "gone", 1)
    assert 2 == place_of(HOSTS, items, "gone", 9)
    assert 0 == place_of(HOSTS, [], "gone", 9)


@given(st.floats(0, 1))
def test_only_a_finished_batch_has_100_percent(share: float) -> None:
    """The bar has the same length for every share."""
    assert ("100 %" in progress_bar(share)) == (share == 1)
    assert {16} == {cell_len(progress_bar(share))}
