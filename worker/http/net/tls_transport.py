"""TLS over a TCP transport of the event loop.

The loops' own TLS drops what a paused connection has received when the host hangs up, so that a body which
only the end of the connection ends would be stored cut short.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable
from typing import Any, Protocol, cast

from fetchfleet.worker.errors import TlsError, TlsTimeoutError

STEP_BYTES = 32 * 1024
"""So much is decrypted at once: OpenSSL's buffers keep the size that they once had."""
RECORD_BYTES = 16 * 1024
"""OpenSSL reads and writes one record at a time (RFC 8446 §5.1)."""
LEFT_BYTES = 256 * 1024
"""The most that is read of a connection that was reset."""


class Receiver(Protocol):
    """The protocol above: one of the two kinds of asyncio, that is given pieces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""

    def data_received(self, data: bytes) -> None:
        """Take what has come."""

    def eof_received(self) -> bool | None:
        """Take the host's end of the connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""

    def pause_writing(self) -> None:
        """Note that the host does not take what was sent."""

    def resume_writing(self) -> None:
        """Go on with sending."""


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """A connection under TLS: the protocol of the TCP transport, and the transport of the protocol above.

    protocol_of: returns the protocol above once the handshake has ended, given what ALPN selected.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        host: str,
        protocol_of: Callable[[str | None], Receiver],
    ) -> None:
        super().__init__()
        self._established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake has ended, well or with its error."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._protocol_of = protocol_of
        self._above: Receiver | None = None
        self._below: asyncio.Transport
        self._unwritten = bytearray()
        """Plain bytes that wait until OpenSSL has read more."""
        self._paused = False
        self._ended = False
        """Whether nothing more is to be passed on, as either side has closed the connection."""
        self._error: Exception | None = None

    # The protocol of the transport below.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._below = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._descriptor = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        """Decrypt what has arrived; keep what arrives while reading is paused."""
        for at in range(0, len(data), STEP_BYTES):
            if self._ended:
                return
            self._incoming.write(data[at : at + STEP_BYTES] if len(data) > STEP_BYTES else data)
            self._continue_handshake()
            if self._above is not None and not self._paused and self._incoming.pending:
                self._read(self._above)

    def eof_received(self) -> None:
        """Take the end of the connection, with or without TLS's own (RFC 8446 §6.1), and close."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end on, after what the host sent before it reset the connection."""
        if exc is not None and not self._ended:
            self.data_received(left_by_reset(self._descriptor))
        self._ended = True
        if self._above is not None:
            self._above.connection_lost(self._error or exc)
        elif not self._established.done():
            closed = ConnectionError("the host closed the connection in the TLS handshake")
            self._established.set_exception(self._error or exc or closed)
            self._established.exception()  # mark as retrieved: a cancelled dial does not await it

    def pause_writing(self) -> None:
        """Pass it on."""
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self._above is not None:
            self._above.resume_writing()

    async def handshake(self, timeout_s: float) -> None:
        """Make the handshake, once the transport below is connected; close that if it fails or is cancelled.

        Raises TlsTimeoutError or TlsError.
        """
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, timeout_s)
        try:
            # Not earlier: uvloop would close the socket's number twice if the first write failed.
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
        """End the wait for the handshake, which has taken too long."""
        if not self._established.done():
            self._established.set_exception(TlsTimeoutError(f"no TLS handshake within {timeout_s} s"))

    def _continue_handshake(self) -> None:
        """Begin the handshake, or go on with it, unless it has ended."""
        if self._ended or self._above is not None:
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._ended, self._error = True, error
            self._below.close()
            return
        self._above = self._protocol_of(self._tls.selected_alpn_protocol())
        self._above.connection_made(self)
        if not self._established.done():
            self._established.set_result(None)
        # With the request that is written as soon as the handshake has ended, in one packet.
        asyncio.get_running_loop().call_soon(self._flush)

    def _read(self, above: Receiver) -> None:
        """Pass on what can be decrypted."""
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
            self._break(error)
        elif ended:
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if self._above is not None:
                self._above.eof_received()
            self._below.close()

    def _break(self, error: Exception) -> None:
        self._ended, self._error = True, self._error or error
        self._below.abort()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())

    # The transport of the protocol above.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
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
        except ssl.SSLWantReadError:  # in the middle of a renegotiation (TLS 1.2)
            self._unwritten += rest
            self._flush()
        except ssl.SSLError as error:
            self._break(error)

    def pause_reading(self) -> None:
        """Stop to pass on what arrives, and to read from the socket."""
        self._paused = True
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Go on, at once: first with what has arrived, so that none of it is taken for a later response."""
        if not self._paused:
            return
        self._paused = False
        if not self._ended and self._above is not None:
            self._read(self._above)
        if not self._paused and not self._below.is_closing():
            self._below.resume_reading()

    def is_reading(self) -> bool:
        """Return whether what arrives is passed on."""
        return not self._paused and not self._ended

    def close(self) -> None:
        """Send close_notify, and close the connection once everything is sent."""
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


def left_by_reset(descriptor: int) -> bytes:
    """Return what the kernel still has of a connection that a failed write has ended; to be asked in time.

    descriptor: of its socket. A host that does not want the rest of a request body may respond, and reset the
    connection.
    """
    left = bytearray()
    with contextlib.suppress(OSError):
        while len(left) < LEFT_BYTES and (piece := os.read(descriptor, LEFT_BYTES)):
            left += piece
    return bytes(left)
