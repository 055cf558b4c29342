"""Sorts any number of lines in bounded memory: sorted runs in temporary files, merged at the end."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import IO

MEMORY_BYTES = 4 << 20
"""The size of the lines in memory at which they are written to a run."""

MAX_RUNS = 64
"""The number of runs at which they are merged into one. Each is an open file."""


class SortedLines:
    """Lines to be sorted. Call `close` at the end.

    new_file: creates a temporary file for reading and writing.
    """

    def __init__(self, new_file: Callable[[], IO[bytes]], memory_bytes: int = MEMORY_BYTES) -> None:
        self._new_file = new_file
        self._memory_bytes = memory_bytes
        self._lines: list[bytes] = []
        self._lines_bytes = 0
        self._runs: list[IO[bytes]] = []

    def add(self, line: bytes) -> None:
        """Add a line, which ends with a line feed. Raises OSError."""
        self._lines.append(line)
        self._lines_bytes += len(line)
        if self._lines_bytes >= self._memory_bytes:
            self._write_run(sorted(self._lines))
            self._lines, self._lines_bytes = [], 0
            if len(self._runs) == MAX_RUNS:
                runs, self._runs = self._runs, []
                try:
                    self._write_run(_merged(runs))
                finally:
                    _close(runs)

    def __iter__(self) -> Iterator[bytes]:
        """Yield all lines, sorted by their bytes. Raises OSError."""
        return heapq.merge(_merged(self._runs), sorted(self._lines))

    def close(self) -> None:
        """Close the temporary files, which removes them."""
        _close(self._runs)
        self._runs, self._lines = [], []

    def _write_run(self, lines: Iterable[bytes]) -> None:
        run = self._new_file()
        self._runs.append(run)
        run.writelines(lines)


def _merged(runs: list[IO[bytes]]) -> Iterator[bytes]:
    for run in runs:
        run.seek(0)
    return heapq.merge(*runs)


def _close(runs: list[IO[bytes]]) -> None:
    for run in runs:
        run.close()
