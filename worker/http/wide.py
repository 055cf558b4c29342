"""Connections, read in larger pieces than httpcore2 asks for, and one piece at a time.

Larger pieces are less work. One at a time, for libuv reads on for up to 32 of them: several
MiB of each connection would come into memory at once, however slow the disk is.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Any

import httpcore2

from worker.http.over import Over

READ_BYTES = 256 * 1024
"""As much as uvloop takes from the kernel at once. TLS brings 16 KiB at a time whatever one asks for."""


class Wide(Over):
    """A connection whose reads ask for READ_BYTES at least; parsers take whatever comes."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        super().__init__(stream)
        self._unread = _unread(stream)
        _pause_after_each_piece(stream)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """What has come; more than max_bytes perhaps."""
        return await self._stream.read(max(max_bytes, READ_BYTES), timeout)

    def get_extra_info(self, info: str) -> Any:
        """Of the connection below. Each idle one is asked several times a fetch if something has come."""
        if info == "is_readable" and self._unread is not None:
            return self._unread()
        return super().get_extra_info(info)


def _unread(stream: httpcore2.AsyncNetworkStream) -> Callable[[], bool] | None:
    """Tells whether something has come that nobody has read, or the connection is closed.

    httpcore2 and anyio put a table of attributes together to find the socket, each time that they are asked.
    """
    transport: Any = getattr(getattr(stream, "_stream", None), "_transport", None)
    connected: Any = None if transport is None else transport.get_extra_info("socket")
    if connected is None:
        return None
    number = connected.fileno()

    def unread() -> bool:
        if transport.is_closing():  # and the number perhaps another's
            return True
        poll = select.poll()
        poll.register(number, select.POLLIN)
        return bool(poll.poll(0))

    return unread


def _pause_after_each_piece(stream: httpcore2.AsyncNetworkStream) -> None:
    """By itself anyio pauses when the reader has its turn; it resumes when it has nothing for the reader.

    It shows its protocol to nobody: where it should have another, memory is bounded less well.
    """
    socket_stream = getattr(stream, "_stream", None)
    protocol: Any = getattr(socket_stream, "_protocol", None)
    transport: Any = getattr(socket_stream, "_transport", None)
    if not isinstance(protocol, asyncio.Protocol) or transport is None:
        return
    received = protocol.data_received

    def receive_and_pause(data: bytes) -> None:
        received(data)
        transport.pause_reading()

    transport.pause_reading()  # until somebody reads
    protocol.data_received = receive_and_pause  # type: ignore[method-assign]
    transport.set_protocol(protocol)  # uvloop keeps the method itself
