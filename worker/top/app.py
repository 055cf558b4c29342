"""The application of `fetchfleet top`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import Input, Static

from fetchfleet.jobs.client.submit import Notify
from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.jobs.redis_errors import is_refusal
from fetchfleet.worker.inspect import event_tail
from fetchfleet.worker.inspect.event_tail import EventFilter
from fetchfleet.worker.inspect.views.batches import batch_detail
from fetchfleet.worker.inspect.views.hosts import host_detail
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.top import columns, picture, texts
from fetchfleet.worker.top.columns import BATCHES, FIRST_SORTS, HOSTS, TABLES, WORKERS, Sort
from fetchfleet.worker.top.picture import Picture, read_picture
from fetchfleet.worker.top.screens import DetailScreen, KeysScreen, QuestionScreen
from fetchfleet.worker.top.widgets import Items, Lines, Tail
from fetchfleet.worker.util.clock import mono_s

READ_EVERY_S = 1.0
COST_FACTOR = 10
"""A pause after a read is at least that many times its duration, so that a large fleet costs little."""
TAIL_PAUSE_S = 1.0

TALL = 36
"""The height from which a terminal is tall."""

TAIL_SIZES = ("few", "many", "none")
"""The sizes of the tail of events, in the order in which the key `e` selects them."""

HELP = "? help  q quit  enter open  p pause  / filter  s sort  e events"
HIDDEN_EVENTS = frozenset({"worker.heartbeat", "fleet.status"})
"""Events that come at intervals. Their content is in the head."""
FINISHED = "fetch.finished"
"""The event of a fetch with a result. Fetches that succeed would hide all other events of a fleet."""


class TopApp(App[None]):
    """The fleet live in a terminal.

    source: the Redis, as it is shown. given: a policy file in place of that of the workers, or NO_POLICY.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; overflow: hidden; background: ansi_default; color: ansi_default; }
    #head, #problems, #bar, .title, .keys { height: auto; padding: 0 1; }
    #problems { height: 2; }
    .tall #problems { height: 4; }
    Items { height: 1fr; min-height: 3; padding: 0 1; }
    #filter { height: 1; border: none; padding: 0 1; display: none; background: ansi_default; }
    Lines { text-wrap: nowrap; text-overflow: ellipsis; }
    #page { text-wrap: wrap; }
    Tail { height: 6; padding: 0 1; border-top: solid ansi_bright_black; }
    .tall Tail { height: 14; }
    Tail.many { height: 60%; }
    Tail.none { display: none; }
    VerticalScroll { height: 1fr; padding: 0 1; }
    .keys { height: 1; }
    QuestionScreen, KeysScreen { align: center middle; }
    .box { width: auto; max-width: 90%; height: auto; padding: 1 2; border: round ansi_default; }
    .box Static { width: auto; }
    """
    # The colours are those of the terminal.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", show=False),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("h", "table('hosts')", show=False),
        Binding("w", "table('workers')", show=False),
        Binding("b", "table('batches')", show=False),
        Binding("e", "events", show=False),
        Binding("s", "sort", show=False),
        Binding("p", "pause", show=False),
        Binding("slash", "filter", show=False),
        Binding("escape", "end_filter", show=False),
        Binding("question_mark", "keys", show=False),
        *(Binding(str(place), f"sort_by({place - 1})", show=False) for place in range(1, 10)),
    ]

    def __init__(self, redis: Redis, notify: Notify, source: str, given: Policy) -> None:
        super().__init__(ansi_color=True)
        self._redis = redis
        self._notify_lanes = notify
        self._source = source
        self._given = given
        self._table = HOSTS
        self._sorts = dict(FIRST_SORTS)
        self._searches = dict.fromkeys(TABLES, "")
        self._picture: Picture | None = None
        self._trouble = ""
        self._trouble_s = 0.0
        """The time at which the trouble began."""
        self._asked = asyncio.Event()
        """Set to read the fleet without delay."""

    def compose(self) -> ComposeResult:
        """Yield the widgets."""
        yield Lines(id="head")
        yield Lines(id="problems")
        yield Lines(id="bar")
        yield Items()
        yield Input(id="filter", placeholder="part of a name or state", select_on_focus=False)
        yield Tail(EventFilter())
        yield Static(Text(HELP, "dim", no_wrap=True), classes="keys")

    def on_mount(self) -> None:
        """Follow the fleet."""
        self.query_one(Items).focus()
        self._show()
        self.run_worker(self._follow())
        self.run_worker(self._tail())
        self.set_interval(1.0, self._show_head)

    def on_resize(self, event: Resize) -> None:
        """Give a tall terminal more lines for problems."""
        self.screen_stack[0].set_class(event.size.height >= TALL, "tall")

    async def _follow(self) -> None:
        """Read and show the fleet until the display ends."""
        while True:
            self._asked.clear()
            began_s = mono_s()
            try:
                self._picture = await read_picture(self._redis, with_batches=self._table is BATCHES)
                self._trouble = ""
            except (RedisError, OSError) as error:
                self._note_trouble(error)
            self._show()
            pause_s = max(READ_EVERY_S, COST_FACTOR * (mono_s() - began_s) if not self._trouble else 0)
            try:
                async with asyncio.timeout(pause_s):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def _tail(self) -> None:
        """Show the log lines of the fleet until the display ends."""
        tail = self.screen_stack[0].query_one(Tail)
        tail.note = "no event yet"
        while True:
            try:
                async with aclosing(event_tail.events(self._redis)) as lines:
                    async for line in lines:
                        fields = event_tail.fields_of(line)
                        if fields is None or fields["event"] in HIDDEN_EVENTS:
                            continue
                        if fields["event"] != FINISHED or fields.get("outcome") == "failed":
                            tail.add(fields)
                        if isinstance(self.screen, DetailScreen):
                            self.screen.add(fields)
            except (RedisError, OSError) as error:
                if is_refusal(error):
                    tail.note = f"no events: {redact.text(error)}"
                    tail.refresh()
                await asyncio.sleep(TAIL_PAUSE_S)

    def _note_trouble(self, error: Exception) -> None:
        if not self._trouble:
            self._trouble_s = mono_s()
        self._trouble = shown(redact.text(error)) or type(error).__name__

    def _show(self) -> None:
        """Show the picture in all widgets."""
        self._show_head()
        items = self._items()
        self.screen_stack[0].query_one(Items).show(
            self._table, items, self._sorts[self._table.name], self._now_ms
        )

    @property
    def _now_ms(self) -> int:
        return self._picture.overview.now_ms if self._picture else 0

    def _items(self) -> list[Any]:
        """Return the rows of the table."""
        name = self._table.name
        return columns.arranged(self._table, self._all_items(name), self._sorts[name], self._searches[name])

    def _all_items(self, name: str) -> Iterable[Any]:
        fleet = self._picture
        if fleet is None:
            return ()
        if name == BATCHES.name:
            return fleet.batches.batches if fleet.batches else ()
        return fleet.hosts if name == HOSTS.name else fleet.workers

    def _show_head(self) -> None:
        """Show the head: it has the time of the picture, and since when Redis does not answer."""
        main, fleet = self.screen_stack[0], self._picture
        title = Text.assemble(("fetchfleet", "bold"))
        if self._trouble:
            since = f"for {mono_s() - self._trouble_s:.0f} s"
            title.append(f"   Redis does not answer {since}: {self._trouble}", "bold red")
        else:
            title.append(f"   {texts.clock(self._now_ms)} UTC" if fleet else "")
            title.append(f"   {shown(self._source)}", "dim")
        main.query_one("#head", Lines).show([title, *(texts.head(fleet) if fleet else ())])
        problems = main.query_one("#problems", Lines)
        problems.show(texts.worst([*texts.problems(fleet)], problems.size.height) if fleet else ())
        main.query_one("#bar", Lines).show([self._bar()])

    def _bar(self) -> Text:
        """Return the names of the tables, and the filter."""
        bar = Text(no_wrap=True)
        for name in TABLES:
            style = "reverse bold" if name == self._table.name else ""
            bar.append(f" {name[0]} {name} ", style).append(" ")
        if text := self._searches[self._table.name]:
            bar.append(f"  only with: {shown(text)}", "yellow")
        return bar

    def action_table(self, name: str) -> None:
        """Show a table."""
        self._table = TABLES[name]
        self.query_one(Items).focus()
        self._asked.set()
        self._show()

    def action_sort(self) -> None:
        """Sort by the next column."""
        name, width = self._table.name, self.query_one(Items).size.width
        self._sorts[name] = columns.next_sort(self._table, self._sorts[name], width)
        self._show()

    def action_sort_by(self, place: int) -> None:
        """Sort by a column; if the table is sorted by it, in the other direction."""
        if place < len(self._table.columns):
            name = self._table.name
            sort = self._sorts[name]
            self._sorts[name] = Sort(place, reverse=sort.column == place and not sort.reverse)
            self._show()

    def action_events(self) -> None:
        """Change the height of the tail of events."""
        tail = self.query_one(Tail)
        few, many, none = TAIL_SIZES
        after = {few: many, many: none, none: few}
        size = next((size for size in (many, none) if tail.has_class(size)), few)
        tail.remove_class(many, none).add_class(after[size])

    def action_filter(self) -> None:
        """Ask for the text of the filter."""
        asked = self.query_one("#filter", Input)
        asked.value = self._searches[self._table.name]
        asked.display = True
        asked.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Apply the text of the filter while it is typed."""
        self._searches[self._table.name] = event.value
        self._show()

    def on_input_submitted(self) -> None:
        """Return to the table; the filter stays."""
        self.query_one("#filter", Input).display = False
        self.query_one(Items).focus()

    def action_end_filter(self) -> None:
        """End the filter."""
        self._searches[self._table.name] = ""
        self.on_input_submitted()
        self._show()

    def action_keys(self) -> None:
        """Show the keys."""
        self.push_screen(KeysScreen())

    def on_items_opened(self) -> None:
        """Show the host or the batch at the cursor."""
        key = self.query_one(Items).key
        if key is None or self._table is WORKERS:
            return
        if self._table is HOSTS:
            screen = DetailScreen(key, partial(self._host_page, key), EventFilter(host=key), key)
        else:
            screen = DetailScreen(f"batch {key}", partial(self._batch_page, key), EventFilter())
        self.push_screen(screen)

    async def _host_page(self, host: str) -> Iterable[Text]:
        return texts.host_page(await host_detail(self._redis, host, self._given))

    async def _batch_page(self, batch: str) -> Iterable[Text]:
        detail = await batch_detail(self._redis, batch)
        return [Text("this batch is not in Redis any more")] if detail is None else texts.batch_page(detail)

    async def action_pause(self) -> None:
        """Pause the selected host after a question, or resume it."""
        host = self.screen.host if isinstance(self.screen, DetailScreen) else self._selected_host()
        if host is None:
            return
        try:
            stop = await picture.pause_of(self._redis, self._given, host)
        except (RedisError, OSError) as error:
            self._say(redact.text(error), failed=True)
            return
        if stop is not None:
            await self._do(picture.resume, host)
            return

        async def answered(yes: bool | None) -> None:  # noqa: FBT001 textual calls it
            if yes:
                await self._do(picture.pause, host)

        question = f"Pause {host}? No fetch starts until it is resumed."
        self.push_screen(QuestionScreen(question), answered)

    def _selected_host(self) -> str | None:
        return self.query_one(Items).key if self._table is HOSTS else None

    async def _do(self, change: Callable[[Redis, Notify, Policy, str], Awaitable[str]], host: str) -> None:
        """Change the pause of a host, and say what was done."""
        try:
            self._say(await change(self._redis, self._notify_lanes, self._given, host))
        except (RedisError, OSError, PolicyError) as error:
            self._say(redact.text(error), failed=True)
        self._asked.set()

    def _say(self, message: str, *, failed: bool = False) -> None:
        self.notify(shown(message), severity="error" if failed else "information", markup=False)
