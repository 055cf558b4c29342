"""A server in a child process that responds to every request with two bytes, on many loopback hosts.

It counts the ends of requests and parses nothing else, so that it does not affect measurements.
"""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fetchfleet.worker.local.process import die_with_parent

ROOT = Path(__file__).parents[2]
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
BACKLOG = 1024


@contextmanager
def tiny_server(hosts: list[str]) -> Iterator[list[str]]:
    """Run the server during the block; yield the base URL of each host."""
    sockets = [socket.create_server((host, 0), backlog=BACKLOG) for host in hosts]
    urls = [f"http://{host}:{own.getsockname()[1]}" for host, own in zip(hosts, sockets, strict=True)]
    numbers = [listener.fileno() for listener in sockets]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.tiny_server", *map(str, numbers)],
        cwd=ROOT,
        pass_fds=numbers,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread is running yet
    )
    try:
        yield urls  # the sockets queue connections until the child accepts them
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        for listener in sockets:
            listener.close()


class _Connection(asyncio.Protocol):
    """A connection of a client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(RESPONSE * data.count(b"\r\n\r\n"))


async def _serve(numbers: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for number in numbers:
        await loop.create_server(_Connection, sock=socket.socket(fileno=number), backlog=BACKLOG)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve([int(number) for number in sys.argv[1:]]))
