"""TLS over a TCP transport of the event loop.

The loops' own TLS drops the received bytes of a paused connection when the host closes it. A body that ends
with the connection would then be stored truncated.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable
from typing import Any, Protocol, cast

from fetchfleet.worker.errors import TlsError, TlsTimeoutError

STEP_BYTES = 32 * 1024
"""The maximum number of bytes decrypted at once. OpenSSL's buffers never shrink."""
RECORD_BYTES = 16 * 1024
"""The largest TLS record (RFC 8446 §5.1); OpenSSL reads one at a time."""
MAX_RESET_BYTES = 256 * 1024
"""The maximum number of bytes that are read from a connection after its reset."""


class Receiver(Protocol):
    """The protocol above TLS: the methods of asyncio.Protocol."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Handle the start of the connection."""

    def data_received(self, data: bytes) -> None:
        """Handle received bytes."""

    def eof_received(self) -> bool | None:
        """Handle the end of the host's side of the connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""

    def pause_writing(self) -> None:
        """Stop writing: the write buffer is full."""

    def resume_writing(self) -> None:
        """Continue writing."""


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """A TLS connection: the protocol of the TCP transport, and the transport of the protocol above.

    protocol_of: returns the protocol above for the ALPN protocol, once the handshake has ended.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        host: str,
        protocol_of: Callable[[str | None], Receiver],
    ) -> None:
        super().__init__()
        self._established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake has ended, with its error if it failed."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._protocol_of = protocol_of
        self._above: Receiver | None = None
        """The protocol above; None until the handshake has ended."""
        self._below: asyncio.Transport
        """The TCP transport."""
        self._unwritten = bytearray()
        """Unencrypted bytes that wait until OpenSSL has read more."""
        self._paused = False
        self._ended = False
        """True if either side has closed the connection: no more bytes are passed on."""
        self._error: Exception | None = None

    # asyncio.Protocol, for the TCP transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the TCP transport."""
        self._below = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._descriptor = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        """Decrypt received bytes and pass them on; keep those received while reading is paused."""
        unread = memoryview(data)
        for at in range(0, len(data), STEP_BYTES):
            if self._ended:
                return
            self._incoming.write(unread[at : at + STEP_BYTES])
            self._continue_handshake()
            if self._above is not None and not self._paused and self._incoming.pending:
                self._read(self._above)

    def eof_received(self) -> None:
        """Pass the end of the host's side on, with or without a close_notify (RFC 8446 §6.1), and close."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end of the connection on, after the bytes that the host sent before a reset."""
        if exc is not None and not self._ended:
            self.data_received(read_after_reset(self._descriptor))
        self._ended = True
        if self._above is not None:
            self._above.connection_lost(self._error or exc)
        elif not self._established.done():
            closed = ConnectionError("the host closed the connection in the TLS handshake")
            self._established.set_exception(self._error or exc or closed)
            self._established.exception()  # mark as retrieved: a cancelled dial does not await it

    def pause_writing(self) -> None:
        """Pause the protocol above."""
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        """Resume the protocol above."""
        if self._above is not None:
            self._above.resume_writing()

    async def handshake(self, timeout_s: float) -> None:
        """Make the handshake on the connected TCP transport, which is aborted after an error or cancellation.

        Raises TlsTimeoutError or TlsError.
        """
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, timeout_s)
        try:
            # Not in connection_made: uvloop would close the descriptor twice if the first write failed.
            self._continue_handshake()
            await self._established
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError):  # an SSLError is one
                raise TlsError(error if str(error) else "the TLS handshake failed") from error
            raise
        finally:
            timer.cancel()
            self._established.cancel()

    def _expire(self, timeout_s: float) -> None:
        """Fail the handshake, which has taken too long."""
        if not self._established.done():
            message = f"the TLS handshake was not complete within {timeout_s} s"
            self._established.set_exception(TlsTimeoutError(message))

    def _continue_handshake(self) -> None:
        """Start or continue the handshake, unless it has ended."""
        if self._ended or self._above is not None:
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # send the alert
            self._ended, self._error = True, error
            self._below.close()
            return
        self._above = self._protocol_of(self._tls.selected_alpn_protocol())
        self._above.connection_made(self)
        if not self._established.done():
            self._established.set_result(None)
        # Later in this iteration, so that the end of the handshake and the request share a packet.
        asyncio.get_running_loop().call_soon(self._flush)

    def _read(self, above: Receiver) -> None:
        """Decrypt all received records, and pass their bytes on."""
        pieces = []
        error, ended = None, False
        try:
            while (self._incoming.pending or self._tls.pending()) and not ended:
                if piece := self._tls.read(RECORD_BYTES):
                    pieces.append(piece)
                else:
                    ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as caught:
            error = caught
        if self._unwritten:
            self.write(b"")
        self._flush()
        if pieces:
            above.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if error is not None:
            self._fail(error)
        elif ended:
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if self._above is not None:
                self._above.eof_received()
            self._below.close()

    def _fail(self, error: Exception) -> None:
        self._ended, self._error = True, self._error or error
        self._below.abort()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())

    # asyncio.Transport, for the protocol above

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt the data and send it."""
        if self._ended:
            return
        if self._unwritten:
            self._unwritten += data
            data, self._unwritten = self._unwritten, bytearray()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest[:STEP_BYTES]) :]
                self._flush()
        except ssl.SSLWantReadError:  # during a renegotiation (TLS 1.2)
            self._unwritten += rest
            self._flush()
        except ssl.SSLError as error:
            self._fail(error)

    def pause_reading(self) -> None:
        """Stop passing received bytes on, and reading from the socket."""
        self._paused = True
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Pass the kept bytes on at once, then continue reading.

        Bytes passed on later could be mistaken for those of the next response.
        """
        if not self._paused:
            return
        self._paused = False
        if not self._ended and self._above is not None:
            self._read(self._above)
        if not self._paused and not self._below.is_closing():
            self._below.resume_reading()

    def is_reading(self) -> bool:
        """Return whether received bytes are passed on."""
        return not self._paused and not self._ended

    def close(self) -> None:
        """Send close_notify, and close the connection once all bytes are sent."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
        self._below.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._ended = True
        self._below.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is being closed, or is closed."""
        return self._ended or self._below.is_closing()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""
        return self._below.get_write_buffer_size() + len(self._unwritten)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return `ssl_object`, or the information of the transport below."""
        return self._tls if name == "ssl_object" else self._below.get_extra_info(name, default)


def read_after_reset(descriptor: int) -> bytes:
    """Return the unread bytes that the kernel still has for a socket after a failed write.

    A host that rejects a request early may respond, then reset the connection with the request body unread.
    Call it before the transport closes the descriptor.
    """
    unread = bytearray()
    with contextlib.suppress(OSError):
        while len(unread) < MAX_RESET_BYTES and (piece := os.read(descriptor, MAX_RESET_BYTES)):
            unread += piece
    return bytes(unread)
