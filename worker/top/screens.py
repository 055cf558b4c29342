"""The screens above the tables: a host, a batch, a question, and the keys."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar

from redis.exceptions import RedisError
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.worker.inspect.event_tail import EventFilter
from fetchfleet.worker.top.widgets import Lines, Tail

READ_EVERY_S = 1.0

KEYS = (
    ("h, w, b", "hosts, workers, batches"),
    ("arrows, page up/down", "select a row"),
    ("enter", "open the host or the batch"),
    ("p", "pause the host, or resume it"),
    ("/", "show rows with a text only"),
    ("s", "sort by the next column"),
    ("1 to 9", "sort by a column; again: reverse"),
    ("e", "events: few, many or none"),
    ("escape", "back; end the filter"),
    ("q, ctrl+c", "quit"),
)


class DetailScreen(Screen[None]):
    """One host or batch, read again every second."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace,left", "dismiss", show=False),
        Binding("p", "app.pause", show=False),
    ]

    def __init__(
        self,
        title: str,
        read: Callable[[], Awaitable[Iterable[Text]]],
        wanted: EventFilter,
        host: str | None = None,
    ) -> None:
        super().__init__()
        self.host = host
        """The host of the screen, which can be paused; None for a batch."""
        self._heading = title
        self._read = read
        self._tail = Tail(wanted)

    def compose(self) -> ComposeResult:
        """Yield the widgets."""
        keys = "escape back   p pause or resume   q quit" if self.host else "escape back   q quit"
        yield Static(Text(shown(self._heading), "bold"), classes="title")
        with VerticalScroll(can_focus=True):
            yield Lines(id="page")
        if self.host:
            yield self._tail
        yield Static(Text(keys, "dim"), classes="keys")

    def on_mount(self) -> None:
        """Read at once, and at intervals."""
        self.query_one(VerticalScroll).focus()
        self.set_interval(READ_EVERY_S, self.read)
        self.call_later(self.read)

    async def read(self) -> None:
        """Read and show the page. If Redis does not answer, the old one stays, and the title says so."""
        title = Text(shown(self._heading), "bold")
        try:
            lines = [*await self._read()]
        except (RedisError, OSError):
            title.append("   Redis does not answer", "bold red")
        else:
            self.query_one("#page", Lines).update(Text("\n").join(lines))
        self.query_one(".title", Static).update(title)

    def add(self, fields: Mapping[str, Any]) -> None:
        """Add a log line of the fleet."""
        self._tail.add(fields)


class QuestionScreen(ModalScreen[bool]):
    """A question that is answered by y or n."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", show=False),
        Binding("n,escape", "dismiss(False)", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Yield the widgets."""
        with Vertical(classes="box"):
            yield Static(Text.assemble(shown(self._question), ("\n\ny yes   n no", "bold")))


class KeysScreen(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,enter", "dismiss", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Yield the widgets."""
        width = max(len(keys) for keys, _ in KEYS)
        lines = [Text.assemble((f"{keys:{width}}", "bold"), f"  {what}") for keys, what in KEYS]
        with Vertical(classes="box"):
            yield Static(Text("\n").join(lines))
