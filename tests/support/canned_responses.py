"""Responses without a host or a connection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fetchfleet.worker.http.exchange import Answer, Request, Trace
from fetchfleet.worker.http.http1.messages import by_name
from fetchfleet.worker.http.wire import GetBuffer, Header
from fetchfleet.worker.policy.model import Timeouts


@dataclass
class CannedResponse:
    """A complete response without a body."""

    headers: Sequence[Header] = ()
    status: int = 200
    version: str = "HTTP/1.1"
    phrase: bytes = b"OK"
    lenient: bool = False
    address: str | None = None
    ended: bool = True

    def __post_init__(self) -> None:
        self.by_name: Mapping[bytes, bytes] = by_name(self.headers)

    async def read(self) -> bytes:
        """Return the end of the body."""
        return b""

    async def receive(self, get_buffer: GetBuffer) -> bytes:  # noqa: ARG002 there is no body to receive
        """Return the end of the body."""
        return b""

    def close(self) -> None:
        """Do nothing."""


def answer_of(*fields: Header, status: int = 200, method: str = "GET") -> Answer:
    """Return the answer to a request for http://a.example/, with these header fields."""
    request = Request(
        method=method,
        scheme="http",
        host="a.example",
        port=80,
        target=b"/",
        headers=(),
        content=None,
        timeouts=Timeouts(connect_s=1, read_s=1, write_s=1, pool_s=1, total_s=1),
        trace=Trace(),
    )
    return Answer("http://a.example/", request, CannedResponse(fields, status))
