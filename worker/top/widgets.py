"""The widgets of the display: a table with a cursor, the tail of events, and lines of text."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Click, MouseScrollDown, MouseScrollUp
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from fetchfleet.worker.inspect.event_tail import EventFilter
from fetchfleet.worker.top.columns import (
    HOSTS,
    ItemTable,
    Sort,
    heading,
    place_of,
    row_text,
    window,
)
from fetchfleet.worker.top.event_text import event_text

EVENTS_KEPT = 500


class Lines(Static):
    """Lines of text, each cut at the edge of the screen."""

    _shown = Text()

    def show(self, lines: Iterable[Text]) -> None:
        """Replace the lines, if they have changed. Their number alone changes the layout."""
        text = Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
        text.no_wrap, text.overflow = True, "ellipsis"
        if text != self._shown:
            self.update(text, layout=text.plain.count("\n") != self._shown.plain.count("\n"))
            self._shown = text


class Items(Widget, can_focus=True):
    """A table of items with a cursor, which stays at its item when the order changes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown,space", "page(1)", show=False),
        Binding("home", "move(-1000000)", show=False),
        Binding("end", "move(1000000)", show=False),
        Binding("enter", "open", show=False),
    ]

    class Opened(Message):
        """An item was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.table: ItemTable = HOSTS
        self.items: Sequence[Any] = ()
        self.cursor = 0
        """The place of the cursor."""
        self._first = 0
        """The place of the first visible item."""
        self._sort = Sort(0)
        self._now_ms = 0
        self._drawn = Text()

    @property
    def key(self) -> str | None:
        """The key of the item at the cursor; None without items."""
        return self.table.key(self.items[self.cursor]) if self.items else None

    def show(self, table: ItemTable, items: Sequence[Any], sort: Sort, now_ms: int) -> None:
        """Replace the items."""
        same = table is self.table
        key = self.key if same else None
        self.table, self.items, self._sort, self._now_ms = table, items, sort, now_ms
        self.cursor = place_of(table, items, key, self.cursor if same else 0)
        if self._text() != self._drawn:
            self.refresh()

    def render(self) -> Text:
        """Return the titles and the visible items."""
        self._drawn = self._text()
        return self._drawn

    def _text(self) -> Text:
        width, height = self.size.width, self.size.height - 1
        self._first = window(len(self.items), self.cursor, self._first, height)
        lines = [heading(self.table, self._sort, width)]
        for place, item in enumerate(self.items[self._first : self._first + height], self._first):
            line = row_text(self.table, item, self._now_ms, width)
            if place == self.cursor:
                line.stylize("reverse")
            lines.append(line)
        return Text("\n", no_wrap=True).join(lines)

    def action_move(self, steps: int) -> None:
        """Move the cursor."""
        self.cursor = max(0, min(self.cursor + steps, len(self.items) - 1))
        self.refresh()

    def action_page(self, pages: int) -> None:
        """Move the cursor by the visible items."""
        self.action_move(pages * max(1, self.size.height - 2))

    def action_open(self) -> None:
        """Open the item at the cursor."""
        if self.items:
            self.post_message(self.Opened())

    def on_click(self, event: Click) -> None:
        """Move the cursor to an item."""
        if 1 <= event.y <= len(self.items) - self._first:
            self.action_move(self._first + event.y - 1 - self.cursor)

    def on_mouse_scroll_down(self, _: MouseScrollDown) -> None:
        """Move the cursor."""
        self.action_move(3)

    def on_mouse_scroll_up(self, _: MouseScrollUp) -> None:
        """Move the cursor."""
        self.action_move(-3)


class Tail(Widget):
    """The last log lines of the fleet."""

    def __init__(self, wanted: EventFilter) -> None:
        super().__init__()
        self._wanted = wanted
        self._lines: deque[Mapping[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._is_changed = False
        self.note = ""
        """The text that is shown without lines."""

    def on_mount(self) -> None:
        """Draw new lines four times a second at most."""
        self.set_interval(0.25, self._draw)

    def add(self, fields: Mapping[str, Any]) -> None:
        """Add a line if it is wanted."""
        if self._wanted.admits(fields):
            self._lines.append(fields)
            self._is_changed = True

    def _draw(self) -> None:
        if self._is_changed:
            self._is_changed = False
            self.refresh()

    def render(self) -> Text:
        """Return the newest lines that fit, the newest last."""
        width, height = self.size
        lines = [event_text(fields, brief=True) for fields in [*self._lines][-height:]] if height > 0 else []
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return Text("\n", no_wrap=True).join(lines) if lines else Text(self.note, "dim")
