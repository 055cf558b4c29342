"""What a request sends along, in blocks: each has its own write timeout, and the length is always said."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fetchfleet.jobs.contract.body_checks import inline
from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.worker.http.upload import Upload, opened

BLOCK_BYTES = 64 * 1024

Header = tuple[str, str]


def own_headers(user_agent: str) -> tuple[Header, ...]:
    """What every request says, unless it has a word of its own on it."""
    # Bodies are kept as sent: a length and a digest are of what the host has.
    return (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", user_agent))


class Blocks:
    """Bytes at hand; every iteration begins at the first."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length_bytes = len(body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """One block after the other."""
        for at in range(0, len(self._body), BLOCK_BYTES):
            yield self._body[at : at + BLOCK_BYTES]


@asynccontextmanager
async def content_of(request: Hop, in_folder: Path | None) -> AsyncIterator[Blocks | Upload | None]:
    """What the request sends, None for nothing; raises NoBodyFileError or UnreadableBodyFileError."""
    if request.body_file is not None:
        async with opened(in_folder, request.body_file) as upload:
            yield upload
    else:
        body = inline(request.body, request.body_base64)
        yield None if body is None else Blocks(body)


def framing_of(content: Blocks | Upload | None) -> tuple[Header, ...]:
    """The header that says how long it is: never chunked, which many hosts do not take (RFC 9112 §6.2)."""
    return () if content is None else (("Content-Length", str(content.length_bytes)),)
