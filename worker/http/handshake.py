"""A connection that says how TLS went wrong: the one below calls a slow handshake a slow connection."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpcore2

from worker.http.errors import TlsError, TlsTimeoutError
from worker.http.over import Over


class Shaken(Over):
    """A connection whose handshake fails by its own name."""

    async def start_tls(self, *how: Any, **named: Any) -> httpcore2.AsyncNetworkStream:
        """The same connection under TLS; raises TlsTimeoutError or TlsError."""
        try:
            return Sealed(await super().start_tls(*how, **named))
        except httpcore2.ConnectTimeout:
            raise TlsTimeoutError(f"no TLS handshake within {named.get('timeout')} s") from None
        except httpcore2.ConnectError as error:
            raise TlsError(error if str(error) else "the host hung up in the TLS handshake") from error


class Sealed(Over):
    """A connection under TLS. What TLS refuses later is an error of the connection, and never of the disk.

    An SSLError is an OSError, which the connection below lets pass. In TLS 1.3 a host says only when it is
    first read from that it wanted a certificate of ours (RFC 8446 §4.4.2.4).
    """

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 httpcore2's
        """What has come."""
        with _as(httpcore2.ReadError):
            return await super().read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 httpcore2's
        """Send all of it."""
        with _as(httpcore2.WriteError):
            await super().write(buffer, timeout)


@contextmanager
def _as(kind: type[httpcore2.NetworkError]) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise kind(error) from error
