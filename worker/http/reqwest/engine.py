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

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.field_checks import IDEMPOTENT_METHODS
from fetchfleet.worker.errors import BadAnswerError, FirstByteTimeoutError
from fetchfleet.worker.http.base import EventTrace
from fetchfleet.worker.http.request_body import Blocks, Upload, content_of, framing_of, own_headers
from fetchfleet.worker.http.reqwest import errors
from fetchfleet.worker.http.reqwest.client_cache import Clients, Destination
from fetchfleet.worker.http.reqwest.pinned_client import Exchange, Pinned
from fetchfleet.worker.http.reqwest.response import ReqwestAnswer, SentRequest
from fetchfleet.worker.observability import events, redact
from fetchfleet.worker.policy.model import Timeouts
from fetchfleet.worker.util.clock import mono_s


class ReqwestEngine:
    """pyreqwest's clients as an engine. log: for a line of each exchange, None for none."""

    def __init__(
        self, clients: Clients, user_agent: str, in_folder: Path | None = None, log: Any = None
    ) -> None:
        self._clients = clients
        self._headers = own_headers(user_agent)
        self._in_folder = in_folder
        self._log = log

    @asynccontextmanager
    async def open(
        self, request: Hop, lane: str, timeouts: Timeouts, trace: EventTrace
    ) -> AsyncIterator[ReqwestAnswer]:
        """One exchange with a vetted address; raises httpx.TransportError, FetchError or OSError."""
        trace.opened = False
        began_s = mono_s()
        async with content_of(request, self._in_folder) as content:
            sent = SentRequest(_url(request.url), request.method, self._headers_of(request, content))
            exchange = await self._answered(sent, lane, timeouts, content)
            try:
                await self._clients.loop_budget.take()
                trace.head_received()
                answer = ReqwestAnswer(exchange, sent)
                if answer.is_doubtful:
                    exchange.pinned.retire()
                if self._log is not None:
                    self._tell(request, lane, trace, answer, mono_s() - began_s)
                answer.check_status()
                answer.check_framing()
                yield answer
            except BadAnswerError:
                exchange.pinned.retire()
                raise
            finally:
                await exchange.end()

    def _headers_of(self, request: Hop, content: Blocks | Upload | None) -> Sequence[tuple[str, str]]:
        """The engine's own, where the request does not have another word on it, and the request's."""
        if not request.headers and content is None and request.method == "GET":
            return self._headers
        said = {name.lower() for name, _ in request.headers}
        own = (header for header in self._headers if header[0].lower() not in said)
        return (*own, *request.headers, *_framing(request.method, content))

    async def _answered(
        self, sent: SentRequest, lane: str, timeouts: Timeouts, content: Blocks | Upload | None
    ) -> Exchange:
        """The head of the first vetted address that takes a connection."""
        await self._clients.loop_budget.take()
        addresses = await self._clients.addresses(lane, sent.url, timeouts)
        # reqwest would not try the next beside one that says nothing (RFC 8305 §5): so none has all the time.
        connect_s = timeouts.connect_s / min(len(addresses), 2)
        until_s = mono_s() + timeouts.connect_s
        failure: Exception = httpx.ConnectTimeout("no connection in time")
        for address in addresses:
            if mono_s() >= until_s:
                break
            try:
                return await self._from(
                    Destination(lane, sent.url, address, connect_s), sent, timeouts, content
                )
            except errors.NotBegunError:
                raise
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self._clients.unreached(lane, sent.url, address)
                failure = error
        self._clients.failed(lane, sent.url)
        raise failure

    async def _from(
        self, where: Destination, sent: SentRequest, timeouts: Timeouts, content: Blocks | Upload | None
    ) -> Exchange:
        """Hosts close idle connections as they like: what may be repeated is then sent on a new one.

        So is what a host says that it has not begun with.
        """
        pinned = self._clients.pinned(where, timeouts, sends=content is not None)
        answered = pinned.answered
        try:
            return await _exchanged(pinned, sent, timeouts, content)
        except errors.NotBegunError:
            pass
        except errors.UNHEARD as error:
            if not answered or sent.method not in IDEMPOTENT_METHODS or not errors.hung_up(error):
                raise
        pinned.retire()
        alone = self._clients.new(where, timeouts, sends=content is not None)
        return await _exchanged(alone, sent, timeouts, content)

    def _tell(self, request: Hop, lane: str, trace: EventTrace, answer: ReqwestAnswer, took_s: float) -> None:
        events.exchange(
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


async def _exchanged(
    pinned: Pinned, sent: SentRequest, timeouts: Timeouts, content: Blocks | Upload | None
) -> Exchange:
    """The request sent, and the head of its answer."""
    try:
        if content is None:
            return await pinned.head_of(_built(pinned, sent))
        sending = _Sending(content, timeouts)
        async with sending.bound:
            return await pinned.head_of(_built(pinned, sent, timeouts, sending.blocks()))
    except Exception as error:  # noqa: BLE001 mapped, and what is not known goes on as it is
        if content is not None and isinstance(error, TimeoutError) and sending.bound.expired():
            raise sending.late() from None
        raise errors.known(error, head_came=False) from None


class _Sending:
    """A body on its way: each block is to be taken within write_s, and the answer to begin read_s after."""

    def __init__(self, content: Blocks | Upload, timeouts: Timeouts) -> None:
        self.bound = asyncio.timeout(None)
        self._content = content
        self._timeouts = timeouts
        self._sent = False

    async def blocks(self) -> AsyncIterator[bytes]:
        """The body, block by block."""
        loop = asyncio.get_running_loop()
        async for block in self._content:
            self.bound.reschedule(loop.time() + self._timeouts.write_s)
            yield block
        self._sent = True
        self.bound.reschedule(loop.time() + self._timeouts.read_s)

    def late(self) -> Exception:
        """What the host was too slow at."""
        if self._sent:
            return FirstByteTimeoutError("no head of an answer in time")
        return httpx.WriteTimeout("the host took no more")


def _built(
    pinned: Pinned,
    sent: SentRequest,
    timeouts: Timeouts | None = None,
    body: AsyncIterator[bytes] | None = None,
) -> StreamRequest:
    """The request; its answer's body is read from the host as it is read from us, not ahead."""
    builder = pinned.client.request(sent.method, sent.url).headers(sent.headers)
    if body is not None and timeouts is not None:
        builder = builder.body_stream(body).timeout(timedelta(seconds=timeouts.total_s))
    return builder.streamed_read_buffer_limit(0).build_streamed()


def _framing(method: str, content: Blocks | Upload | None) -> Sequence[tuple[str, str]]:
    """Of a method that sends something, also that it is nothing (RFC 9110 §8.6)."""
    nothing = content is None and method in {"POST", "PUT", "PATCH"}
    return (("Content-Length", "0"),) if nothing else framing_of(content)


def _url(text: str) -> Url:
    """As reqwest reads it; what is vetted and what is dialled come from the same reading."""
    try:
        return Url(text)
    except ValueError as error:
        raise httpx.LocalProtocolError(str(error)) from None
