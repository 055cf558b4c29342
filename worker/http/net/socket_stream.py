"""A connection over its socket, which the loop watches: nothing comes into memory before somebody reads.

One piece at a time, then: how much a connection holds does not depend on how fast its host is, or how slow
the disk. And what a host says unasked while the connection is idle stays with the kernel, where it is seen.
"""

import asyncio
import select
import socket
import ssl
from typing import Any

import httpcore2

from fetchfleet.worker.http.net.tls_stream import sealed

READ_BYTES = 256 * 1024
"""The largest piece, whatever httpcore2 asks for: larger ones are less work, and its parsers take any."""


class Line(httpcore2.AsyncNetworkStream):
    """A connection, from its connected socket, which is the line's from now on and does not block.

    into: where pieces are received, READ_BYTES of it; all lines of a loop may share it, for none keeps
    anything there. Raises OSError where the host has hung up meanwhile; the socket is closed then.
    """

    def __init__(self, connected: socket.socket, into: memoryview) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._into = into
        self._piece: bytes | None = None
        """What has come for a reader who has not taken it yet; empty at the end."""
        self._error: OSError | None = None
        self._reading: asyncio.Future[bool] | None = None
        self._writing: asyncio.Future[bool] | None = None
        self._closed = False
        self._watched = False
        """Whether the loop tells of what comes. It does until something has come that nobody wants yet."""
        try:
            self._peer = connected.getpeername()
        except OSError:
            connected.close()
            raise
        self._number = connected.fileno()
        self._poll = select.poll()
        self._poll.register(self._number, select.POLLIN)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109
        """What has come, READ_BYTES at most; empty at the end.

        Raises httpcore2.ReadError or ReadTimeout.
        """
        if not self._watched:
            self._take()
        if self._piece is None and self._error is None:
            self._watch()
            reading = self._reading = self._loop.create_future()
            try:
                if not await self._in_time(reading, timeout):
                    raise httpcore2.ReadTimeout(f"nothing came within {timeout} s")
            finally:
                self._reading = None
        piece, self._piece = self._piece, None
        if piece is None:
            raise httpcore2.ReadError(self._error) from self._error
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 httpcore2's
        """Return once the kernel has all of it; raises httpcore2.WriteError or WriteTimeout.

        What the host sent before it hung up can be read nevertheless.
        """
        if not buffer:
            return
        sent = self._sent(buffer)
        if sent < len(buffer):
            await self._send_rest(memoryview(buffer)[sent:], timeout)

    async def aclose(self) -> None:
        """Hang up, whatever is under way; again without harm."""
        if self._closed:
            return
        self._closed = True
        self._unwatch()
        self._loop.remove_writer(self._number)
        self._error = ConnectionAbortedError("the connection was closed")
        self._socket.close()
        for waiting in (self._reading, self._writing):
            if waiting is not None:
                _tell(waiting, come=True)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2's signature
    ) -> httpcore2.AsyncNetworkStream:
        """The same connection under TLS; raises TlsTimeoutError or TlsError, this one being closed."""
        return await sealed(self, ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        """`server_addr`; `unread`: whether something has come that nobody has read, its end included.

        `is_readable` says so too, but as far as the loop has told; the kernel is asked only where the loop
        would not tell. Each idle connection is asked several times a fetch.
        """
        if info == "is_readable":
            return self._has_news() or (not self._watched and self._kernel_has_news())
        if info == "unread":
            return self._has_news() or self._kernel_has_news()
        if info == "server_addr":
            return self._peer
        return self._socket if info == "socket" else None

    def _has_news(self) -> bool:
        return self._piece is not None or self._error is not None

    def _kernel_has_news(self) -> bool:
        return bool(self._poll.poll(0))

    async def _in_time(self, waiting: asyncio.Future[bool], wait_s: float | None) -> bool:
        """Whether what is waited for comes within wait_s."""
        if wait_s is None:
            return await waiting
        late = self._loop.call_later(wait_s, _tell, waiting, False)  # noqa: FBT003 its arguments
        try:
            return await waiting
        finally:
            late.cancel()

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._number, self._came)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._number)

    def _came(self) -> None:
        """The loop says so, and would again and again: what nobody waits for waits with the kernel."""
        if self._reading is None or self._reading.done():
            self._unwatch()
            return
        self._take()
        if self._has_news():
            _tell(self._reading, come=True)

    def _take(self) -> None:
        """A piece from the kernel, if it has one, and there is none here."""
        if self._has_news():
            return
        try:
            size_bytes = self._socket.recv_into(self._into)
        except BlockingIOError:
            return
        except OSError as error:
            self._error = error
        else:
            self._piece = bytes(self._into[:size_bytes])

    async def _send_rest(self, rest: memoryview, wait_s: float | None) -> None:
        try:
            async with asyncio.timeout(wait_s):
                while rest:
                    await self._room()
                    rest = rest[self._sent(rest) :]
        except TimeoutError:
            raise httpcore2.WriteTimeout(f"not all was taken within {wait_s} s") from None

    async def _room(self) -> None:
        """Until the kernel may take more, or the connection is closed."""
        writing = self._writing = self._loop.create_future()
        self._loop.add_writer(self._number, _tell, writing, True)  # noqa: FBT003 its arguments
        try:
            await writing
        finally:
            self._writing = None
            if not self._closed:  # else its number may be another's
                self._loop.remove_writer(self._number)

    def _sent(self, data: bytes | memoryview) -> int:
        """How much of it the kernel has taken; raises httpcore2.WriteError."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise httpcore2.WriteError(error) from error


def _tell(waiting: asyncio.Future[bool], come: bool) -> None:  # noqa: FBT001 call_later's
    if not waiting.done():  # else it was given up
        waiting.set_result(come)
