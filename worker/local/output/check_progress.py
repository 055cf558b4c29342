"""The number of fetches that a command has checked, on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from fetchfleet.worker.local.lists.checked_list import Hosts
from fetchfleet.worker.util.clock import mono_s

LOOK_EVERY = 1000
"""The number of fetches between two looks at the clock."""
SHOW_EVERY_S = 0.5


class CheckProgress:
    """Passes the URLs of a list on, and shows their number. live: the line on the terminal."""

    def __init__(self, hosts: Hosts, live: Live, now_s: Callable[[], float]) -> None:
        self._hosts = hosts
        self._live = live
        self._now_s = now_s
        self._checked = 0
        self._shown_s = now_s()

    def add(self, url: str) -> None:
        """Count a fetch, given its canonical URL."""
        self._hosts.add(url)
        self._checked += 1
        if self._checked % LOOK_EVERY == 0 and (now_s := self._now_s()) >= self._shown_s + SHOW_EVERY_S:
            self._shown_s = now_s
            self._live.update(f"{self._checked:,} fetches checked", refresh=True)

    def clear(self) -> None:
        """Forget all fetches, because another pass begins."""
        self._hosts.clear()
        self._checked = 0


@contextmanager
def shown_while_checked(
    hosts: Hosts, console: Console, now_s: Callable[[], float] = mono_s
) -> Iterator[Hosts]:
    """Yield the receiver of the URLs of a list. On a terminal it shows their number until the block ends."""
    if not console.is_terminal:
        yield hosts
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield CheckProgress(hosts, live, now_s)
