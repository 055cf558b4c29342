"""A connection on its socket, watched by the event loop: bytes enter memory only when something reads.

A connection holds one piece at a time, so its memory depends neither on the speed of the host nor on that of
the disk. Bytes that a host sends while the connection is idle stay in the kernel, where they are detected.
"""

import asyncio
import select
import socket
import ssl
from typing import Any

import httpcore2

from fetchfleet.worker.http.net.tls_stream import wrap_tls

READ_BYTES = 256 * 1024
"""The largest piece, whatever httpcore2 asks for: larger ones are less work, and its parsers take any."""


class SocketStream(httpcore2.AsyncNetworkStream):
    """A connection, given its connected, non-blocking socket, which it owns from now on.

    receive_buffer: READ_BYTES of memory; all streams of a loop may share it, as none keeps data in it.
    Raises OSError if the host has hung up; the socket is closed then.
    """

    def __init__(self, connected: socket.socket, receive_buffer: memoryview) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._receive_buffer = receive_buffer
        self._piece: bytes | None = None
        """A received piece that nothing has read yet; empty at the end."""
        self._error: OSError | None = None
        self._reading: asyncio.Future[bool] | None = None
        self._writing: asyncio.Future[bool] | None = None
        self._closed = False
        self._watched = False
        """Whether the loop reports readability: until it reports some while nothing reads."""
        try:
            self._peer = connected.getpeername()
        except OSError:
            connected.close()
            raise
        self._number = connected.fileno()
        self._poll = select.poll()
        self._poll.register(self._number, select.POLLIN)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109
        """Return the next piece, of READ_BYTES at most; empty at the end.

        Raises httpcore2.ReadError or ReadTimeout.
        """
        if not self._watched:
            self._receive()
        if self._piece is None and self._error is None:
            if not self._watched:
                self._watched = True
                self._loop.add_reader(self._number, self._readable)
            reading = self._reading = self._loop.create_future()
            late = None if timeout is None else self._loop.call_later(timeout, _resolve, reading, False)  # noqa: FBT003
            try:
                if not await reading:
                    raise httpcore2.ReadTimeout(f"received nothing within {timeout} s")
            finally:
                self._reading = None
                if late is not None:
                    late.cancel()
        piece, self._piece = self._piece, None
        if piece is None:
            raise httpcore2.ReadError(self._error) from self._error
        return piece

    def _readable(self) -> None:
        """Take a report of the loop; without a reader, the bytes stay in the kernel and reports stop."""
        if self._reading is None or self._reading.done():
            self._unwatch()
            return
        self._receive()
        if self._has_news():
            _resolve(self._reading, come=True)

    def _receive(self) -> None:
        """Take a piece from the kernel, if it has one and none is held here."""
        if self._has_news():
            return
        try:
            size_bytes = self._socket.recv_into(self._receive_buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._error = error
        else:
            self._piece = bytes(self._receive_buffer[:size_bytes])

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 httpcore2's
        """Return once the kernel has all of it; raises httpcore2.WriteError or WriteTimeout.

        Bytes that the host sent before it hung up can still be read afterwards.
        """
        if not buffer:
            return
        sent = self._send(buffer)
        if sent == len(buffer):
            return
        rest = memoryview(buffer)[sent:]
        try:
            async with asyncio.timeout(timeout):
                while rest:
                    writing = self._writing = self._loop.create_future()
                    self._loop.add_writer(self._number, _resolve, writing, True)  # noqa: FBT003
                    try:
                        await writing
                    finally:
                        self._writing = None
                        if not self._closed:  # else the number may be another socket's
                            self._loop.remove_writer(self._number)
                    rest = rest[self._send(rest) :]
        except TimeoutError:
            raise httpcore2.WriteTimeout(f"could not send everything within {timeout} s") from None

    def _send(self, data: bytes | memoryview) -> int:
        """Return how many bytes the kernel took; raises httpcore2.WriteError."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise httpcore2.WriteError(error) from error

    async def aclose(self) -> None:
        """Close the socket, and end a read or write under way; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._unwatch()
        self._loop.remove_writer(self._number)
        self._error = ConnectionAbortedError("the connection was closed")
        self._socket.close()
        for waiting in (self._reading, self._writing):
            if waiting is not None:
                _resolve(waiting, come=True)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2's signature
    ) -> httpcore2.AsyncNetworkStream:
        """Return this connection under TLS; raises TlsTimeoutError or TlsError after closing it."""
        return await wrap_tls(self, ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        """Return `server_addr`, `socket`, or whether unread bytes, or the end, have arrived.

        `unread` always asks the kernel. `is_readable` asks it only if the loop would not report them: the
        pool asks this of each idle connection several times per fetch.
        """
        if info == "is_readable":
            return self._has_news() or (not self._watched and bool(self._poll.poll(0)))
        if info == "unread":
            return self._has_news() or bool(self._poll.poll(0))
        if info == "server_addr":
            return self._peer
        return self._socket if info == "socket" else None

    def _has_news(self) -> bool:
        return self._piece is not None or self._error is not None

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._number)


def _resolve(waiting: asyncio.Future[bool], come: bool) -> None:  # noqa: FBT001 call_later's
    if not waiting.done():  # else it was cancelled
        waiting.set_result(come)
