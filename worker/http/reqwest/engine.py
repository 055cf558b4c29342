"""The exchange by pyreqwest."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from pyreqwest.http import Url
from pyreqwest.request import StreamRequest

from jobs.entry import Hop
from worker import lines, redact
from worker.clock import mono_s
from worker.decide import IDEMPOTENT_METHODS
from worker.http.content import Blocks, Header, content_of, framing_of
from worker.http.engine import MAX_STATUS, MIN_STATUS, Trace
from worker.http.errors import BadAnswerError, FirstByteTimeoutError
from worker.http.reqwest import errors
from worker.http.reqwest.answer import ReqwestAnswer, Sent
from worker.http.reqwest.clients import Clients
from worker.http.reqwest.pinned import Exchange, Pinned
from worker.policy import Timeouts
from worker.upload import Upload


class ReqwestEngine:
    """pyreqwest's clients as an engine. log: for a line of each exchange, None for none."""

    def __init__(
        self, clients: Clients, user_agent: str, in_folder: Path | None = None, log: Any = None
    ) -> None:
        self._clients = clients
        # Bodies are kept as sent: a length and a digest are of what the host has.
        self._headers = (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", user_agent))
        self._in_folder = in_folder
        self._log = log

    @asynccontextmanager
    async def open(
        self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace
    ) -> AsyncIterator[ReqwestAnswer]:
        """One exchange with a vetted address; raises httpx.TransportError, HttpError or OSError."""
        trace.opened = False
        began_s = mono_s()
        async with content_of(request, self._in_folder) as content:
            sent = Sent(_url(request.url), request.method, self._headers_of(request, content))
            exchange = await self._answered(sent, lane, timeouts, content)
            try:
                trace.head_came()
                answer = ReqwestAnswer(exchange, sent)
                if self._log is not None:
                    self._tell(request, lane, trace, answer, mono_s() - began_s)
                if not MIN_STATUS <= answer.status <= MAX_STATUS:
                    raise BadAnswerError(f"{answer.status} is no status")
                yield answer
            finally:
                await exchange.end()

    def _headers_of(self, request: Hop, content: Blocks | Upload | None) -> Sequence[Header]:
        """The engine's own, where the request does not have another word on it, and the request's."""
        if not request.headers and content is None:
            return self._headers
        said = {name.lower() for name, _ in request.headers}
        own = (header for header in self._headers if header[0].lower() not in said)
        return (*own, *request.headers, *framing_of(content))

    async def _answered(
        self, sent: Sent, lane: str, timeouts: Timeouts, content: Blocks | Upload | None
    ) -> Exchange:
        """The head of the first vetted address that takes a connection."""
        failure: Exception | None = None
        for address in await self._clients.addresses(lane, sent.url, timeouts):
            pinned = self._clients.pinned(lane, sent.url, address, timeouts, sends=content is not None)
            try:
                return await _from(pinned, sent, timeouts, content)
            except httpx.ConnectError as error:
                self._clients.unreached(lane, sent.url, address)
                failure = error
            except httpx.ConnectTimeout:
                self._clients.failed(lane, sent.url)
                raise
        self._clients.failed(lane, sent.url)
        raise failure or httpx.ConnectError("no address")

    def _tell(self, request: Hop, lane: str, trace: Trace, answer: ReqwestAnswer, took_s: float) -> None:
        lines.exchange(
            trace.entry,
            self._log,
            lane=lane.rpartition("#")[0],
            method=request.method,
            url=redact.url(request.url),
            status=answer.status,
            version=answer.version,
            reused=None,
            ms=round(took_s * 1000, 1),
        )


async def _from(pinned: Pinned, sent: Sent, timeouts: Timeouts, content: Blocks | Upload | None) -> Exchange:
    """Hosts close idle connections as they like: what may be repeated is then sent once more."""
    answered = pinned.answered
    try:
        return await _exchanged(pinned, sent, timeouts, content)
    except errors.UNHEARD as error:
        if not answered or sent.method not in IDEMPOTENT_METHODS or not _hung_up(error):
            raise
    return await _exchanged(pinned, sent, timeouts, content)


async def _exchanged(
    pinned: Pinned, sent: Sent, timeouts: Timeouts, content: Blocks | Upload | None
) -> Exchange:
    """The request sent, and the head of its answer."""
    try:
        if content is None:
            return await pinned.head_of(_built(pinned, sent))
        async with asyncio.timeout(None) as bound:
            return await pinned.head_of(_built(pinned, sent, timeouts, _blocks(content, timeouts, bound)))
    except TimeoutError as error:
        if content is not None and not hasattr(error, "details"):
            raise FirstByteTimeoutError("the host took no more, or gave no answer in time") from None
        raise errors.known(error, head_came=False) from None
    except Exception as error:  # noqa: BLE001 mapped, and what is not known goes on as it is
        raise errors.known(error, head_came=False) from None


def _built(
    pinned: Pinned,
    sent: Sent,
    timeouts: Timeouts | None = None,
    body: AsyncIterator[bytes] | None = None,
) -> StreamRequest:
    """The request; its answer's body is read from the host as it is read from us, not ahead."""
    builder = pinned.client.request(sent.method, sent.url).headers(sent.headers)
    if body is not None and timeouts is not None:
        builder = builder.body_stream(body).timeout(timedelta(seconds=timeouts.total_s))
    return builder.streamed_read_buffer_limit(0).build_streamed()


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
