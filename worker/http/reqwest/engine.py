"""The exchange by pyreqwest.

A request that is cancelled before its head has come goes on in reqwest until its own bound, read_timeout;
so every client that could wait for a head has one (connect_s and read_s together), and a request that sends
a body has its policy's total.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from pyreqwest.http import Url
from pyreqwest.response import Response

from jobs.entry import Hop
from worker import lines, redact
from worker.clock import mono_s
from worker.decide import IDEMPOTENT_METHODS
from worker.http.content import Blocks, content_of, framing_of
from worker.http.engine import MAX_STATUS, MIN_STATUS, Framed, Trace
from worker.http.errors import BadAnswerError, FirstByteTimeoutError
from worker.http.reqwest import errors
from worker.http.reqwest.clients import Clients, Pinned
from worker.policy import Timeouts
from worker.upload import Upload


class ReqwestEngine:
    """pyreqwest's clients as an engine. log: for a line of each exchange, None for none."""

    def __init__(self, clients: Clients, in_folder: Path | None = None, log: Any = None) -> None:
        self._clients = clients
        self._in_folder = in_folder
        self._log = log

    @asynccontextmanager
    async def open(
        self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace
    ) -> AsyncIterator["ReqwestAnswer"]:
        """One exchange with a vetted address; raises httpx.TransportError, HttpError or OSError."""
        trace.opened = False
        began_s = mono_s()
        async with content_of(request, self._in_folder) as content, AsyncExitStack() as stack:
            response = await self._answer(request, lane, timeouts, content, stack)
            trace.head_came()
            if self._log is not None:
                self._tell(request, lane, trace, response, mono_s() - began_s)
            if not MIN_STATUS <= response.status <= MAX_STATUS:
                raise BadAnswerError(f"{response.status} is no status")
            yield ReqwestAnswer(response, request.method)

    async def _answer(
        self,
        request: Hop,
        lane: str,
        timeouts: Timeouts,
        content: Blocks | Upload | None,
        stack: AsyncExitStack,
    ) -> Response:
        """The head of the first vetted address that takes a connection."""
        url = _url(request.url)
        failure: Exception | None = None
        for address in await self._clients.addresses(lane, url, timeouts):
            pinned = self._clients.pinned(lane, url, address, timeouts, sends=content is not None)
            try:
                return await self._from(pinned, request, url, timeouts, content, stack)
            except httpx.ConnectError as error:
                failure = error
            except httpx.ConnectTimeout:
                self._clients.failed(lane, url)
                raise
        self._clients.failed(lane, url)
        raise failure or httpx.ConnectError("no address")

    async def _from(
        self,
        pinned: Pinned,
        request: Hop,
        url: Url,
        timeouts: Timeouts,
        content: Blocks | Upload | None,
        stack: AsyncExitStack,
    ) -> Response:
        """Hosts close idle connections as they like: what may be repeated is then sent once more."""
        answered = pinned.answered
        try:
            response = await _sent(pinned, request, url, timeouts, content, stack)
        except errors.UNHEARD as error:
            if not answered or request.method not in IDEMPOTENT_METHODS or not _hung_up(error):
                raise
            response = await _sent(pinned, request, url, timeouts, content, stack)
        pinned.answered = True
        return response

    def _tell(self, request: Hop, lane: str, trace: Trace, response: Response, took_s: float) -> None:
        lines.exchange(
            trace.entry,
            self._log,
            lane=lane.rpartition("#")[0],
            method=request.method,
            url=redact.url(request.url),
            status=response.status,
            version=response.version,
            reused=None,
            ms=round(took_s * 1000, 1),
        )


class ReqwestAnswer(Framed):
    """An answer from pyreqwest."""

    def __init__(self, response: Response, method: str) -> None:
        super().__init__(response.status, method, is_http1=response.version.startswith("HTTP/1"))
        self._response = response

    def header(self, name: str) -> str | None:
        """The field's value, its lines joined with a comma; None if it is absent, or not ASCII."""
        try:
            found = self._response.get_header_all(name)
        except ValueError:
            return None
        return ", ".join(found) if found else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it was sent."""
        reader = self._response.body_reader
        try:
            while (chunk := await reader.read_chunk()) is not None:
                yield bytes(chunk)
        except Exception as error:  # noqa: BLE001 mapped, and what is not known goes on as it is
            raise errors.known(error, head_came=True) from None


async def _sent(
    pinned: Pinned,
    request: Hop,
    url: Url,
    timeouts: Timeouts,
    content: Blocks | Upload | None,
    stack: AsyncExitStack,
) -> Response:
    """The request sent, and the head of its answer."""
    try:
        builder = pinned.client.request(request.method, url)
        builder = builder.headers([*request.headers, *framing_of(content)])
        if content is None:
            return await stack.enter_async_context(builder.streamed_read_buffer_limit(0).build_streamed())
        async with asyncio.timeout(None) as bound:
            builder = builder.body_stream(_blocks(content, timeouts, bound))
            builder = builder.timeout(timedelta(seconds=timeouts.total_s))
            return await stack.enter_async_context(builder.streamed_read_buffer_limit(0).build_streamed())
    except TimeoutError as error:
        if content is not None and not hasattr(error, "details"):
            raise FirstByteTimeoutError("the host took no more, or gave no answer in time") from None
        raise errors.known(error, head_came=False) from None
    except Exception as error:  # noqa: BLE001 mapped, and what is not known goes on as it is
        raise errors.known(error, head_came=False) from None


async def _blocks(
    content: Blocks | Upload, timeouts: Timeouts, bound: asyncio.Timeout
) -> AsyncIterator[bytes]:
    """The body; each block is to be taken within write_s, and the answer to begin read_s after the last."""
    loop = asyncio.get_running_loop()
    async for block in content:
        bound.reschedule(loop.time() + timeouts.write_s)
        yield block
        bound.reschedule(None)
    bound.reschedule(loop.time() + timeouts.read_s)


def _url(text: str) -> Url:
    """As reqwest reads it; what is vetted and what is dialled come from the same reading."""
    try:
        return Url(text)
    except ValueError as error:
        raise httpx.LocalProtocolError(str(error)) from None


def _hung_up(error: Exception) -> bool:
    return "closed before message completed" in str(error) or "reset by peer" in str(error)
