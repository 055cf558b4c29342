"""A connection under TLS, which says how TLS went wrong."""

import asyncio
import ssl
from typing import Any

import httpcore2
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from fetchfleet.worker.errors import TlsError, TlsTimeoutError

PLAIN_BYTES = 256 * 1024
"""More than a record brings: TLS brings 16 KiB at a time whatever one asks for."""


async def sealed(
    below: httpcore2.AsyncNetworkStream, context: ssl.SSLContext, host: str | None, wait_s: float | None
) -> "Sealed":
    """The connection under TLS; where that fails, or is given up, it is closed.

    Raises TlsTimeoutError or TlsError.
    """
    try:
        async with asyncio.timeout(wait_s):
            tls = await TLSStream.wrap(
                _Records(below),
                ssl_context=context,
                hostname=host,
                standard_compatible=False,
                server_side=False,
            )
            return Sealed(below, tls)
    except BaseException as error:
        await below.aclose()
        if isinstance(error, TimeoutError):
            raise TlsTimeoutError(f"no TLS handshake within {wait_s} s") from None
        if isinstance(error, ssl.SSLError | BrokenResourceError | EndOfStream):
            raise TlsError(error if str(error) else "the host hung up in the TLS handshake") from error
        raise


class Sealed(httpcore2.AsyncNetworkStream):
    """A connection under TLS. What TLS refuses later is an error of the connection, and never of the disk.

    An SSLError is an OSError. In TLS 1.3 a host says only when it is first read from that it wanted a
    certificate of ours (RFC 8446 §4.4.2.4).
    """

    def __init__(self, below: httpcore2.AsyncNetworkStream, tls: TLSStream) -> None:
        self._below = below
        self._tls = tls
        self._ssl_object = tls.extra(TLSAttribute.ssl_object)  # noqa: S610 anyio's

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 httpcore2's
        """What has come, empty at the end; raises httpcore2.ReadError or ReadTimeout."""
        try:
            async with asyncio.timeout(timeout):
                return await self._tls.receive(max(max_bytes, PLAIN_BYTES))
        except EndOfStream:
            return b""
        except TimeoutError:
            raise httpcore2.ReadTimeout(f"nothing came within {timeout} s") from None
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
            raise httpcore2.WriteTimeout(f"not all was taken within {timeout} s") from None
        except (BrokenResourceError, ClosedResourceError, EndOfStream, ssl.SSLError) as error:
            raise httpcore2.WriteError(error) from error

    async def aclose(self) -> None:
        """Hang up."""
        await self._below.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 httpcore2's signature
    ) -> httpcore2.AsyncNetworkStream:
        """Never: nobody asks for TLS within TLS."""
        raise NotImplementedError

    def get_extra_info(self, info: str) -> Any:
        """`ssl_object`; what else there is, of the connection below."""
        return self._ssl_object if info == "ssl_object" else self._below.get_extra_info(info)


class _Records(ByteStream):
    """A connection as TLS takes one: its pieces are as large as they come, which TLS leaves to it."""

    def __init__(self, below: httpcore2.AsyncNetworkStream) -> None:
        self._below = below

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """A piece; raises EndOfStream or BrokenResourceError."""
        try:
            piece = await self._below.read(max_bytes)
        except httpcore2.ReadError as error:
            raise BrokenResourceError(*error.args) from error
        if not piece:
            raise EndOfStream
        return piece

    async def send(self, item: bytes) -> None:
        """All of it; raises BrokenResourceError."""
        try:
            await self._below.write(item)
        except httpcore2.WriteError as error:
            raise BrokenResourceError(*error.args) from error

    async def send_eof(self) -> None:
        """Never: TLS says itself that it is over, or hangs up."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Hang up."""
        await self._below.aclose()
