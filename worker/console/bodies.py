"""Bodies of requests: read piece by piece, within a limit and without waiting forever for a slow client."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from fetchfleet.worker.console.problems import ProblemError

PIECE_TIMEOUT_S = 30.0
"""The time in which the next piece of a body must arrive."""


def media_type_of(request: Request) -> str:
    """Return the media type of the body, in lower case and without parameters. Raises ProblemError."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(415, "Content-Encoding: send the body without a coding")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises ProblemError after PIECE_TIMEOUT_S without a piece."""
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout(PIECE_TIMEOUT_S):
                piece = await anext(stream, None)
            if piece is None:
                return
            yield piece
    except TimeoutError:
        raise ProblemError(408, f"no part of the body has arrived for {PIECE_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise ProblemError(400, "the connection was closed before the body was complete") from None
    finally:
        await stream.aclose()


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return the whole body. Raises ProblemError if it is longer than the limit."""
    body = bytearray()
    async for piece in pieces(request):
        body += piece
        if len(body) > limit_bytes:
            raise ProblemError(413, f"the body has more than {limit_bytes} bytes, which is the limit")
    return bytes(body)


async def lines(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """Yield the lines of the body. Raises ProblemError if one is longer than the limit."""
    rest = bytearray()
    number = 0
    async for piece in pieces(request):
        rest += piece
        if b"\n" in piece:
            *complete, last = rest.split(b"\n")
            rest = last
            for line in complete:
                number += 1
                yield bytes(line)
        if len(rest) > limit_bytes:
            raise ProblemError(
                413, f"line {number + 1} has more than {limit_bytes} bytes, which is the limit"
            )
    if rest:
        yield bytes(rest)
