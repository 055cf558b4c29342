"""A connection under TLS, with errors that say how TLS failed."""

import asyncio
import ssl
from typing import Any

import httpcore2
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from fetchfleet.worker.errors import TlsError, TlsTimeoutError

PLAIN_BYTES = 256 * 1024
"""Larger than a record: TLS returns at most 16 KiB at a time."""


async def wrap_tls(
    below: httpcore2.AsyncNetworkStream, context: ssl.SSLContext, host: str | None, timeout_s: float | None
) -> "TlsStream":
    """Return the connection under TLS; close it if the handshake fails or is cancelled.

    Raises TlsTimeoutError or TlsError.
    """
    try:
        async with asyncio.timeout(timeout_s):
            tls = await TLSStream.wrap(
                _ByteStreamAdapter(below),
                ssl_context=context,
                hostname=host,
                standard_compatible=False,
                server_side=False,
            )
            return TlsStream(below, tls)
    except BaseException as error:
        await below.aclose()
        if isinstance(error, TimeoutError):
            raise TlsTimeoutError(f"no TLS handshake within {timeout_s} s") from None
        if isinstance(error, ssl.SSLError | BrokenResourceError | EndOfStream):
            raise TlsError(
                error if str(error) else "the host closed the connection in the TLS handshake"
            ) from error
        raise


class TlsStream(httpcore2.AsyncNetworkStream):
    """A connection under TLS. Later TLS errors are errors of the connection, never of the disk.

    An SSLError is an OSError. In TLS 1.3 a host rejects a missing client certificate only when it is first
    read from (RFC 8446 §4.4.2.4).
    """

    def __init__(self, below: httpcore2.AsyncNetworkStream, tls: TLSStream) -> None:
        self._below = below
        self._tls = tls
        self._ssl_object = tls.extra(TLSAttribute.ssl_object)  # noqa: S610 anyio's

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 httpcore2's
        """Return the next bytes, empty at the end; raises httpcore2.ReadError or ReadTimeout."""
        try:
            async with asyncio.timeout(timeout):
                return await self._tls.receive(max(max_bytes, PLAIN_BYTES))
        except EndOfStream:
            return b""
        except TimeoutError:
            raise httpcore2.ReadTimeout(f"received nothing within {timeout} s") from None
        except (BrokenResourceError, ClosedResourceError, ssl.SSLError) as error:
            raise httpcore2.ReadError(error) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 httpcore2's
        """Send all of it; raises httpcore2.WriteError or WriteTimeout."""
        if not buffer:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._tls.send(buffer)
        except TimeoutError:
            raise httpcore2.WriteTimeout(f"could not send everything within {timeout} s") from None
        except (BrokenResourceError, ClosedResourceError, EndOfStream, ssl.SSLError) as error:
            raise httpcore2.WriteError(error) from error

    async def aclose(self) -> None:
        """Close the connection."""
        await self._below.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2's signature
    ) -> httpcore2.AsyncNetworkStream:
        """Not supported: TLS within TLS is not used."""
        raise NotImplementedError

    def get_extra_info(self, info: str) -> Any:
        """Return `ssl_object`, or the information of the connection below."""
        return self._ssl_object if info == "ssl_object" else self._below.get_extra_info(info)


class _ByteStreamAdapter(ByteStream):
    """A connection in anyio's interface. Its pieces have any size, which TLS accepts."""

    def __init__(self, below: httpcore2.AsyncNetworkStream) -> None:
        self._below = below

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return a piece; raises EndOfStream or BrokenResourceError."""
        try:
            piece = await self._below.read(max_bytes)
        except httpcore2.ReadError as error:
            raise BrokenResourceError(*error.args) from error
        if not piece:
            raise EndOfStream
        return piece

    async def send(self, item: bytes) -> None:
        """Send all of it; raises BrokenResourceError."""
        try:
            await self._below.write(item)
        except httpcore2.WriteError as error:
            raise BrokenResourceError(*error.args) from error

    async def send_eof(self) -> None:
        """Not supported: TLS ends with its own alert, or with the connection."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close the connection."""
        await self._below.aclose()
