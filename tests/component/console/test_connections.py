"""Connections to the server whose clients stall."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fetchfleet.worker.console import connections, forms
from fetchfleet.worker.console.access.credentials import Token
from fetchfleet.worker.console.server import ServeOptions, running
from fetchfleet.worker.settings import Settings
from fetchfleet.worker.util.listen import listening_socket
from tests.support.console import TOKEN

SOON_S = 0.05
FORM_HEAD = (
    b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 100\r\n\r\ntoken="
)


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[tuple[str, int]]:
    """The address of a server with a token, without Redis."""
    settings = Settings(redis_url=f"unix://{tmp_path}/none.sock", redis_patience_s=0)
    with listening_socket("127.0.0.1", 0) as listening:
        host, port = listening.getsockname()
        async with running(settings, ServeOptions(Token(TOKEN)), listening):
            yield host, port


@asynccontextmanager
async def connection(
    address: tuple[str, int],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yield a connection to the server."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_a_connection_without_the_head_of_a_request_is_closed(
    address: tuple[str, int], sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of these, from anyone, would keep every other client out."""
    monkeypatch.setattr(connections, "HEAD_S", SOON_S)
    async with connection(address) as (reader, writer):
        writer.write(sent)
        assert b"" == await _rest(reader)


async def test_a_second_request_must_arrive_in_time_too(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte would otherwise extend the time between two requests."""
    async with connection(address) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(connections, "HEAD_S", SOON_S)
        writer.write(b"GET / HT")
        assert b"" == await _rest(reader)


async def test_the_body_of_an_answered_request_must_arrive_in_time(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response does not wait for it."""
    monkeypatch.setattr(connections, "HEAD_S", SOON_S)
    async with connection(address) as (reader, writer):
        writer.write(b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\na")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 401")
        writer.write(b"a")
        assert b"" == await _rest(reader)


async def test_a_form_must_arrive_in_time(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces of it arrive. A login needs no token."""
    monkeypatch.setattr(forms, "FORM_TIMEOUT_S", SOON_S)
    async with connection(address) as (reader, writer):
        writer.write(FORM_HEAD)
        assert b"HTTP/1.1 408 " == await reader.readexactly(13)


async def test_a_response_must_be_read(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends requests and reads no response is cut off."""
    monkeypatch.setattr(connections, "UNREAD_S", SOON_S)
    async with connection(address) as (_, writer):
        with pytest.raises(ConnectionError):
            await _send_for_ever(writer)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """Return what the server sends until it closes the connection."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def _send_for_ever(writer: asyncio.StreamWriter) -> None:
    """Send requests as long as the server accepts them."""
    while True:
        writer.write(b"GET /static/console.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        await writer.drain()
