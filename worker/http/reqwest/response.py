"""An answer from pyreqwest, as far as it shows one."""

from collections.abc import AsyncIterator, Iterator, Sequence
from http import HTTPStatus
from typing import NamedTuple

from pyreqwest.http import HeaderMap, Url

from fetchfleet.worker.errors import BadAnswerError
from fetchfleet.worker.http import wire as wire_module
from fetchfleet.worker.http.base import FramedAnswer, value_of
from fetchfleet.worker.http.reqwest import errors
from fetchfleet.worker.http.reqwest.pinned_client import Exchange


class SentRequest(NamedTuple):
    """What a request asks for; reqwest itself adds its Host."""

    url: Url
    method: str
    headers: Sequence[tuple[str, str]]


class ReqwestAnswer(FramedAnswer):
    """An answer from pyreqwest."""

    def __init__(self, exchange: Exchange, sent: SentRequest) -> None:
        self._response = exchange.response
        self._address = exchange.pinned.address
        self._sent = sent
        self.version = exchange.response.version
        super().__init__(self._response.status, sent.method, (), is_http1=self.version.startswith("HTTP/1"))

    def header(self, name: str) -> str | None:
        """Return the field's value by the rules of `value_of`; None if it is absent, or not ASCII."""
        lines = self.values(name)
        return value_of(name, lines) if lines else None

    def values(self, name: str) -> Sequence[str]:
        """Return the value of each line of the field; none if one of them is not ASCII."""
        try:
            return self._response.get_header_all(name)
        except ValueError:
            return ()

    @property
    def is_doubtful(self) -> bool:
        """Whether its framing is odd, or contradicts another: its connection must not be reused."""
        framing = self.header("transfer-encoding")
        contradictory = framing is not None and self.header("content-length") is not None
        return contradictory or framing not in {None, "chunked"}

    def check_framing(self) -> None:
        """Raise BadAnswerError for a transfer coding other than chunked, which reqwest takes for none."""
        framing = self.header("transfer-encoding")
        if framing is not None and {coding.strip(" \t").lower() for coding in framing.split(",")} != {
            "chunked"
        }:
            raise BadAnswerError(f"Transfer-Encoding {framing[:100]!r}")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it was sent."""
        reader = self._response.body_reader
        try:
            while (chunk := await reader.read_chunk()) is not None:
                yield bytes(chunk)
        except Exception as error:  # noqa: BLE001 mapped, and what is not known goes on as it is
            raise errors.known(error, head_came=True) from None

    def wire(self) -> wire_module.Wire:
        """The heads, as far as reqwest keeps them.

        Of the answer that is neither the case of its fields' names nor its phrase, nor values beyond ASCII.
        """
        url, status = self._sent.url, self.status
        known = status in HTTPStatus._value2member_map_
        return wire_module.Wire(
            url=str(url),
            method=self._sent.method,
            target=_target(url),
            request_headers=tuple(_as_sent(self._sent.headers, url, self.version)),
            version="HTTP/2" if self.version == "HTTP/2.0" else self.version,
            status=status,
            phrase=HTTPStatus(status).phrase.encode() if known else b"",
            headers=tuple(_as_kept(self._response.headers)),
            address=self._address,
        )


def _target(url: Url) -> bytes:
    query = "" if url.query_string is None else f"?{url.query_string}"
    return f"{url.path}{query}".encode()


def _as_sent(headers: Sequence[tuple[str, str]], url: Url, version: str) -> Iterator[wire_module.Header]:
    """In hyper's order and case: each name's lines together, Host last unless it was given."""
    lines: dict[str, list[str]] = {}
    for name, value in headers:
        lines.setdefault(name.lower(), []).append(value)
    if version.startswith("HTTP/1"):
        port = "" if url.port is None else f":{url.port}"
        lines.setdefault("host", [f"{url.host_str}{port}"])
    for name, values in lines.items():
        shown = name.title() if version.startswith("HTTP/1") else name
        yield from ((shown.encode(), value.encode("latin-1")) for value in values)


def _as_kept(headers: HeaderMap) -> Iterator[wire_module.Header]:
    for name in dict.fromkeys(headers.keys()):
        try:
            yield from ((name.encode(), value.encode()) for value in headers.getall(name))
        except ValueError:
            continue
