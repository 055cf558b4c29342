"""Connections, read in larger pieces than httpcore2 asks for, and one piece at a time.

Larger pieces are less work. One at a time, for libuv reads on for up to 32 of them: several
MiB of each connection would come into memory at once, however slow the disk is.
"""

import asyncio
from typing import Any

import httpcore2

from worker.http.over import Over

READ_BYTES = 256 * 1024
"""As much as uvloop takes from the kernel at once. TLS brings 16 KiB at a time whatever one asks for."""


class Wide(Over):
    """A connection whose reads ask for READ_BYTES at least; parsers take whatever comes."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        super().__init__(stream)
        _pause_after_each_piece(stream)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """What has come; more than max_bytes perhaps."""
        return await self._stream.read(max(max_bytes, READ_BYTES), timeout)


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
