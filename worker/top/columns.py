"""The tables of the display: their columns, their order, and their rows as text."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.worker.inspect.views.batches import BatchRow
from fetchfleet.worker.local.output.progress import size
from fetchfleet.worker.util.quantities import age

MIN_WIDTH = 16
"""The minimum width of the column that takes the rest of a line."""

BAR_CELLS = 10

STYLES = {
    **dict.fromkeys(("busy", "running", "submitting", "working"), "green"),
    **dict.fromkeys(("cooling", "quota", "robots", "retry", "cancelling", "drained"), "yellow"),
    **dict.fromkeys(("breaker", "no disk"), "bold red"),
    "paused": "magenta",
}
"""The style of each state that has one. The state is shown as a word too."""

UNKNOWN = "?"


class ItemColumn(NamedTuple):
    """A column of a table."""

    title: str
    width: int
    """The width in cells; 0 for the column that takes the rest of the line."""
    value: Callable[[Any], Any]
    """Returns the value of an item, by which items are sorted too; None if unknown."""
    form: Callable[[Any, int], str] | None = None
    """Returns the text of a value that is known, at a time in Unix ms; None for a column of texts."""
    from_width: int = 0
    """The width of the table from which the column is shown."""

    @property
    def is_number(self) -> bool:
        """True if the values are numbers: aligned to the right, and sorted from the largest."""
        return self.form is not None

    def cell(self, item: Any, now_ms: int) -> str:
        """Return the text of an item."""
        value = self.value(item)
        if value is None:
            return UNKNOWN
        return str(value) if self.form is None else self.form(value, now_ms)

    def order(self, item: Any) -> Any:
        """Return the key by which an item is sorted."""
        value = self.value(item)
        return (0 if self.is_number else "") if value is None else value


class ItemTable(NamedTuple):
    """A kind of table."""

    name: str
    columns: tuple[ItemColumn, ...]
    key: Callable[[Any], str]
    """Returns the identity of an item."""
    text: Callable[[Any], str]
    """Returns the text in which a filter searches."""
    state: Callable[[Any], str]
    """Returns the state of an item, which selects its style."""


class Sort(NamedTuple):
    """The order of a table."""

    column: int
    """The place of the column."""
    reverse: bool = False


def share_done(batch: BatchRow) -> float:
    """Return the share of the fetches of a batch that have a result."""
    total = batch.counts.total
    return min(batch.done, total) / total if total > 0 else 0.0


def progress_bar(share: float) -> str:
    """Return a share as a bar and in percent: 100 % only if it is 1."""
    full = int(share * BAR_CELLS)
    return f"{'█' * full}{'░' * (BAR_CELLS - full)} {int(share * 100):3} %"


def _count(value: int, _: int) -> str:
    return f"{value:,}"


def _rate(value: float, _: int) -> str:
    return f"{value:,.1f}"


def _size(value: float, _: int) -> str:
    return size(value)


def _age(value: float, _: int) -> str:
    return age(value)


def _since(value: int, now_ms: int) -> str:
    return age((now_ms - value) / 1000)


def _until(value: int, now_ms: int) -> str:
    return age((value - now_ms) / 1000) if value > now_ms else ""


HOSTS = ItemTable(
    "hosts",
    (
        ItemColumn("host", 0, lambda of: of.host),
        ItemColumn("state", 8, lambda of: of.state),
        ItemColumn("in flight", 9, lambda of: of.in_flight, _count),
        ItemColumn("waiting", 10, lambda of: of.waiting, _count),
        ItemColumn("opens in", 8, lambda of: of.until_ms or 0, _until),
        ItemColumn("worker", 20, lambda of: of.worker or "", from_width=95),
        ItemColumn("why", 48, lambda of: of.why, from_width=140),
    ),
    key=lambda of: of.host,
    text=lambda of: f"{of.host} {of.state} {of.worker or ''}",
    state=lambda of: of.state,
)
WORKERS = ItemTable(
    "workers",
    (
        ItemColumn("worker", 0, lambda of: of.instance),
        ItemColumn("state", 8, lambda of: of.state),
        ItemColumn("lanes", 6, lambda of: of.lanes, _count),
        ItemColumn("in flight", 9, lambda of: of.in_flight, _count),
        ItemColumn("fetches/s", 9, lambda of: of.finished_per_s, _rate),
        ItemColumn("received/s", 10, lambda of: of.received_bytes_per_s, _size, from_width=75),
        ItemColumn("age", 7, lambda of: of.age_s, _age, from_width=85),
        ItemColumn("version", 10, lambda of: of.version, from_width=95),
        ItemColumn("engine", 7, lambda of: of.engine, from_width=105),
        ItemColumn("policy", 12, lambda of: of.policy, from_width=120),
    ),
    key=lambda of: of.instance,
    text=lambda of: f"{of.instance} {of.state}",
    state=lambda of: of.state,
)
BATCHES = ItemTable(
    "batches",
    (
        ItemColumn("batch", 0, lambda of: of.id),
        ItemColumn("state", 10, lambda of: of.state),
        ItemColumn("progress", BAR_CELLS + 6, share_done, lambda value, _: progress_bar(value)),
        ItemColumn("total", 10, lambda of: of.counts.total, _count),
        ItemColumn("failed", 8, lambda of: of.counts.failed, _count, from_width=65),
        ItemColumn("ETA", 7, lambda of: of.eta_s, _age, from_width=75),
        ItemColumn("age", 7, lambda of: of.created_ms, _since, from_width=85),
        ItemColumn("bytes", 9, lambda of: of.counts.bytes, _size, from_width=95),
        ItemColumn("results/s", 9, lambda of: of.rate_per_s, _rate, from_width=105),
    ),
    key=lambda of: of.id,
    text=lambda of: f"{of.id} {of.state}",
    state=lambda of: of.state,
)
TABLES = {table.name: table for table in (HOSTS, WORKERS, BATCHES)}

FIRST_SORTS = {"hosts": Sort(3), "workers": Sort(0), "batches": Sort(6)}
"""The order of each table at the start: most waiting fetches, names, and the newest first."""


def arranged(table: ItemTable, items: Iterable[Any], sort: Sort, text: str) -> list[Any]:
    """Return the items that contain the text, in order; equal ones in the order of their keys."""
    column, text = table.columns[sort.column], text.strip().lower()
    found = sorted((item for item in items if text in table.text(item).lower()), key=table.key)
    found.sort(key=column.order, reverse=column.is_number != sort.reverse)
    return found


def next_sort(table: ItemTable, sort: Sort, width: int) -> Sort:
    """Return the order by the next column that a table of this width shows."""
    places = [place for place, _ in widths(table, width)]
    return Sort(next((place for place in places if place > sort.column), places[0]))


def widths(table: ItemTable, width: int) -> list[tuple[int, int]]:
    """Return the place and the width of each column that a table of this width shows."""
    places = [place for place, column in enumerate(table.columns) if column.from_width <= width]
    fixed = sum(table.columns[place].width + 1 for place in places) - 1
    rest = max(MIN_WIDTH, width - fixed)
    return [(place, table.columns[place].width or rest) for place in places]


def heading(table: ItemTable, sort: Sort, width: int) -> Text:
    """Return the titles of the columns. An arrow marks the column of the order."""
    titles = []
    for place, cells in widths(table, width):
        column = table.columns[place]
        arrow = ("▼" if column.is_number != sort.reverse else "▲") if place == sort.column else ""
        titles.append(fitted(f"{arrow}{column.title}", cells, right=column.is_number))
    return Text(" ".join(titles), style="bold", no_wrap=True)


def row_text(table: ItemTable, item: Any, now_ms: int, width: int) -> Text:
    """Return an item as one line of the table."""
    line = Text(no_wrap=True)
    for place, cells in widths(table, width):
        column = table.columns[place]
        style = STYLES.get(table.state(item), "") if column.title == "state" else ""
        line.append(" " if line else "")
        line.append(fitted(shown(column.cell(item, now_ms)), cells, right=column.is_number), style)
    return line


def fitted(text: str, cells: int, *, right: bool = False) -> str:
    """Return a text of exactly this width; a longer one ends with an ellipsis."""
    length = cell_len(text)
    if length > cells:
        return f"{set_cell_size(text, cells - 1)}…"
    padding = " " * (cells - length)
    return padding + text if right else text + padding


def window(count: int, cursor: int, first: int, height: int) -> int:
    """Return the first visible row: the cursor is visible, and the view moves as little as possible."""
    if height <= 0:
        return 0
    first = min(first, max(0, count - height))
    return max(0, min(max(first, cursor - height + 1), cursor))


def place_of(table: ItemTable, items: Sequence[Any], key: str | None, place: int) -> int:
    """Return the place of the item with a key; if it is gone, the nearest place to the former one."""
    for found, item in enumerate(items):
        if table.key(item) == key:
            return found
    return max(0, min(place, len(items) - 1))
