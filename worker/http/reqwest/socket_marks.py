"""Hanging up on a host from outside of reqwest, which gives nobody its connections.

A request that is cancelled before its head has come goes on in reqwest, and the host is at work for nobody.
So each client marks its connections, by a TCP_USER_TIMEOUT that is its own (RFC 5482; it is longer than any
attempt, and so changes nothing), and by that mark they are found among the open files of this process.
"""

import itertools
import os
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path

FIRST_MARK_MS = 86_400_000
_OPEN_FILES = Path("/proc/self/fd")
_marks_ms = itertools.count(FIRST_MARK_MS)

CAN_HANG_UP = sys.platform == "linux"
"""Elsewhere a request that nobody wants ends by its own bound."""


def new_mark_ms() -> int:
    """A time-out that no other client's connections have."""
    return next(_marks_ms)


def hang_up(mark_ms: int) -> int:
    """Shut each connection with this mark, be it made or still being made; how many there were."""
    files = list(_OPEN_FILES.iterdir()) if CAN_HANG_UP else []
    return sum(_shut(int(file.name), mark_ms) for file in files)


def _shut(number: int, mark_ms: int) -> bool:
    """Whether the open file was one of those; by a copy, for its number may be reused meanwhile."""
    with suppress(OSError), closing(_Copy(number)) as copy:
        if copy.connection is not None and _mark_ms(copy.connection) == mark_ms:
            copy.connection.shutdown(socket.SHUT_RDWR)
            return True
    return False


class _Copy:
    """A second number for an open file; connection: None if it is no socket."""

    def __init__(self, number: int) -> None:
        self._number = os.dup(number)
        self.connection: socket.socket | None = None
        with suppress(OSError):
            self.connection = socket.socket(fileno=self._number)

    def close(self) -> None:
        """The other number stays."""
        if self.connection is not None:
            self.connection.close()
        else:
            os.close(self._number)


def _mark_ms(connection: socket.socket) -> int | None:
    is_tcp = connection.type is socket.SOCK_STREAM and connection.family in {socket.AF_INET, socket.AF_INET6}
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) if is_tcp else None
