"""Bodies of requests, in any pieces."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from fetchfleet.worker.console import bodies
from fetchfleet.worker.console.problems import ProblemError


def request_of(pieces: Sequence[bytes], *, is_cut: bool = False) -> Request:
    """Return a request whose body arrives in these pieces. is_cut: the connection ends after them."""
    messages: list[dict[str, object]] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    messages.append({"type": "http.disconnect"} if is_cut else {"type": "http.request", "more_body": False})
    arriving = iter(messages)

    async def receive() -> dict[str, object]:
        return next(arriving)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def read_lines(request: Request, limit_bytes: int = 1000) -> list[bytes]:
    """Return the lines of a body."""
    return [line async for line in bodies.lines(request, limit_bytes)]


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"\n", b"a\nb", b"\n\n"]), max_size=20))
def test_lines_are_split_alike_however_they_arrive(pieces: list[bytes]) -> None:
    """A line feed ends a line; the last line needs none."""
    whole = b"".join(pieces).split(b"\n")
    expected = whole if whole[-1] else whole[:-1]

    assert expected == asyncio.run(read_lines(request_of(pieces)))


@given(st.lists(st.binary(max_size=20), max_size=10), st.integers(1, 100))
def test_a_body_has_at_most_its_limit(pieces: list[bytes], limit_bytes: int) -> None:
    """A longer one gets 413."""
    whole = b"".join(pieces)
    if len(whole) <= limit_bytes:
        assert whole == asyncio.run(bodies.read_body(request_of(pieces), limit_bytes))
    else:
        with pytest.raises(ProblemError) as caught:
            asyncio.run(bodies.read_body(request_of(pieces), limit_bytes))
        assert 413 == caught.value.status


async def test_a_line_without_end_is_refused_early() -> None:
    """It is never longer in memory than the limit and a piece."""
    request = request_of([b"x" * 600, b"x" * 600, b"x" * 600])

    with pytest.raises(ProblemError, match="line 1 has more than 1000 bytes"):
        await read_lines(request)


async def test_a_cut_body_is_no_body() -> None:
    """Its last line would be incomplete."""
    with pytest.raises(ProblemError, match="closed before the body was complete"):
        await read_lines(request_of([b"a\nb"], is_cut=True))
