"""A port whose connection attempts time out, like those to an unreachable host."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

FILLERS = 8


@contextmanager
def unreachable_port(host: str, port: int) -> Iterator[None]:
    """Make connections to the port hang for the length of a block.

    The accept queue stays full, so the kernel drops every SYN.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(FILLERS):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)  # noqa: FBT003
            filler.connect_ex((host, port))
        yield
