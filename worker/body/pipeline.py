"""The body of a response on its way from the connection to the sink: decoded and checked, if asked for."""

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import msgspec

from fetchfleet.jobs.contract.entry import Hop
from fetchfleet.jobs.contract.model import Fetch
from fetchfleet.worker.body.decoders import (
    ACCEPT_ENCODING,
    SMALL_WINDOWS,
    STEP_BYTES,
    DecoderChain,
    UnknownCodingError,
    codings_of,
    names_of,
)
from fetchfleet.worker.body.digests import Digest, digests_of
from fetchfleet.worker.body.json_lines import JsonLinesChecker
from fetchfleet.worker.body.min_rate import MinRate, RateWindow, after
from fetchfleet.worker.errors import (
    DigestMismatchError,
    OverlongBodyError,
    TooSlowError,
    TruncatedBodyError,
)
from fetchfleet.worker.http.answer import Answer
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import mono_s
from fetchfleet.worker.util.executors import CODING, run_in

IN_PLACE_BYTES = 16 * 1024
"""Up to this size a chunk is decoded or checked on the loop: a thread would cost more."""

STEP_PIECES = 256
"""Members and frames in one step: each takes time, even an empty one."""

SLACK_BYTES = 64 * 1024
"""A coding makes a body smaller, or larger by at most an eighth and this."""

MAX_CODING_CHARS = 100
"""Characters of a host's Content-Encoding in a result, at most."""

_UNPRINTABLE = re.compile(r"[^ -~]")

LARGE_WINDOWS = frozenset({"br", "zstd"})
"""Codings whose decoders hold megabytes while their body comes; those of gzip and deflate hold 32 KiB."""

MAX_LARGE_DECODERS = 1
"""With at most 18 MiB it fits beside everything else in a worker's first 100 MiB."""


class DecoderBudget:
    """The large decoders that a worker process may still start.

    Only requests that hold one of them offer br and zstd; all others offer gzip and deflate.
    """

    def __init__(self, free: int = MAX_LARGE_DECODERS) -> None:
        self.free = free


class DecoderSlot:
    """The share of one attempt in the budget: one large decoder, or none."""

    def __init__(self, budget: DecoderBudget) -> None:
        self._budget = budget
        self._taken = False

    def take(self) -> bool:
        """Take a large decoder. True if one was free, or if the slot has one already."""
        if not self._taken and self._budget.free:
            self._budget.free -= 1
            self._taken = True
        return self._taken

    def give_back(self) -> None:
        """Return the decoder to the budget; a second call does nothing."""
        if self._taken:
            self._budget.free += 1
            self._taken = False


def with_accept_encoding(request: Hop, fetch: Fetch, slot: DecoderSlot) -> Hop:
    """Return the request with the codings to offer; an Accept-Encoding of the caller stays.

    Takes a large decoder, if one is free, to offer the codings that need it.
    """
    if not fetch.decode or any(name.lower() == "accept-encoding" for name, _ in request.headers):
        return request
    offered = ACCEPT_ENCODING if slot.take() else SMALL_WINDOWS
    headers = (*request.headers, ("Accept-Encoding", offered))
    return msgspec.structs.replace(request, headers=headers)


class BodyPipeline:
    """The body of one response, in the form that its fetch wants. Raises UnknownCodingError."""

    def __init__(self, answer: Answer, fetch: Fetch, policy: LanePolicy, max_bytes: int = 0) -> None:
        self._answer = answer
        self._coded_bytes = coded_bytes = answer.length_bytes
        self._max_coded_bytes = max_bytes + max_bytes // 8 + SLACK_BYTES if max_bytes else 0
        encoding = answer.header("content-encoding")
        # An empty body has no coding, whatever the header says.
        coded = encoding and coded_bytes != 0 and answer.status != 204
        codings = codings_of(encoding) if coded else ()
        if codings and fetch.lines and not fetch.decode:
            raise UnknownCodingError(
                f"coded as {', '.join(codings)[:MAX_CODING_CHARS]}: lines need decode, too"
            )
        self._chain = DecoderChain(codings, policy.max_decode_ratio) if codings and fetch.decode else None
        self._large_decoder = self._chain is not None and not LARGE_WINDOWS.isdisjoint(codings)
        told = names_of(encoding) if coded else ()
        if self._chain is not None:
            told = tuple(name for name in told if name not in codings)
        self._wanted_digests: dict[str, bytes] = {}
        self._coded_digests: dict[str, Any] = {}
        self._rate = MinRate(policy.min_rate_bytes_per_s, policy.min_rate_window_s)
        self._checker = JsonLinesChecker(policy.max_line_bytes) if fetch.lines else None
        self.coding = _UNPRINTABLE.sub("?", ", ".join(told))[:MAX_CODING_CHARS] if told else None
        """The codings in which the body is stored, with names of Content-Encoding that are no coding."""
        self.coding_ended = False
        """Whether a coding has marked the end of the body."""
        self.length_bytes = coded_bytes if self._chain is None else None
        """Length of the body as stored; None if unknown."""

    @property
    def decodes(self) -> bool:
        """Whether the stored bytes differ from the bytes sent."""
        return self._chain is not None

    @property
    def lines(self) -> int | None:
        """Number of records so far; None if the fetch does not ask for lines."""
        return self._checker.count if self._checker is not None else None

    def may_decode(self, slot: DecoderSlot) -> bool:
        """Whether the slot has a large decoder if the body needs one. Gives the decoder back otherwise."""
        if not self._large_decoder:
            slot.give_back()
        return not self._large_decoder or slot.take()

    def host_digests(self, *, whole: bool, resumed: bool) -> tuple[Digest, ...]:
        """Return the digests that the host sent for these bytes; see digests_of."""
        header = self._answer.header
        if header("repr-digest") is None and header("content-digest") is None:
            return ()
        return digests_of(header, whole=whole, resumed=resumed)

    def check_coded(self, digests: Iterable[Digest]) -> None:
        """Compare the coded bytes, before they are decoded, with these digests."""
        self._wanted_digests = dict(digests)
        self._coded_digests = {name: hashlib.new(name) for name in self._wanted_digests}

    def pieces(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Yield the bytes to store as they come.

        Raises CodingError, BadLineError, CutLineError, DigestMismatchError, OverlongBodyError, TooSlowError
        or TruncatedBodyError.
        """
        as_sent = not self._rate.bytes_per_s and self._chain is None and self._checker is None
        pieces = _Pieces(self._answer)
        return nullcontext(pieces) if as_sent else self._inspected(pieces)

    @asynccontextmanager
    async def _inspected(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
        async with AsyncExitStack() as stages:
            if self._rate.bytes_per_s:
                pieces = await stages.enter_async_context(aclosing(_paced(pieces, self._rate)))
            if self._chain is not None:
                pieces = await stages.enter_async_context(aclosing(self._decoded(pieces, self._chain)))
            if self._checker is not None:
                pieces = await stages.enter_async_context(aclosing(self._checked(pieces, self._checker)))
            yield pieces

    async def _decoded(
        self, chunks: AsyncIterator[bytes], chain: DecoderChain
    ) -> AsyncGenerator[bytes, None]:
        def decode(chunk: bytes) -> Iterator[bytes]:
            for digest in self._coded_digests.values():
                digest.update(chunk)
            yield from chain.feed(chunk)

        came_bytes = 0
        async for chunk in chunks:
            came_bytes += len(chunk)
            if self._max_coded_bytes and came_bytes > self._max_coded_bytes:
                raise OverlongBodyError(f"{came_bytes} coded bytes are more than {self._max_coded_bytes}")
            pieces = decode(chunk)
            # Even of a small chunk only the first step runs on the loop.
            in_place = len(chunk) <= IN_PLACE_BYTES
            step, more = _step(pieces) if in_place else await run_in(CODING, _step, pieces)
            while step or more:
                if step:
                    yield step
                step, more = await run_in(CODING, _step, pieces) if more else (b"", False)
        # Content-Length counts coded bytes (RFC 9110 §8.6).
        if self._coded_bytes is not None and came_bytes != self._coded_bytes:
            raise TruncatedBodyError(f"{came_bytes} of {self._coded_bytes} coded bytes came")
        chain.finish()
        self.coding_ended = came_bytes > 0
        for name, digest in self._coded_digests.items():
            if digest.digest() != self._wanted_digests[name]:
                raise DigestMismatchError(f"its {name}, coded, is {digest.hexdigest()}")

    async def _checked(
        self, pieces: AsyncIterator[bytes], checker: JsonLinesChecker
    ) -> AsyncGenerator[bytes, None]:
        # A body without one of these ends with its connection, which may break (RFC 9112 §6.3).
        framed = self._coded_bytes is not None or self._chain is not None
        whole = framed or self._answer.header("transfer-encoding") is not None
        block: list[bytes] = []

        def check(block: list[bytes], *, last: bool = False) -> None:
            checker.feed(b"".join(block))  # joined in the thread: many blocks may wait for one
            if last:
                checker.finish(whole=whole)

        block_bytes = 0
        async for piece in pieces:
            block.append(piece)
            block_bytes += len(piece)
            if block_bytes >= STEP_BYTES:
                await run_in(CODING, check, block)
                block, block_bytes = [], 0
            yield piece
        if block_bytes <= IN_PLACE_BYTES:
            check(block, last=True)
        else:
            await run_in(CODING, partial(check, block, last=True))


class _Pieces:
    """The body as it was sent, piece by piece."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._answer.read()
        if not piece:
            raise StopAsyncIteration
        return piece


async def _paced(chunks: AsyncIterator[bytes], rate: MinRate) -> AsyncGenerator[bytes, None]:
    """Yield the chunks. Raises TooSlowError if they come below the rate."""
    window = RateWindow()
    asked_s = mono_s()
    async for chunk in chunks:
        fast_enough = after(window, rate, len(chunk), mono_s() - asked_s)
        if fast_enough is None:
            raise TooSlowError(f"less than {rate.bytes_per_s:g} bytes a second over {rate.window_s:g} s")
        window = fast_enough
        yield chunk
        asked_s = mono_s()


def _step(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Join pieces up to STEP_BYTES, or STEP_PIECES of them; returns whether there may be more."""
    step: list[bytes] = []
    step_bytes = 0
    for piece in pieces:
        step.append(piece)
        step_bytes += len(piece)
        if step_bytes >= STEP_BYTES or len(step) == STEP_PIECES:
            return b"".join(step), True
    return b"".join(step), False
