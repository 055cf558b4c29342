"""A port that answers nobody: its kernel drops whoever would connect, as a dead network does."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

FILLERS = 8


@contextmanager
def deaf(host: str, port: int) -> Iterator[None]:
    """Whoever connects there waits, for the length of a block: its queue is full, and nobody accepts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(family))
        listening.bind((host, port))
        listening.listen(0)
        for _ in range(FILLERS):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)  # noqa: FBT003
            filler.connect_ex((host, port))
        yield
