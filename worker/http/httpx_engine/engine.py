"""The engine over the shared httpx client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.errors import BadAnswerError
from fetchfleet.worker.http.base import (
    DISCARD_BYTES,
    DISCARD_S,
    MAX_LENGTH_DIGITS,
    MAX_STATUS,
    MIN_STATUS,
    Trace,
)
from fetchfleet.worker.http.connection_stats import Traffic
from fetchfleet.worker.http.httpx_engine.client import httpx_timeout
from fetchfleet.worker.http.httpx_engine.transport import LANE
from fetchfleet.worker.http.request_body import content_of, framing_of
from fetchfleet.worker.http.wire import Wire
from fetchfleet.worker.policy.model import Timeouts


class HttpxEngine:
    """The shared httpx client as an engine."""

    def __init__(
        self, client: httpx.AsyncClient, in_folder: Path | None = None, traffic: Traffic | None = None
    ) -> None:
        self._client = client
        self._traffic = traffic or Traffic()
        self._in_folder = in_folder

    @asynccontextmanager
    async def open(
        self, request: Hop, lane: str, timeouts: Timeouts, trace: Trace
    ) -> AsyncIterator["HttpxAnswer"]:
        """One exchange on the lane's pool; raises httpx.TransportError, FetchError or OSError."""
        trace.begins(self._traffic)
        async with content_of(request, self._in_folder) as content:
            asked = self._client.build_request(
                request.method,
                request.url,
                headers=request.headers + framing_of(content),
                content=content,
                timeout=httpx_timeout(timeouts),
                extensions={LANE: lane, "trace": trace},
            )
            response = await self._client.send(asked, stream=True)
            try:
                trace.head_came()
                answer = HttpxAnswer(response, request.method)
                answer.check_status()
                yield answer
            finally:
                await response.aclose()


class Framed:
    """What the head of an answer says of its body, whichever engine brought it."""

    def __init__(self, status: int, method: str, *, is_http1: bool) -> None:
        self.status = status
        self._bodyless = method == "HEAD"
        self._is_http1 = is_http1

    def header(self, name: str) -> str | None:
        """The field's value, its lines joined with a comma; None if it is absent."""
        raise NotImplementedError

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it was sent."""
        raise NotImplementedError

    def check_status(self) -> None:
        """Raise BadAnswerError where it is none."""
        if not MIN_STATUS <= self.status <= MAX_STATUS:
            raise BadAnswerError(f"{self.status} is no status")

    @property
    def length_bytes(self) -> int | None:
        """The Content-Length of the body that is to come, None if it is not known.

        Raises BadAnswerError where two framings contradict each other (RFC 9112 §6.3), or one the status.
        """
        if self._bodyless:
            return 0
        said, chunked = self.header("content-length"), self.header("transfer-encoding") is not None
        length_bytes = None if said is None else _one_length(said)
        if self.status == 204 and (chunked or length_bytes):
            raise BadAnswerError("204 with a body")
        if chunked and length_bytes is not None:
            raise BadAnswerError("both Content-Length and Transfer-Encoding")
        return length_bytes

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection ends the body (RFC 9112 §6.3, last case)."""
        framed = self._bodyless or self.status in {204, 205, 304} or self.header("content-length") is not None
        chunked = (self.header("transfer-encoding") or "").lower().endswith("chunked")
        return self._is_http1 and not framed and not chunked

    async def discard(self) -> None:
        """Read a small body away, to keep the connection; the head counts, even if the body breaks off."""
        seen = 0
        with contextlib.suppress(httpx.TransportError, TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                async for chunk in self.chunks():
                    seen += len(chunk)
                    if seen > DISCARD_BYTES:
                        return


class HttpxAnswer(Framed):
    """An answer from httpx."""

    def __init__(self, response: httpx.Response, method: str) -> None:
        super().__init__(response.status_code, method, is_http1=response.http_version.startswith("HTTP/1"))
        self._response = response
        # Many are asked for, and httpx looks through all of them for each.
        self._fields = dict(response.headers.items())

    def header(self, name: str) -> str | None:
        """The field's value, its lines joined with a comma; None if it is absent."""
        return self._fields.get(name.lower())

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it was sent."""
        return self._response.aiter_raw()

    def wire(self) -> Wire:
        """The heads as they were sent; what HTTP/2 packs into fields of its own is not among the headers."""
        response, request = self._response, self._response.request
        network = response.extensions.get("network_stream")
        peer = network.get_extra_info("server_addr") if network is not None else None
        return Wire(
            url=str(request.url),
            method=request.method,
            target=request.url.raw_path,
            request_headers=request.headers.raw,
            version=response.http_version,
            status=response.status_code,
            phrase=response.extensions.get("reason_phrase", b""),
            headers=response.headers.raw,
            address=peer[0] if peer else None,
        )


def _one_length(value: str) -> int:
    """Of a Content-Length, also one that was sent twice (RFC 9110 §8.6); raises BadAnswerError."""
    said = {one.strip(" \t") for one in value.split(",")}
    length = said.pop()
    if said or not (length.isascii() and length.isdecimal() and len(length) <= MAX_LENGTH_DIGITS):
        raise BadAnswerError(f"Content-Length {value[:100]!r}")
    return int(length)
