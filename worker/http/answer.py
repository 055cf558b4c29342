"""A response as a fetch sees it: its fields, their meaning, and the pieces of its body."""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any

from fetchfleet.worker.errors import BadAnswerError, FetchError, RemoteProtocolError
from fetchfleet.worker.http.exchange import Request, Response
from fetchfleet.worker.http.wire import UNTIL_CLOSE, Wire, body_length

DISCARD_BYTES = 64 * 1024
DISCARD_S = 0.5
"""An unwanted body is read up to these bounds, so that its connection can be reused."""

MIN_STATUS, MAX_STATUS = 200, 599
"""The status codes of a final response (RFC 9110 §15)."""

FIRST_COUNTS = frozenset(
    {
        *("content-type", "date", "last-modified", "location", "retry-after"),
        *("ratelimit-remaining", "ratelimit-reset", "x-ratelimit-remaining", "x-ratelimit-reset"),
    }
)
"""Fields that are not lists. Of several lines the first non-empty one counts, as in browsers."""

MUST_AGREE = frozenset({"content-range", "etag"})
"""Fields that are not lists and describe the stored bytes. Lines that differ make them unusable."""

UNUSABLE = ""
"""The value of a field that is present and unusable."""


def value_of(name: str, lines: Sequence[str]) -> str:
    """Return the value of a field with at least one line (RFC 9110 §5.3). Pure.

    name: in lower case. Only the lines of a list are joined, and those of Content-Length, whose check needs
    all of them.
    """
    if len(lines) == 1:
        return lines[0]
    if name in FIRST_COUNTS:
        return next((line for line in lines if line), "")
    if name in MUST_AGREE:
        return lines[0] if len(set(lines)) == 1 else UNUSABLE
    return ", ".join(lines)


class Answer:
    """A response whose head is complete. Call `close` at its end, however it ends.

    Raises BadAnswerError, and closes the response, if the status is not one of a final response.
    url: of the request. Values are decoded as ISO 8859-1: one character for each byte, whatever the other
    fields hold.
    """

    __slots__ = ("_by_name", "_request", "_response", "_url", "read", "status")

    def __init__(self, url: str, request: Request, response: Response) -> None:
        self.status = response.status
        self._url = url
        self._request = request
        self._response = response
        self._by_name = response.by_name
        self.read = response.read
        """Returns the next piece of the body as it was sent; empty at its end."""
        if response.lenient:
            request.trace.lenient = True
        if not MIN_STATUS <= self.status <= MAX_STATUS:
            self.close()
            raise BadAnswerError(f"{self.status} is not the status of a final response")

    @property
    def ended(self) -> bool:
        """Whether the whole body has been read."""
        return self._response.ended

    def receive(self, room: memoryview | None) -> Coroutine[Any, Any, bytes | memoryview]:
        """Return the next piece, like `read`; it may have been received into the room, if there is one."""
        return self._response.read() if room is None else self._response.receive(room)

    def close(self) -> None:
        """End the exchange, complete or not; a second call does nothing."""
        self._response.close()
        if self._request.content is not None:
            self._request.content.close()

    def header(self, name: str) -> str | None:
        """Return the field's value by the rules of `value_of`; None if absent. name: in lower case."""
        value = self._by_name.get(name.encode("ascii"))
        if value is None:
            return None
        if len(self._by_name) < len(self._response.headers):
            return value_of(name, self.values(name))
        return value.decode("latin-1")

    def values(self, name: str) -> Sequence[str]:
        """Return the value of each line of the field. name: in lower case."""
        wanted = name.encode("ascii")
        return [value.decode("latin-1") for sent, value in self._response.headers if sent.lower() == wanted]

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Return whether the response has one of the fields. names: in lower case."""
        return not names.isdisjoint(self._by_name)

    @property
    def length_bytes(self) -> int | None:
        """The Content-Length of the body that follows, None if unknown.

        Raises BadAnswerError if it is malformed, or if it contradicts Transfer-Encoding or the status
        (RFC 9112 §6.3).
        """
        if self._request.method == "HEAD":
            return 0
        try:
            length = body_length(self._by_name)
        except RemoteProtocolError as error:
            raise BadAnswerError(str(error)) from error
        if self.status == 204 and length not in {0, UNTIL_CLOSE}:
            raise BadAnswerError("204 with a body")
        return length if length >= 0 else None

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection ends the body (RFC 9112 §6.3, last case)."""
        if b"content-length" in self._by_name or b"transfer-encoding" in self._by_name:
            return False
        bodyless = self._request.method == "HEAD" or self.status in {204, 205, 304}
        return not bodyless and self._response.version.startswith("HTTP/1")

    async def discard(self) -> None:
        """Read and drop a small body, so that the connection can be reused; a broken one is no error."""
        if self.ended:
            return
        seen = 0
        with contextlib.suppress(FetchError, TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while seen <= DISCARD_BYTES and (piece := await self.read()):
                    seen += len(piece)

    def wire(self) -> Wire:
        """Return the request and the response headers as they were sent, without HTTP/2's pseudo-headers."""
        request, response = self._request, self._response
        return Wire(
            url=self._url,
            method=request.method,
            target=request.target,
            request_headers=request.headers,
            version=response.version,
            status=response.status,
            phrase=response.phrase,
            headers=response.headers,
            address=response.address,
        )
