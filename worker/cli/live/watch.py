"""A picture that is shown again and again: `status --watch`."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.console import RenderableType

from fetchfleet.worker.cli.common import printing
from fetchfleet.worker.local.output.progress import SafeConsole

T = TypeVar("T")

HOME, CLEAR, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"
"""Control sequences of a terminal (ECMA-48): cursor to the first place, and what to erase."""

BLOCK_WIDTH = 200
"""The columns of a picture that is not printed on a terminal."""


def in_place(picture: str, height: int) -> str:
    """Return what redraws a picture on a terminal without flicker. Lines beyond its height are cut. Pure."""
    lines = picture.splitlines()[: height - 1]
    return HOME + "".join(f"{line}{REST_OF_LINE}\n" for line in lines) + REST_OF_SCREEN


class Screen:
    """Standard output, on which each picture replaces the last one; elsewhere a picture follows another."""

    def __init__(self) -> None:
        self._console = SafeConsole(width=None if sys.stdout.isatty() else BLOCK_WIDTH)
        self._redraws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._is_first = True

    def show(self, picture: RenderableType) -> None:
        """Show a picture. Raises CommandError if standard output fails."""
        with printing():
            if self._redraws:
                with self._console.capture() as captured:
                    self._console.print(picture)
                start = CLEAR if self._is_first else ""
                sys.stdout.write(start + in_place(captured.get(), self._console.height))
            else:
                if not self._is_first:
                    sys.stdout.write("\n")
                self._console.print(picture)
            sys.stdout.flush()
        self._is_first = False


async def show_at_intervals(
    read: Callable[[], Awaitable[T]], show: Callable[[T], None], every_s: float
) -> None:
    """Read and show the state at intervals, until cancelled."""
    while True:
        show(await read())
        await asyncio.sleep(every_s)
