"""A port whose connections time out: the kernel drops new ones, as an unreachable host would."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

FILLERS = 8


@contextmanager
def deaf(host: str, port: int) -> Iterator[None]:
    """Let connections to the port hang for the length of a block: its accept queue stays full."""
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
